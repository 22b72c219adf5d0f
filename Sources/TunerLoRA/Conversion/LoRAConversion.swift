import NN
import PEFTCore
import PEFTSupport
import Tensors

/// An adapter of another method as LoRA.
public struct LoRAConversion: Sendable {
  /// How the ranks are chosen.
  public enum Rank: Sendable, Equatable {
    /// One rank for all modules.
    case fixed(Int)
    /// For each module the smallest rank whose singular values make up this share, above 0 and up to 1, of
    /// the sum of all squared singular values.
    case energy(Double)
  }

  /// The settings; the scaling is 1 everywhere.
  public let config: LoRAConfig
  /// Settings and values, to be saved or added to a model.
  public let state: AdapterValues
  /// The rank of each module by path.
  public let ranks: [String: Int]
  /// What may not have been meant.
  public let warnings: [String]
}

extension PeftModel {
  /// Approximates an adapter by LoRA: a truncated singular value decomposition of each change of a
  /// weight (peft's `convert_to_lora`).
  ///
  /// Changes that are products of factors are decomposed without being made. Modules trained in full are
  /// taken over.
  ///
  /// - Parameters:
  ///   - adapter: The adapter.
  ///   - rank: The rank, or how it is chosen.
  /// - Throws: ``PEFTError``: no such adapter, a rank that is not possible, changes that are not those of
  ///   a weight, a decomposition that fails.
  public func convertToLoRA(
    _ adapter: String = "default", rank: LoRAConversion.Rank
  ) throws(PEFTError) -> LoRAConversion {
    let source = try config(adapter)
    try Self.check(rank, source, adapter)
    var warnings: [String] = []
    if source.object["peft_type"]?.string == LoRATuner.peftType {
      warnings.append(
        "Converting a PEFT adapter to LoRA that is already a LoRA adapter. There is typically no "
          + "need for that.")
    }
    var tensors: [(key: String, value: Tensor)] = []
    var ranks: [(path: String, rank: Int)] = []
    for layer in try adaptedLayers(of: adapter) {
      do {
        let converted = try Self.convert(layer, rank)
        ranks.append((layer.path, converted.rank))
        tensors += converted.tensors.map { ("base_model.model.\(layer.path).\($0.key)", $0.value) }
      } catch {
        throw error.located(at: layer.path)
      }
    }
    let layerKeys = Set(
      try adaptedLayers(of: adapter).flatMap { layer in
        layer.layer.parameters.map { "base_model.model.\(layer.path).\($0.suffix)" }
      })
    for tensor in try self.tensors(of: adapter) where !layerKeys.contains(tensor.key) {
      tensors.append((tensor.key, tensor.parameter.value))
    }
    let config = Self.loraConfig(like: source, rank, ranks)
    return LoRAConversion(
      config: config, state: AdapterValues(name: adapter, config: config.object, tensors: tensors),
      ranks: Dictionary(uniqueKeysWithValues: ranks.map { ($0.path, $0.rank) }),
      warnings: warnings)
  }

  /// Writes an adapter as LoRA (peft's `save_as_lora`); see ``convertToLoRA(_:rank:)``.
  @discardableResult
  public func saveAsLoRA(
    _ path: String, adapter: String = "default", rank: LoRAConversion.Rank
  ) throws -> LoRAConversion {
    let conversion = try convertToLoRA(adapter, rank: rank)
    // What was converted is LoRA, whether or not the model's registry knows it.
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    try conversion.state.save(path, registry: registry)
    return conversion
  }

  private static func check(
    _ rank: LoRAConversion.Rank, _ config: any TunerConfig, _ adapter: String
  ) throws(PEFTError) {
    switch rank {
    case .energy(let share) where !(share > 0 && share <= 1):
      throw PEFTError(
        .invalidConfiguration,
        "If rank is a float, it is interpreted as a threshold. It must be between 0 and 1 but got "
          + "\(share).")
    case .fixed(0):
      throw PEFTError(
        .invalidConfiguration,
        "Passing a rank of 0 doesn't make sense, please pass a valid value.")
    case .fixed(let rank) where rank < 0:
      throw PEFTError(
        .invalidConfiguration, "the rank is \(rank), a positive number was expected")
    default: break
    }
    if let bias = config.object["bias"]?.string, bias != "none" {
      throw PEFTError(
        .unsupported,
        "The adapter's config sets bias=\(bias), this is not supported right now.", at: adapter)
    }
    if config.object["lora_bias"]?.bool == true {
      throw PEFTError(
        .unsupported, "The adapter's config sets lora_bias=true, which cannot be converted.",
        at: adapter)
    }
  }

