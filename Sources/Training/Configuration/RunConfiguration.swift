import NN
import PEFTCore
import PEFTSupport

/// A training run as a configuration file describes it: the model, the data, the method and how
/// to train.
public struct RunConfiguration: Sendable {
  /// `model`: the folder of the base model.
  public var model: String
  /// `task_type`, peft's name; found out from the data and the model unless given.
  public var taskType: String?
  /// `precision` of the base model's matrices.
  public var precision = WeightPrecision.float32
  /// `random_weights`: whether weights are drawn from the seed, so that config.json is enough.
  public var randomWeights = false
  /// `model_config`: members that replace those of config.json.
  public var modelConfig = JSONObject()
  /// The data.
  public var data = DataConfiguration()
  /// `method`, the tuner's ``Tuner/methodName``; unless given that of ``initialAdapter``, else LoRA.
  public var method: String?
  /// The settings of the method, under its own name.
  public var methodSettings = JSONObject()
  /// `init_adapter`: a folder whose adapter is trained further; its config replaces
  /// ``methodSettings``.
  public var initialAdapter: String?
  /// `initialization_batches`: how many of the first training batches an initialisation looks at that
  /// begins from data, such as EVA.
  public var initializationBatches = 32
  /// How to train.
  public var arguments: TrainingArguments

  /// Creates a configuration with defaults.
  public init(model: String, outputFolder: String) {
    self.model = model
    arguments = TrainingArguments(outputFolder: outputFolder)
  }

  /// The keys of all settings: of the model, the data, the training, and the names of the methods.
  public static func keys(_ registry: TunerRegistry) -> [String] {
    [
      "model", "model_name_or_path", "task_type", "precision", "random_weights", "model_config",
      "method", "init_adapter", "initialization_batches",
    ] + DataConfiguration.keys + TrainingArguments.keys + registry.methodNames
  }

  /// Reads a configuration.
  ///
  /// - Parameters:
  ///   - object: The members, with Hugging Face's names.
  ///   - registry: The methods that may be named.
  /// - Throws: ``PEFTError`` `invalidConfiguration` naming the key: an unknown one with the nearest
  ///   known one, a missing one, or one of the wrong type or range.
  public init(_ object: JSONObject, registry: TunerRegistry) throws(PEFTError) {
    var reader = SettingsReader(object)
    let methods = registry.methodNames
    let known = Self.keys(registry)
    for key in known { _ = reader.value(key) }
    try reader.refuseUnknown(known: known, hints: Self.hints(object, methods))

    let model = try reader.string("model")
    let alias = try reader.string("model_name_or_path")
    if model != nil, alias != nil {
      throw PEFTError(
        .invalidConfiguration, "'model' and 'model_name_or_path' mean the same",
        remedy: "Remove one of them.")
    }
    guard let model = model ?? alias else {
      throw PEFTError(
        .invalidConfiguration, "the key 'model' is missing",
        remedy: "It names the folder of the base model.")
    }
    self.model = model
    arguments = try TrainingArguments(&reader)
    data = try DataConfiguration(&reader)
    taskType = try reader.string("task_type")
    if let taskType { _ = try registry.taskType(taskType) }
    precision = try reader.choice("precision", WeightPrecision.self) ?? precision
    randomWeights = try reader.bool("random_weights") ?? randomWeights
    modelConfig = try reader.object("model_config") ?? modelConfig
    initialAdapter = try reader.string("init_adapter")
    initializationBatches =
      try reader.int("initialization_batches", atLeast: 1) ?? initializationBatches
    try readMethod(&reader, methods)
  }

  private mutating func readMethod(
    _ reader: inout SettingsReader, _ methods: [String]
  ) throws(PEFTError) {
    let blocks = methods.filter { reader.value($0) != nil }
    if let name = try reader.string("method")?.lowercased() {
      guard methods.contains(name) else {
        throw PEFTError(
          .invalidConfiguration, "'method' is '\(name)', which is not known",
          remedy: Spelling.suggestion(for: name, among: methods))
      }
      method = name
    } else if let only = blocks.first {
      method = only
    }
    guard let method else { return }
    if let other = blocks.first(where: { $0 != method }) {
      throw PEFTError(
        .invalidConfiguration,
        "'\(other)' holds settings of a method that is not used; 'method' "
          + "is \(method)", remedy: "Remove the key or change 'method'.")
    }
    methodSettings = try reader.object(method) ?? methodSettings
  }

  /// The method of a new adapter.
  private var newMethod: String { method ?? "lora" }

