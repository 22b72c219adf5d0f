import PEFTCore
import PEFTSupport

/// The settings of a LoRA adapter, peft's `LoraConfig`.
///
/// Property names are the field's; the keys in files are peft's (`r`, `lora_alpha`).
public struct LoRAConfig: TunerConfig, Equatable {
  /// Rank of the update, `r`.
  public var rank: Int
  /// Numerator of the scaling, `lora_alpha`.
  public var alpha: Double
  /// Probability of dropout on the input of A, in training.
  public var dropout: Double
  /// Which modules are adapted.
  public var targets: TargetSelection
  /// Ranks of modules that differ from ``rank``.
  public var rankPattern: SuffixPatterns
  /// Alphas of modules that differ from ``alpha``.
  public var alphaPattern: SuffixPatterns
  /// Rank-stabilised scaling: alpha/√r instead of alpha/r.
  public var usesRSLoRA: Bool
  /// Whether the update is weight-decomposed, `use_dora`; another tuner than LoRA's makes such layers.
  public var usesDoRA = false
  /// Whether DoRA's training takes the norm as a constant, as section 4.3 of its paper does and peft
  /// always; else gradients flow through it (`dora_detach_norm: false`, a key of this package).
  public var detachesNorm = true
  /// Whether B has a bias, `lora_bias`; merging needs a base layer with one.
  public var usesLoRABias = false
  /// Which of the equal parts of a fused projection's output are adapted, loralib's `enable_lora`:
  /// `[true, false, true]` for the queries and values of a packed attention. Empty, the default,
  /// is ordinary LoRA. peft does not know the key; ``PEFTCore/PeftModel/expandParts(of:as:)``
  /// makes an adapter that it reads.
  public var enabledParts: [Bool] = []
  /// Modules that are trained and saved in full.
  public var modulesToSave: [String]
  /// Weights that no layer holds and that are adapted, such as stacked experts.
  public var targetParameters: [String] = []
  /// Which biases of the base are trained.
  public var bias = BiasTraining.none
  /// Single rows of embeddings that are trained.
  public var trainableTokens: TrainableTokens?
  /// Ranges of layers that the model's stack of layers is put together from anew.
  public var layerReplication: [Range<Int>] = []
  /// Whether what is done to a tied embedding is done to the layers tied to it.
  public var ensuresWeightTying = false
  /// Whether the adapter is only to be used, not trained.
  public var isInference = false
  /// Whether the base's weights are said to be stored `[in, out]`, `fan_in_fan_out`. A layer finds
  /// its own orientation; the key is kept for others who read the file.
  public var fanInFanOut = false
  /// How A and B begin.
  public var initialization: Initialization
  /// What the adapter is for; `nil` when it is for no task in particular.
  public var taskType: String?
  /// The base model's name or path.
  public var baseModel: String?
  /// Members of the file that have no property here; they are written back.
  public var unknownKeys: JSONObject

  /// Creates settings; the defaults are peft's.
  public init(
    rank: Int = 8, alpha: Double = 8, dropout: Double = 0,
    targets: TargetSelection = TargetSelection(), taskType: TaskType? = nil,
    rankPattern: SuffixPatterns = SuffixPatterns(), alphaPattern: SuffixPatterns = SuffixPatterns(),
    usesRSLoRA: Bool = false, modulesToSave: [String] = [],
    initialization: Initialization = .standard
  ) {
    self.rank = rank
    self.alpha = alpha
    self.dropout = dropout
    self.targets = targets
    self.taskType = taskType?.name
    self.rankPattern = rankPattern
    self.alphaPattern = alphaPattern
    self.usesRSLoRA = usesRSLoRA
    self.modulesToSave = modulesToSave
    self.initialization = initialization
    baseModel = nil
    unknownKeys = JSONObject()
  }

  /// Members that have a meaning for others, or none here; they are kept as they are.
  private var passive: [String: JSONValue] = [:]

  /// The keys of peft that have no property, with their defaults: those that are only kept, and
  /// those that are refused where they have another value.
  private static let otherKeys: [(key: String, value: JSONValue, isRefused: Bool)] = [
    ("alora_invocation_tokens", .null, true), ("arrow_config", .null, true),
    ("auto_mapping", .null, false), ("kasa_config", .null, true),
    ("megatron_config", .null, true), ("megatron_core", "megatron.core", false),
    ("monteclora_config", .null, true), ("peft_version", .null, false),
    ("qalora_group_size", 16, false), ("revision", .null, false), ("use_bdlora", .null, true),
    ("use_qalora", false, true), ("velora_config", .null, true),
  ]

  /// The keys that a config file or a run may have; others are kept but not understood.
  public static let knownKeys: [String] =
    [
      "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha",
      "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
      "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "bias",
      "fan_in_fan_out", "target_parameters", "lora_bias", "trainable_token_indices",
      "layer_replication", "ensure_weight_tying", "use_dora", "dora_detach_norm", "enable_lora",
    ] + otherKeys.map(\.key) + Initialization.keys

