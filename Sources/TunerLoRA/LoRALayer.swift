import NN
import PEFTCore
import PEFTSupport
import Tensors

/// What LoRA on a linear layer and on an embedding share: two factors and their scaling.
class LoRALayer {
  /// Rank of the update.
  let rank: Int
  /// s, the factor of B·A.
  var scaling: Double
  /// s as the config has it.
  let configuredScaling: Double
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
    configuredScaling = try config.scaling(site.path, rank: rank)
    scaling = configuredScaling
    dropout = Dropout(config.dropout, path: "\(site.path).lora_dropout.\(site.adapter)")
  }

  /// The key of the random numbers of one factor.
  static func key(_ site: AdapterSite, _ factor: String) -> DropoutKey {
    DropoutKey(seed: site.seed, stream: siteID("\(site.path).\(factor)"))
  }

  /// The factors of the change with the scaling in A.
  var change: FactoredChange {
    get throws(PEFTError) {
      try FactoredChange(a: a.value.scaled(by: Float(scaling)), b: b.value)
    }
  }

  /// The text of a dropout in the printed tree.
  var printedDropout: PrintedModule {
    dropout.probability > 0
      ? PrintedModule("Dropout", attributes: dropout.attributes) : PrintedModule("Identity")
  }
}

/// LoRA on a linear layer: y = W x + s·B(A(dropout(x))).
final class LoRALinear: LoRALayer, ScaledLayer, FactoredLayer {
  init(_ site: AdapterSite, _ config: LoRAConfig) throws(PEFTError) {
    let (inputs, outputs) = (site.host.inputFeatures, site.host.outputFeatures)
    let rank = try config.rank(site.path)
    let aValue: Tensor
    var bValue = Tensor.zeros([outputs, rank])
    // nn.Linear's own initialisation, uniform in ±1/√fan_in.
    switch config.initialization {
    case .standard, .random:
      let bound = 1 / Float(inputs).squareRoot()
      aValue = .uniform([rank, inputs], bound: bound, key: Self.key(site, "lora_A"))
    case .gaussian:
      aValue = .normal([rank, inputs], deviation: 1 / Float(rank), key: Self.key(site, "lora_A"))
    }
    if config.initialization == .random {
      let bound = 1 / Float(rank).squareRoot()
      bValue = .uniform([outputs, rank], bound: bound, key: Self.key(site, "lora_B"))
    }
    try super.init(site, config, a: Parameter(aValue), b: Parameter(bValue), rank: rank)
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
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    // Rows of s·B·A; addProduct multiplies by a transpose, and A is small.
    block.addProduct(
      b.value.rowRange(rows), a.value.transposed(), scale: Float(scaling))
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
final class LoRAEmbedding: LoRALayer, ScaledLayer, FactoredLayer {
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