  /// The method that the settings lead to: `lora` with `use_dora` is DoRA.
  func resolvedMethod(_ registry: TunerRegistry) -> String {
    // What is wrong with them is said where they are read.
    guard let members = try? registry.members(methodSettings, ofMethod: newMethod) else {
      return newMethod
    }
    return (try? registry.methodName(of: members)) ?? newMethod
  }

  /// The config of a new adapter.
  ///
  /// - Parameters:
  ///   - registry: The methods.
  ///   - task: What it is for.
  /// - Throws: ``PEFTError`` naming the key, also for keys that the method does not know: in a run's
  ///   settings they are mistakes.
  public func adapterConfig(
    registry: TunerRegistry, task: TaskType
  ) throws(PEFTError) -> any TunerConfig {
    let method = newMethod
    if let own = methodSettings["task_type"]?.string, own != task.name {
      throw PEFTError(
        .invalidConfiguration,
        "'\(method).task_type' is \(own), but the task of the run is \(task.name)",
        remedy: "Set 'task_type' at the top level only.")
    }
    let config: any TunerConfig
    do throws(PEFTError) {
      var members = try registry.members(methodSettings, ofMethod: method)
      members["task_type"] = .string(task.name)
      config = try registry.config(members)
    } catch {
      throw error.located(at: "'\(method)'")
    }
    if let (key, remedy) = config.unknownKey() {
      throw PEFTError(
        .invalidConfiguration, "unknown key '\(method).\(key)'", remedy: remedy)
    }
    return config
  }

  /// What to do about keys of Hugging Face that have another name or place here.
  private static func hints(_ object: JSONObject, _ methods: [String]) -> [String: String] {
    let method = object["method"]?.string ?? methods.first { object[$0] != nil } ?? "lora"
    var hints = otherNames
    for key in ["r", "lora_alpha", "lora_dropout", "target_modules", "init_sigma"] {
      hints[key] = "It belongs under '\(method)'."
    }
    return hints
  }

  private static let otherNames: [String: String] = [
    "bf16": "Set 'precision: bfloat16'.",
    "fp16": "Set 'precision: bfloat16'; half precision is not supported.",
    "torch_dtype": "Set 'precision' to float32 or bfloat16.",
    "dtype": "Set 'precision' to float32 or bfloat16.",
    "report_to": "Remove it: metrics go to metrics.jsonl in 'output_dir'.",
    "do_train": "Remove it: 'peft train' trains.",
    "do_eval": "Set 'eval_strategy' and 'validation_file' instead.",
    "block_size": "Did you mean 'max_length'?",
    "max_seq_length": "Did you mean 'max_length'?",
    "overwrite_output_dir": "Remove it: a new run always begins afresh.",
  ]

  /// All settings under their keys, resolved, as a run saves them.
  public var object: JSONObject {
    var members: [(String, JSONValue)] = [
      ("model", .string(model)), ("task_type", taskType.map { .string($0) } ?? .null),
      ("precision", .string(precision.rawValue)), ("random_weights", .bool(randomWeights)),
      ("model_config", .object(modelConfig)),
    ]
    members += data.object.members.map { ($0.key, $0.value) }
    members += [
      ("method", .string(newMethod)), (newMethod, .object(methodSettings)),
      ("init_adapter", initialAdapter.map { .string($0) } ?? .null),
      ("initialization_batches", .int(initializationBatches)),
    ]
    members += arguments.object.members.map { ($0.key, $0.value) }
    return JSONObject(members)
  }
}

extension JSONObject {
  /// Sets a member by a dotted path, as `--set lora.r=16` does; objects on the way are created.
  ///
  /// - Throws: ``PEFTError`` when the path is malformed or leads through something that is no object.
  public mutating func set(_ path: String, to value: JSONValue) throws(PEFTError) {
    var names = path.split(separator: ".", omittingEmptySubsequences: false).map(String.init)
    guard !names.contains("") else {
      throw PEFTError(.invalidConfiguration, "'\(path)' is not the name of a key")
    }
    let first = names.removeFirst()
    guard !names.isEmpty else {
      self[first] = value
      return
    }
    var inner = JSONObject()
    if let present = self[first], !present.isNull {
      guard let object = present.object else {
        throw PEFTError(
          .invalidConfiguration,
          "'\(path)' cannot be set: '\(first)' is \(present.kindName), not a mapping")
      }
      inner = object
    }
    try inner.set(names.joined(separator: "."), to: value)
    self[first] = .object(inner)
  }
}
