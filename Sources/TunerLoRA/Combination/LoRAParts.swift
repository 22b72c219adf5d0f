import PEFTCore
import PEFTSupport
import Tensors

/// What a LoRA adapter does to one module.
struct LoRAPart {
  /// Whether its keys are an embedding's.
  let isEmbedding: Bool
  /// A and B as they stand in files.
  let a: Tensor, b: Tensor
  let factors: FactoredChange
  /// The bias of B.
  let bias: Tensor?
  /// DoRA's magnitudes.
  let magnitude: Tensor?
  let scaling: Double

  /// What the config counts as the rank: a fused projection has so many rows of A for each part.
  var recordedRank: Int { Self.recordedRank(factors, isMatrix: a.shape.count == 2) }

  static func recordedRank(_ factors: FactoredChange, isMatrix: Bool) -> Int {
    isMatrix ? factors.groupRank : factors.rank
  }

  /// The rank of each group for a rank as the config counts it.
  func groupRank(recorded rank: Int) -> Int {
    a.shape.count == 2 ? rank : (rank + factors.groups - 1) / factors.groups
  }
}

/// A LoRA adapter taken apart: its changes by module, and what else is in it.
struct LoRAParts {
  let name: String
  let config: JSONObject
  let weight: Double
  let settings: LoRARankSettings
  /// Paths of the changed modules in the order of the tensors.
  let paths: [String]
  let modules: [String: LoRAPart]
  /// Tensors of modules trained in full, and base weights that were saved along.
  let others: [(key: String, value: Tensor)]

  /// - Throws: ``PEFTError``: a config member of the wrong kind, half a pair of factors, factors
  ///   that have no product or are not finite, or tensors of another method.
  init(_ source: CombinationSource) throws(PEFTError) {
    let state = source.state
    name = state.name
    config = state.config
    weight = source.weight
    do { settings = try LoRARankSettings(state.config) } catch { throw error.located(at: name) }
    var paths: [String] = []
    var found: [String: [String: Tensor]] = [:]
    var others: [(key: String, value: Tensor)] = []
    for (key, value) in state.tensors {
      guard let suffix = LoRAKey.all.first(where: { key.hasSuffix("." + $0) }) else {
        if key.contains(".lora_") {
          throw PEFTError(
            .unsupported, "'\(key)' is not a tensor of LoRA or DoRA, so it cannot be combined",
            at: name, remedy: "Convert the adapter to LoRA first.")
        }
        others.append((key, value))
        continue
      }
      let path = String((FileKey.name(of: key) ?? key).dropLast(suffix.count + 1))
      if found[path] == nil { paths.append(path) }
      found[path, default: [:]][suffix] = value
    }
    if paths.isEmpty {
      throw PEFTError(
        .missingTensor, "the adapter has no factors A and B", at: name,
        remedy: "The adapter is incomplete.")
    }
    var modules: [String: LoRAPart] = [:]
    for path in paths {
      modules[path] = try Self.part(
        found[path] ?? [:], path, settings, state.scalings[path], name: state.name)
    }
    self.paths = paths
    self.modules = modules
    self.others = others
  }

  private static func part(
    _ tensors: [String: Tensor], _ path: String, _ settings: LoRARankSettings,
    _ scaling: Double?, name: String
  ) throws(PEFTError) -> LoRAPart {
    let isEmbedding =
      tensors[LoRAKey.embeddingA] != nil || tensors[LoRAKey.embeddingB] != nil
    let (first, second) = LoRAKey.factors(ofEmbedding: isEmbedding)
    func tensor(_ suffix: String) throws(PEFTError) -> Tensor {
      guard let found = tensors[suffix] else {
        throw PEFTError(
          .missingTensor, "'\(path)' has no \(suffix)", at: name,
          remedy: "The adapter is incomplete.")
      }
      return found
    }
    let (a, b) = (try tensor(first), try tensor(second))
    let magnitude =
      settings.usesDoRA ? try tensor(LoRAKey.magnitude) : tensors[LoRAKey.magnitude]
    if let suffix = tensors.filter({ !$0.value.allFinite }).keys.min() {
      throw PEFTError(
        .numericalFailure, "'\(path)' has values that are not finite, in \(suffix)", at: name,
        remedy: "The adapter seems to be broken.")
    }
    let factors: FactoredChange
    do { factors = try FactoredChange(a: a, b: b) } catch {
      throw PEFTError(
        error.code, "'\(path)': \(error.message)", at: name,
        remedy: "The adapter seems to be broken.")
    }
    let rank = LoRAPart.recordedRank(factors, isMatrix: a.shape.count == 2)
    let configured = try settings.scaling(FileKey.targetPath(path), rank: rank)
    return LoRAPart(
      isEmbedding: isEmbedding, a: a, b: b, factors: factors, bias: tensors[LoRAKey.bias],
      magnitude: magnitude,
      scaling: scaling ?? configured)
  }
}

/// The members of a LoRA config that a combination looks at, in whatever variant of LoRA.
struct LoRARankSettings {
  let rank: Int
  let alpha: Double
  let rankPattern: SuffixPatterns
  let alphaPattern: SuffixPatterns
  let usesRSLoRA: Bool
  let usesDoRA: Bool
  let hasBias: Bool
  /// The key `bias`: which biases of the base are trained.
  let baseBias: String
  /// The name of an initialisation that has one.
  let initialization: String?
  let modulesToSave: [String]
  let hasTargetParameters: Bool
  let targets: TargetSelection

  init(_ object: JSONObject) throws(PEFTError) {
    var reader = ConfigReader(object)
    rank = try reader.int("r") ?? 8
    alpha = try reader.double("lora_alpha") ?? 8
    rankPattern = try reader.patterns("rank_pattern")
    alphaPattern = try reader.patterns("alpha_pattern")
    usesRSLoRA = try reader.bool("use_rslora") ?? false
    usesDoRA = try reader.bool("use_dora") ?? false
    hasBias = try reader.bool("lora_bias") ?? false
    baseBias = try reader.string("bias") ?? "none"
    initialization = reader.value("init_lora_weights")?.string
    modulesToSave = try reader.strings("modules_to_save") ?? []
    hasTargetParameters = !(try reader.strings("target_parameters") ?? []).isEmpty
    targets = try TargetSelection(&reader)
  }

  /// The largest rank, of those that the config names.
  var largestRank: Int {
    rankPattern.entries.reduce(rank) { max($0, Int(exactly: $1.value) ?? 0) }
  }

  func scaling(_ path: String, rank: Int) throws(PEFTError) -> Double {
    let alpha = try alphaPattern.value(for: path, configKey: "alpha_pattern") ?? alpha
    return LoRAConfig.scaling(alpha, rank: rank, isStabilized: usesRSLoRA)
  }
}
