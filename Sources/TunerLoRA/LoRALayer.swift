import NN
import PEFTCore
import PEFTSupport
import Tensors

/// What LoRA on a linear layer and on an embedding share: two factors and their scaling.
class LoRALayer {
  /// Rank of the update.
  let rank: Int
  /// s, the factor of B·A.
  let scaling: Double
  /// Dropout on the input of A.
  let dropout: Dropout
  /// `[rank, inputFeatures]`.
  let a: Parameter
  /// `[outputFeatures, rank]`.
  let b: Parameter

  fileprivate init(_ site: AdapterSite, _ config: LoRAConfig, a: Parameter, b: Parameter, rank: Int)
    throws(PEFTError)
  {
    self.rank = rank
    self.a = a
    self.b = b
    scaling = try config.scaling(site.path, rank: rank)
    dropout = Dropout(config.dropout, path: "\(site.path).lora_dropout.\(site.adapter)")
  }

  /// The key of the random numbers of one factor.
  static func key(_ site: AdapterSite, _ factor: String) -> DropoutKey {
    DropoutKey(seed: site.seed, stream: siteID("\(site.path).\(factor)"))
  }

  /// The text of a dropout in the printed tree.
  var printedDropout: PrintedModule {
    dropout.probability > 0
      ? PrintedModule("Dropout", attributes: dropout.attributes) : PrintedModule("Identity")
  }
}

/// LoRA on a linear layer: y = W x + s·B(A(dropout(x))).
final class LoRALinear: LoRALayer, TunerLayer {
  /// What the change is measured from; see ``LoRAConfig/Initialization``.
  let reference: InitialFactors.Reference?
  /// The weight that stands in for the host's.
  let standIn: (any WeightMatrix)?

  init(_ site: AdapterSite, _ config: LoRAConfig) throws(PEFTError) {
    let rank = try config.rank(site.path)
    let factors = try InitialFactors(
      site, config.initialization, rank: rank, scaling: try config.scaling(site.path, rank: rank))
    reference = factors.reference
    standIn = factors.standIn
    try super.init(
      site, config, a: Parameter(factors.a), b: Parameter(factors.b), rank: rank)
  }

  var parameters: [AdapterParameter] {
    [AdapterParameter("lora_A.weight", a), AdapterParameter("lora_B.weight", b)]
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .features(let x) = call.input else {
      preconditionFailure("a linear layer takes features")
    }
    let low = linear(dropout(x, call.context), a.tensor)
    sum.addProduct(low, b.tensor, scale: Float(scaling))
    if let reference {
      // Without dropout: it belongs to the base, from which peft takes it.
      sum.addProduct(linear(x, reference.a), reference.b, scale: -reference.scaling)
    }
  }

  var referenceTensors: [(suffix: String, value: Tensor)] {
    reference.map { [("lora_A.weight", $0.a), ("lora_B.weight", $0.b)] } ?? []
  }

  func plainTensors() throws(PEFTError) -> [(suffix: String, value: Tensor)] {
    if standIn != nil {
      throw PEFTError(
        .unsupported,
        "the adapter goes with a base of rounded weights (LoftQ); it has no form for the base as it is",
        remedy: "Save it in its trained form, or merge it.")
    }
    let own = (a: a.value, b: b.value)
    let plain = reference?.plain(a: own.a, b: own.b, scaling: Float(scaling)) ?? own
    return [("lora_A.weight", plain.a), ("lora_B.weight", plain.b)]
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    // Rows of s·B·A; addProduct multiplies by a transpose, and A is small.
    block.addProduct(
      b.value.rowRange(rows), a.value.transposed(), scale: Float(scaling))
    if let reference {
      block.addProduct(
        reference.b.rowRange(rows), reference.a.transposed(), scale: -reference.scaling)
    }
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let own = layers.compactMap { entry in
      (entry.layer as? LoRALinear).map { (entry.adapter, $0) }
    }
    func dictionary(_ make: (LoRALinear) -> PrintedModule) -> PrintedModule {
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
        ("lora_A", dictionary { plain($0.a.shape[1], $0.rank) }),
        ("lora_B", dictionary { plain($0.rank, $0.b.shape[0]) }),
        ("lora_embedding_A", PrintedModule("ParameterDict")),
        ("lora_embedding_B", PrintedModule("ParameterDict")),
        ("lora_magnitude_vector", PrintedModule("ModuleDict")),
      ])
  }
}

/// LoRA on an embedding: row + s·B·A[:, id]; no dropout, as in peft.
final class LoRAEmbedding: LoRALayer, TunerLayer {
  init(_ site: AdapterSite, _ config: LoRAConfig) throws(PEFTError) {
    let (count, width) = (site.host.inputFeatures, site.host.outputFeatures)
    let rank = try config.rank(site.path)
    let aValue: Tensor =
      config.initialization == .random
      ? .normal([rank, count], deviation: 1, key: Self.key(site, "lora_embedding_A"))
      : .zeros([rank, count])
    let bValue = Tensor.normal(
      [width, rank], deviation: 1, key: Self.key(site, "lora_embedding_B"))
    try super.init(site, config, a: Parameter(aValue), b: Parameter(bValue), rank: rank)
  }

  var parameters: [AdapterParameter] {
    [AdapterParameter("lora_embedding_A", a), AdapterParameter("lora_embedding_B", b)]
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .tokenIDs(let ids) = call.input else {
      preconditionFailure("an embedding takes token ids")
    }
    sum.addProduct(selectColumns(a.tensor, ids), b.tensor, scale: Float(scaling))
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    let columns = selectColumns(a.value, rows.map { Int32($0) })
    block.addProduct(columns, b.value, scale: Float(scaling))
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let own = layers.compactMap { entry in
      (entry.layer as? LoRAEmbedding).map { (entry.adapter, $0) }
    }
    func parameters(_ value: (LoRAEmbedding) -> Parameter) -> PrintedModule {
      PrintedModule(
        "ParameterDict",
        children: own.map { name, layer in
          let size = value(layer).shape.map(String.init).joined(separator: "x")
          return (
            name,
            PrintedModule("Object of type", attributes: "torch.FloatTensor of size \(size)")
          )
        })
    }
    return PrintedModule(
      "lora.Embedding",
      children: [
        ("base_layer", base),
        (
          "lora_dropout",
          PrintedModule("ModuleDict", children: own.map { ($0.0, $0.1.printedDropout) })
        ),
        ("lora_A", PrintedModule("ModuleDict")),
        ("lora_B", PrintedModule("ModuleDict")),
        ("lora_embedding_A", parameters(\.a)),
        ("lora_embedding_B", parameters(\.b)),
        ("lora_magnitude_vector", PrintedModule("ModuleDict")),
      ])
  }
}

/// LoRA on linear layers.
struct LoRALinearDispatcher: Dispatcher {
  var supports: String { "Linear" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.host is Linear, let config = site.config as? LoRAConfig else { return nil }
    return try LoRALinear(site, config)
  }
}

/// LoRA on embeddings.
struct LoRAEmbeddingDispatcher: Dispatcher {
  var supports: String { "Embedding" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.host is Embedding, let config = site.config as? LoRAConfig else { return nil }
    return try LoRAEmbedding(site, config)
  }
}