  /// Reads the members of a config file.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` or `unsupported`, naming the key.
  public init(_ object: JSONObject) throws(PEFTError) {
    var reader = ConfigReader(object)
    _ = reader.value("peft_type")
    // Says only how peft left the adapter, and nothing of what it is.
    _ = reader.value("runtime_config")
    self.init()
    isInference = try reader.bool("inference_mode") ?? false
    taskType = try reader.string("task_type")
    baseModel = try reader.string("base_model_name_or_path")
    rank = try reader.int("r") ?? 8
    alpha = try reader.double("lora_alpha") ?? 8
    dropout = try reader.double("lora_dropout") ?? 0
    targets = try TargetSelection(&reader)
    rankPattern = try reader.patterns("rank_pattern")
    alphaPattern = try reader.patterns("alpha_pattern")
    usesRSLoRA = try reader.bool("use_rslora") ?? false
    usesDoRA = try reader.bool("use_dora") ?? false
    detachesNorm = try reader.bool("dora_detach_norm") ?? true
    usesLoRABias = try reader.bool("lora_bias") ?? false
    // peft of old wrote the key with null; it is then kept as any other.
    if object["enable_lora"]?.isNull == false {
      enabledParts = try Self.readParts(reader.value("enable_lora"))
    }
    modulesToSave = try reader.strings("modules_to_save") ?? []
    fanInFanOut = try reader.bool("fan_in_fan_out") ?? false
    initialization = try Initialization(&reader)
    try readExtras(&reader)
    try readOthers(&reader)
    unknownKeys = reader.rest
    try validate()
  }

  private mutating func readExtras(_ reader: inout ConfigReader) throws(PEFTError) {
    if reader.value("target_parameters")?.string != nil {
      throw PEFTError(
        .invalidConfiguration, "`target_parameters` must be a list of strings or None.")
    }
    targetParameters = try reader.strings("target_parameters") ?? []
    if let word = try reader.string("bias") {
      guard let kind = BiasTraining(rawValue: word) else {
        throw PEFTError(
          .invalidConfiguration, "Requested bias: \(word), is not implemented.",
          remedy: "'bias' is none, all or lora_only.")
      }
      bias = kind
    }
    trainableTokens = try TrainableTokens(reader.value("trainable_token_indices"))
    ensuresWeightTying = try reader.bool("ensure_weight_tying") ?? false
    guard let value = reader.value("layer_replication") else { return }
    for pair in value.array ?? [.null] {
      let bounds = pair.array?.compactMap(\.int) ?? []
      guard bounds.count == 2, pair.array?.count == 2, bounds[0] <= bounds[1] else {
        throw ConfigReader.mismatch("layer_replication", "a list of [start, end]", value)
      }
      layerReplication.append(bounds[0]..<bounds[1])
    }
  }

  private mutating func readOthers(_ reader: inout ConfigReader) throws(PEFTError) {
    if usesDoRA, reader.value("megatron_config") != nil {
      throw PEFTError(
        .unsupported, "DoRA does not support megatron_core, please set `use_dora=False`.")
    }
    for (key, standard, isRefused) in Self.otherKeys {
      if isRefused { try reader.refuse(key, unless: standard, false) }
      if !isRefused, let value = reader.value(key), value != standard { passive[key] = value }
    }
  }

  /// The members of the config file: all of peft's, in a fixed order, then the unknown ones.
  public var object: JSONObject {
    func names(_ list: [String]) -> JSONValue {
      list.isEmpty ? .null : .array(list.map { .string($0) })
    }
    var members: [(String, JSONValue)] = [
      ("peft_type", "LORA"),
      ("task_type", taskType.map { .string($0) } ?? .null),
      ("base_model_name_or_path", baseModel.map { .string($0) } ?? .null),
      ("inference_mode", .bool(isInference)),
      ("r", .int(rank)),
      ("lora_alpha", Self.number(alpha)),
      ("lora_dropout", .double(dropout)),
    ]
    members += targets.members
    if !enabledParts.isEmpty {
      members.append(("enable_lora", .array(enabledParts.map { .bool($0) })))
    }
    members += [
      ("rank_pattern", rankPattern.json), ("alpha_pattern", alphaPattern.json),
      ("use_rslora", .bool(usesRSLoRA)), ("use_dora", .bool(usesDoRA)),
      ("modules_to_save", names(modulesToSave)),
      ("bias", .string(bias.rawValue)), ("fan_in_fan_out", .bool(fanInFanOut)),
      ("target_parameters", names(targetParameters)), ("lora_bias", .bool(usesLoRABias)),
      ("trainable_token_indices", trainableTokens?.json ?? .null),
      (
        "layer_replication",
        layerReplication.isEmpty
          ? .null : .array(layerReplication.map { [.int($0.lowerBound), .int($0.upperBound)] })
      ),
      ("ensure_weight_tying", .bool(ensuresWeightTying)),
    ]
    members += Self.otherKeys.map { ($0.key, passive[$0.key] ?? $0.value) }
    members += initialization.members(besides: unknownKeys)
    if !detachesNorm { members.append(("dora_detach_norm", false)) }
    return JSONObject(members + unknownKeys.members.map { ($0.key, $0.value) })
  }

