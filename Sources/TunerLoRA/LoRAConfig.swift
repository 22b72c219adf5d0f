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

  /// The keys that a config file or a run may have; others are kept but not understood.
  public static let knownKeys: [String] =
    [
      "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha",
      "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
      "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "bias", "fan_in_fan_out",
      "lora_bias", "use_dora", "enable_lora",
    ] + Initialization.keys

  /// Reads the members of a config file.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` or `unsupported`, naming the key.
  public init(_ object: JSONObject) throws(PEFTError) {
    var reader = ConfigReader(object)
    _ = reader.value("peft_type")
    _ = reader.value("inference_mode")
    self.init()
    taskType = try reader.string("task_type")
    baseModel = try reader.string("base_model_name_or_path")
    rank = try reader.int("r") ?? 8
    alpha = try reader.double("lora_alpha") ?? 8
    dropout = try reader.double("lora_dropout") ?? 0
    targets = try TargetSelection(&reader)
    rankPattern = try Self.patterns("rank_pattern", &reader)
    alphaPattern = try Self.patterns("alpha_pattern", &reader)
    usesRSLoRA = try reader.bool("use_rslora") ?? false
    usesDoRA = try reader.bool("use_dora") ?? false
    detachesNorm = try reader.bool("dora_detach_norm") ?? true
    usesLoRABias = try reader.bool("lora_bias") ?? false
    // peft of old wrote the key with null; it is then kept as any other.
    if object["enable_lora"]?.isNull == false {
      enabledParts = try Self.readParts(reader.value("enable_lora"))
    }
    modulesToSave = try reader.strings("modules_to_save") ?? []
    initialization = try Initialization(&reader)
    // A layer finds its own orientation; the key only says how GPT-2 stores its weights.
    _ = try reader.bool("fan_in_fan_out")
    try Self.refuseUnsupported(&reader)
    unknownKeys = reader.rest
    try validate()
  }

  /// The members of the config file.
  public var object: JSONObject {
    var members: [(String, JSONValue)] = [
      ("peft_type", "LORA"),
      ("task_type", taskType.map { .string($0) } ?? .null),
      ("base_model_name_or_path", baseModel.map { .string($0) } ?? .null),
      ("inference_mode", false),
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
      ("lora_bias", .bool(usesLoRABias)),
      (
        "modules_to_save",
        modulesToSave.isEmpty ? .null : .array(modulesToSave.map { .string($0) })
      ),
      ("bias", "none"), ("fan_in_fan_out", false),
    ]
    if !detachesNorm { members.append(("dora_detach_norm", false)) }
    members += initialization.members(besides: unknownKeys)
    return JSONObject(members + unknownKeys.members.map { ($0.key, $0.value) })
  }

  /// The scaling of a module's update.
  ///
  /// - Parameters:
  ///   - path: The module's path, which patterns are matched against.
  ///   - rank: Its rank.
  package func scaling(_ path: String, rank: Int) throws(PEFTError) -> Double {
    let alpha = try alpha(path)
    return usesRSLoRA ? alpha / Double(rank).squareRoot() : alpha / Double(rank)
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
    guard rank > 0 else { throw Self.invalidRank(value) }
    return rank
  }

  /// Checks rank, dropout and alpha.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`, naming the key.
  public func validate() throws(PEFTError) {
    if rank <= 0 { throw Self.invalidRank(Double(rank)) }
    if !(0..<1).contains(dropout) {
      throw PEFTError(
        .invalidConfiguration,
        "'lora_dropout' is \(dropout), a number from 0 to below 1 was "
          + "expected")
    }
    try validateParts()
    if !alpha.isFinite {
      throw PEFTError(
        .invalidConfiguration, "'lora_alpha' is \(alpha), a finite number was expected")
    }
    try initialization.validate()
  }

  private static func invalidRank(_ value: Double) -> PEFTError {
    PEFTError(
      .invalidConfiguration,
      "`r` should be a positive integer value but the value passed is \(number(value).text())")
  }

  private static func number(_ value: Double) -> JSONValue {
    Int(exactly: value).map { .int($0) } ?? .double(value)
  }

  private static func patterns(
    _ key: String, _ reader: inout ConfigReader
  ) throws(PEFTError) -> SuffixPatterns {
    SuffixPatterns((try reader.numbers(key) ?? []).map { .init($0.key, $0.value) })
  }

  private static func refuseUnsupported(_ reader: inout ConfigReader) throws(PEFTError) {
    try reader.refuse("bias", unless: "none")
    for key in ["use_qalora", "use_bdlora", "ensure_weight_tying"] {
      try reader.refuse(key, unless: false)
    }
    for key in [
      "layer_replication", "trainable_token_indices", "target_parameters",
      "alora_invocation_tokens", "arrow_config", "kasa_config", "megatron_config",
      "monteclora_config", "velora_config",
    ] {
      try reader.refuse(key)
    }
    // These have a meaning only beside one of the keys above; peft writes them always.
    for key in ["megatron_core", "qalora_group_size", "auto_mapping", "peft_version", "revision"] {
      _ = reader.value(key)
    }
  }
}
