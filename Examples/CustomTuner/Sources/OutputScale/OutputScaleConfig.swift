import PEFTCore
import PEFTSupport

/// The settings of an output-scale adapter.
public struct OutputScaleConfig: TunerConfig, Equatable {
  /// Multiplies the learnt scale, as `lora_alpha` does for LoRA; the key `strength`.
  public var strength: Double
  /// Whether the scales begin at zero, so that the adapter starts without effect; the key
  /// `init_scales`. Otherwise they begin at random.
  public var startsNeutral: Bool
  /// Which modules are adapted.
  public var targets: TargetSelection
  /// What the adapter is for.
  public var taskType: String?
  /// The base model's name or path.
  public var baseModel: String?
  /// Modules that are trained in full.
  public var modulesToSave: [String]
  /// Members of the file that belong to nothing here; they are written back.
  public var unknownKeys: JSONObject

  /// Creates settings.
  public init(
    strength: Double = 1, targets: TargetSelection = TargetSelection(),
    taskType: TaskType? = nil, startsNeutral: Bool = true
  ) {
    self.strength = strength
    self.startsNeutral = startsNeutral
    self.targets = targets
    self.taskType = taskType?.name
    baseModel = nil
    modulesToSave = []
    unknownKeys = JSONObject()
  }

  /// Reads the members of a config file.
  public init(_ object: JSONObject) throws(PEFTError) {
    var reader = ConfigReader(object)
    self.init()
    for key in ["peft_type", "inference_mode"] { _ = reader.value(key) }
    strength = try reader.double("strength") ?? 1
    startsNeutral = try reader.bool("init_scales") ?? true
    targets = try TargetSelection(&reader)
    taskType = try reader.string("task_type")
    baseModel = try reader.string("base_model_name_or_path")
    modulesToSave = try reader.strings("modules_to_save") ?? []
    unknownKeys = reader.rest
    try validate()
  }

  /// Refuses a strength that would make every scale useless.
  public func validate() throws(PEFTError) {
    guard strength.isFinite, strength != 0 else {
      throw PEFTError(
        .invalidConfiguration,
        "'strength' is \(strength), a finite number other than 0 was expected")
    }
  }

  /// The members of the config file.
  public var object: JSONObject {
    var members: [(String, JSONValue)] = [
      ("peft_type", .string(OutputScaleTuner.peftType)),
      ("task_type", taskType.map { .string($0) } ?? .null),
      ("base_model_name_or_path", baseModel.map { .string($0) } ?? .null),
      ("inference_mode", false),
      ("strength", .double(strength)),
      ("init_scales", .bool(startsNeutral)),
      ("modules_to_save", .array(modulesToSave.map { .string($0) })),
    ]
    members += targets.members
    return JSONObject(members + unknownKeys.members.map { ($0.key, $0.value) })
  }
}