  /// The scaling of a module's update.
  ///
  /// - Parameters:
  ///   - path: The module's path, which patterns are matched against.
  ///   - rank: Its rank.
  package func scaling(_ path: String, rank: Int) throws(PEFTError) -> Double {
    try Self.scaling(alpha(path), rank: rank, isStabilized: usesRSLoRA)
  }

  /// alpha/r, or alpha/√r.
  static func scaling(_ alpha: Double, rank: Int, isStabilized: Bool) -> Double {
    alpha / (isStabilized ? Double(rank).squareRoot() : Double(rank))
  }

  /// The alpha at a module.
  func alpha(_ path: String) throws(PEFTError) -> Double {
    try alphaPattern.value(for: path, configKey: "alpha_pattern") ?? alpha
  }

  /// The rank at a module.
  package func rank(_ path: String) throws(PEFTError) -> Int {
    guard let value = try rankPattern.value(for: path, configKey: "rank_pattern") else {
      return rank
    }
    let rank = Int(exactly: value) ?? 0
    guard Self.ranks.contains(rank) else { throw Self.invalidRank(value) }
    return rank
  }

  /// Checks rank, dropout and alpha.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`, naming the key.
  public func validate() throws(PEFTError) { try validate(hasMagnitude: usesDoRA) }

  /// Checks the values, those of another method that are stored like LoRA's.
  ///
  /// - Parameter hasMagnitude: Whether the method has a norm that ``detachesNorm`` can be about.
  package func validate(hasMagnitude: Bool) throws(PEFTError) {
    if !Self.ranks.contains(rank) { throw Self.invalidRank(Double(rank)) }
    if !(0..<1).contains(dropout) {
      throw PEFTError(
        .invalidConfiguration,
        "'lora_dropout' is \(dropout), a number from 0 to below 1 was "
          + "expected")
    }
    try validateParts()
    if !detachesNorm, !hasMagnitude {
      throw PEFTError(
        .invalidConfiguration,
        "'dora_detach_norm' is false, but the adapter has no magnitude, whose norm it is about",
        remedy: "Remove the key, or use DoRA or EDoRA.")
    }
    if !alpha.isFinite {
      throw PEFTError(
        .invalidConfiguration, "'lora_alpha' is \(alpha), a finite number was expected")
    }
    try initialization.validate()
    if usesLoRABias, initialization != .standard, initialization != .random {
      throw PEFTError(
        .invalidConfiguration,
        "The argument lora_bias=True is only supported with init_lora_weights=True or False, got "
          + "init_lora_weights=\(initialization.json.string ?? initialization.json.text()) "
          + "instead.")
    }
    if usesLoRABias, usesDoRA {
      throw PEFTError(
        .invalidConfiguration,
        "The argument lora_bias=True is not supported for DoRA, please pass use_dora=False")
    }
    for (isSet, reason) in [
      (dropout != 0, "lora_dropout != 0."), (fanInFanOut, "fan_in_fan_out."),
      (usesLoRABias, "lora_bias=True."), (usesDoRA, "use_dora=True."),
      (!enabledParts.isEmpty, "enable_lora."),
    ] where isSet && !targetParameters.isEmpty {
      throw PEFTError(
        .invalidConfiguration, "lora.ParamWrapper does not work with \(reason)",
        remedy: "Remove 'target_parameters' or the other key.")
    }
  }

  /// What is odd about the settings, given the modules that were matched: patterns for none of them.
  public func remarks(matching paths: [String]) -> [String] {
    [("rank_pattern", rankPattern), ("alpha_pattern", alphaPattern)].compactMap { key, patterns in
      let unused = patterns.entries.map(\.key).filter { entry in
        let one = SuffixPatterns([.init(entry, 1)])
        return !paths.contains { ((try? one.value(for: $0, configKey: key)) ?? nil) != nil }
      }
      if unused.isEmpty { return nil }
      let list = unused.sorted().map { "'\($0.replacing("\\", with: "\\\\"))'" }
      return "The following \(key) keys did not match any targeted module and were ignored: "
        + "[\(list.joined(separator: ", "))]."
    }
  }

  /// Up to what no weight reaches; beyond it, sizes of factors would not be numbers any more.
  private static let ranks = 1...1 << 20

  private static func invalidRank(_ value: Double) -> PEFTError {
    if value > Double(ranks.upperBound) {
      return PEFTError(
        .invalidConfiguration,
        "`r` is \(number(value).text()), which is more than \(ranks.upperBound) and than any weight has"
      )
    }
    return PEFTError(
      .invalidConfiguration,
      "`r` should be a positive integer value but the value passed is \(number(value).text())")
  }

  private static func number(_ value: Double) -> JSONValue {
    Int(exactly: value).map { .int($0) } ?? .double(value)
  }
}
