import NN
import PEFTCore
import PEFTSupport
import Tensors

/// LoRA on a layer that is tied to an embedding, with the embedding's own change: A of the head is
/// B of the embedding, transposed, and the other way round. There is one pair of parameters.
final class LoRATiedHead: TunerLayer {
  private let embedding: LoRAEmbedding

  init(_ embedding: LoRAEmbedding) { self.embedding = embedding }

  var parameters: [AdapterParameter] {
    [
      AdapterParameter("lora_A.weight", embedding.b, isTransposed: true),
      AdapterParameter("lora_B.weight", embedding.a, isTransposed: true),
    ]
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .features(let x) = call.input else {
      preconditionFailure("an output head takes features")
    }
    let low = linear(embedding.dropout(x, call.context), embedding.b.tensor.transposing())
    sum.addProduct(low, embedding.a.tensor.transposing(), scale: Float(embedding.scaling))
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    try embedding.addDelta(rows: rows, to: &block, base: base)
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let own = layers.compactMap { entry in
      (entry.layer as? LoRATiedHead).map { (entry.adapter, $0.embedding) }
    }
    func dictionary(_ make: (LoRAEmbedding) -> PrintedModule) -> PrintedModule {
      PrintedModule("ModuleDict", children: own.map { ($0.0, make($0.1)) })
    }
    func plain(_ inputs: Int, _ outputs: Int) -> PrintedModule {
      PrintedModule(
        "Linear", attributes: "in_features=\(inputs), out_features=\(outputs), bias=False")
    }
    return PrintedModule(
      "lora.Linear",
      children: [
        ("base_layer", base),
        ("lora_dropout", dictionary(\.printedDropout)),
        ("lora_A", dictionary { plain($0.b.shape[0], $0.rank) }),
        ("lora_B", dictionary { plain($0.rank, $0.a.shape[1]) }),
        ("lora_embedding_A", PrintedModule("ParameterDict")),
        ("lora_embedding_B", PrintedModule("ParameterDict")),
        ("lora_magnitude_vector", PrintedModule("ModuleDict")),
      ])
  }
}

/// LoRA on layers tied to an embedding that is adapted too.
struct LoRATiedDispatcher: Dispatcher {
  var supports: String { "Linear tied to an Embedding" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard let embedding = site.tied as? LoRAEmbedding, site.host is Linear else { return nil }
    return LoRATiedHead(embedding)
  }
}
