import NN
import PEFTCore
import PEFTSupport
import Tensors

/// LoRA on a layer that is tied to an embedding, with the embedding's own change: A of the head is
/// B of the embedding, transposed, and the other way round. There is one pair of parameters.
final class LoRATiedHead: TunerLayer {
  private let embedding: LoRALayer
  private let dropout: Dropout

  init(_ embedding: LoRALayer, _ site: AdapterSite, _ config: LoRAConfig) {
    self.embedding = embedding
    dropout = Dropout(config.dropout, at: site)
  }

  var parameters: [AdapterParameter] {
    [(LoRAKey.a, embedding.b), (LoRAKey.b, embedding.a)].map { suffix, factor in
      var parameter = AdapterParameter(suffix, factor)
      parameter.isTransposed = true
      return parameter
    }
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .features(let x) = call.input else {
      preconditionFailure("an output head takes features")
    }
    let low = linear(dropout(x, call.context), embedding.b.tensor.transposed())
    sum.addProduct(low, embedding.a.tensor.transposed(), scale: Float(embedding.scaling))
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    try embedding.addDelta(rows: rows, to: &block, base: base)
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let own = PrintedLayers<LoRATiedHead>(layers)
    return LoRAPrinter.wrapper(
      "Linear", around: base, dropout: own.modules { LoRAPrinter.dropout($0.dropout) },
      a: own.modules {
        LoRAPrinter.linear($0.embedding.b.shape[0], $0.embedding.rank)
      },
      b: own.modules {
        LoRAPrinter.linear($0.embedding.rank, $0.embedding.a.shape[1])
      })
  }
}

/// LoRA on layers tied to an embedding that is adapted too.
struct LoRATiedDispatcher: Dispatcher {
  var supports: String { "Linear tied to an Embedding" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard let embedding = site.tied as? LoRALayer, site.host is Linear,
      let config = site.config as? LoRAConfig
    else { return nil }
    return LoRATiedHead(embedding, site, config)
  }
}
