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
  public let values: AdapterValues
  /// The rank of each module by path.
  public let ranks: [String: Int]
  /// What may not have been meant.
  public let warnings: [String]
}

extension PeftModel {
  /// Approximates an adapter by LoRA: a truncated singular value decomposition of each change of a
  /// weight (peft's `convert_to_lora`).
  ///
  /// Changes that are products of factors are decomposed without being made. Modules and rows of
  /// embeddings that are trained in full, and the order of the layers, are taken over.
  ///
  /// - Parameters:
  ///   - adapter: The adapter.
  ///   - rank: The rank, or how it is chosen.
  /// - Throws: ``PEFTError``: no such adapter, a rank that is not possible, changes that are not those of
  ///   a weight or that two layers share, a decomposition that fails.
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
    let layers = try adaptedLayers(of: adapter)
    try Self.checkTies(layers, adapter)
    var changes: [DecomposedLayer] = []
    for layer in layers {
      do { changes.append(try DecomposedLayer(layer, rank)) } catch {
        throw error.located(at: layer.path)
      }
    }
    // Layers that share a line of the config have one rank.
    var ranks: [String: Int] = [:]
    for change in changes { ranks[change.target] = max(ranks[change.target] ?? 0, change.rank) }
    var tensors = changes.flatMap { $0.tensors(rank: ranks[$0.target]!) }
    let own = Set(
      layers.flatMap { layer in
        layer.layer.parameters.map { layer.key($0.suffix) }
      })
    for tensor in try self.tensors(of: adapter) where !own.contains(tensor.key) {
      tensors.append((tensor.key, tensor.parameter.value))
    }
    let config = Self.loraConfig(like: source, rank, ranks)
    return LoRAConversion(
      config: config, values: AdapterValues(name: adapter, config: config.object, tensors: tensors),
      ranks: Dictionary(
        uniqueKeysWithValues: zip(layers, changes).map { ($0.path, ranks[$1.target]!) }),
      warnings: warnings)
  }

  /// Writes an adapter as LoRA (peft's `save_as_lora`); see ``convertToLoRA(_:rank:)``.
  ///
  /// - Throws: ``PEFTError`` as that, or when the folder cannot be written.
  @discardableResult
  public func saveAsLoRA(
    _ path: String, adapter: String = "default", rank: LoRAConversion.Rank
  ) throws -> LoRAConversion {
    let conversion = try convertToLoRA(adapter, rank: rank)
    // What was converted is LoRA, whether or not the model's registry knows it.
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    try conversion.values.save(
      path, registry: registry, isTransformersModel: !info.modelType.isEmpty)
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
          + "\(share).", remedy: "Pass a number above 0 and up to 1, or a rank.")
    case .fixed(0):
      throw PEFTError(
        .invalidConfiguration,
        "Passing a rank of 0 doesn't make sense, please pass a valid value.")
    case .fixed(let rank) where rank < 0:
      throw PEFTError(
        .invalidConfiguration, "the rank is \(rank), a positive number was expected",
        remedy: "Pass the rank of the new adapter.")
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
        at: adapter, remedy: "Keep the adapter as it is.")
    }
    if !config.targetParameters.isEmpty {
      throw PEFTError(
        .unsupported,
        "the adapter changes weights that no layer holds ('target_parameters'), which cannot be "
          + "converted", at: adapter, remedy: "Keep the adapter as it is.")
    }
  }

  /// Refuses a layer that has the factors of another one: each layer gets factors for itself.
  private static func checkTies(
    _ layers: [AdaptedLayer], _ adapter: String
  ) throws(PEFTError) {
    let tied = layers.first { $0.layer.parameters.contains(where: \.isTransposed) }
    guard let tied else { return }
    throw PEFTError(
      .unsupported,
      "the module '\(tied.path)' has the change of the embedding that it is tied to "
        + "('ensure_weight_tying'), which cannot be converted", at: adapter,
      remedy: "Keep the adapter as it is.")
  }

  private static func loraConfig(
    like source: any TunerConfig, _ rank: LoRAConversion.Rank,
    _ ranks: [String: Int]
  ) -> LoRAConfig {
    var config = LoRAConfig(rank: 1, alpha: 1, targets: source.targets)
    switch rank {
    case .fixed(let rank):
      (config.rank, config.rankPattern) = LoRACombiner.pattern(ranks, mostly: rank)
    case .energy:
      // As peft has it: a line for each module.
      config.rankPattern = LoRACombiner.ordered(ranks)
    }
    config.alpha = Double(config.rank)
    config.alphaPattern = config.rankPattern
    config.taskType = source.taskType
    config.baseModel = source.baseModel
    config.modulesToSave = source.modulesToSave
    config.trainableTokens = source.trainableTokens
    config.layerReplication = source.layerReplication
    config.ensuresWeightTying = source.ensuresWeightTying
    return config
  }
}

/// A layer's change, decomposed, with what is to become of it.
private struct DecomposedLayer {
  let filePath: String
  let target: String
  /// A LoRA layer of the host, for names and shapes.
  private let model: any TunerLayer
  private let groups: [Decomposition]
  private let groupRank: Int

  /// The rank that is wanted here.
  var rank: Int { groupRank * groups.count }

  init(_ layer: AdaptedLayer, _ wanted: LoRAConversion.Rank) throws(PEFTError) {
    filePath = layer.filePath
    target = layer.target
    let shapes: FactoredChange
    if let factored = layer.layer as? any LowRankLayer {
      model = factored
      shapes = try factored.change
      groups = try shapes.decomposed()
    } else {
      model = try layer.sibling(of: LoRATuner.self, LoRAConfig(rank: 1, alpha: 1))
      shapes = try FactoredChange(
        a: model.parameters[0].parameter.value, b: model.parameters[1].parameter.value)
      let change = try BaseWeights.oriented(
        try layer.fullChange(), outputs: shapes.outputs, inputs: shapes.inputs,
        isTransposed: layer.host is Embedding, at: layer.path)
      groups = try Decomposition.groups(change, count: 1)
    }
    let most = min(shapes.outputs / groups.count, shapes.inputs)
    let count = groups.count
    switch wanted {
    case .fixed(let rank): groupRank = (rank + count - 1) / count
    case .energy(let share):
      groupRank = groups.map { Decomposition.rank(forEnergy: share, of: $0.s) }.max() ?? 1
    }
    guard groupRank <= most else {
      throw PEFTError(
        .invalidConfiguration,
        "The chosen rank \(groupRank * count) is larger than the weight shape (\(most * count)), "
          + "please choose a lower rank.")
    }
  }

  /// The factors under their keys.
  func tensors(rank: Int) -> [(key: String, value: Tensor)] {
    let found = Decomposition.factors(groups, groupRank: rank / groups.count)
    let (a, b) = (model.parameters[0], model.parameters[1])
    return [
      (
        a.keys(at: filePath)[0],
        found.a.reshaped([found.rank] + a.parameter.shape.dropFirst())
      ),
      (
        b.keys(at: filePath)[0],
        found.b.reshaped([found.outputs, found.groupRank] + b.parameter.shape.dropFirst(2))
      ),
    ]
  }
}