  private static func convert(
    _ layer: AdaptedLayer, _ wanted: LoRAConversion.Rank
  ) throws(PEFTError) -> (rank: Int, tensors: [(key: String, value: Tensor)]) {
    // A layer of LoRA tells the names and shapes of its factors.
    let model: any TunerLayer
    let groups: [Decomposition]
    if let low = layer.layer as? any FactoredLayer {
      model = low
      groups = try low.change.decomposed()
    } else {
      model = try prototype(layer)
      let shapes = try factors(of: model)
      let change = try BaseWeights.oriented(
        try layer.fullChange(), outputs: shapes.outputs, inputs: shapes.inputs,
        isTransposed: layer.host is Embedding ? true : nil, at: layer.path)
      groups = try Decomposition.groups(change, count: 1)
    }
    let shapes = try factors(of: model)
    let most = min(shapes.outputs / groups.count, shapes.inputs)
    let groupRank: Int
    switch wanted {
    case .fixed(let rank): groupRank = (rank + groups.count - 1) / groups.count
    case .energy(let share):
      groupRank = groups.map { Decomposition.rank(forEnergy: share, of: $0.s) }.max() ?? 1
    }
    guard groupRank <= most else {
      throw PEFTError(
        .invalidConfiguration,
        "The chosen rank \(groupRank * groups.count) is larger than the weight shape "
          + "(\(most * groups.count)), please choose a lower rank.")
    }
    let found = Decomposition.factors(groups, groupRank: groupRank)
    let (a, b) = (model.parameters[0], model.parameters[1])
    return (
      found.rank,
      [
        (a.suffix, found.a.reshaped([found.rank] + a.parameter.shape.dropFirst())),
        (
          b.suffix,
          found.b.reshaped([found.outputs, groupRank] + b.parameter.shape.dropFirst(2))
        ),
      ]
    )
  }

  private static func factors(of layer: any TunerLayer) throws(PEFTError) -> FactoredChange {
    try FactoredChange(
      a: layer.parameters[0].parameter.value, b: layer.parameters[1].parameter.value)
  }

  /// A LoRA layer of rank 1 for a host, which stays off it.
  private static func prototype(_ layer: AdaptedLayer) throws(PEFTError) -> any TunerLayer {
    let site = AdapterSite(
      host: layer.host, path: layer.path, adapter: "conversion",
      config: LoRAConfig(rank: 1, alpha: 1))
    for dispatcher in LoRATuner.dispatchers {
      if let made = try dispatcher.makeLayer(for: site) { return made }
    }
    throw PEFTError(
      .unsupported, "LoRA has no layer for \(layer.host.typeName), so the change cannot be converted"
    )
  }

  private static func loraConfig(
    like source: any TunerConfig, _ rank: LoRAConversion.Rank,
    _ ranks: [(path: String, rank: Int)]
  ) -> LoRAConfig {
    var config = LoRAConfig(rank: 1, alpha: 1, targets: source.targets)
    var listed = ranks
    if case .fixed(let rank) = rank {
      config.rank = rank
      config.alpha = Double(rank)
      listed.removeAll { $0.rank == rank }
    }
    // A key matches the ends of names, so longer ones come first.
    listed.sort { ($1.path.utf8.count, $0.path) < ($0.path.utf8.count, $1.path) }
    config.rankPattern = SuffixPatterns(listed.map { .init($0.path, Double($0.rank)) })
    config.alphaPattern = config.rankPattern
    config.taskType = source.taskType
    config.baseModel = source.baseModel
    config.modulesToSave = source.modulesToSave
    return config
  }
}
