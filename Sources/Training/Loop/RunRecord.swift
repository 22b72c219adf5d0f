import PEFTCore
import PEFTSupport

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// What identifies a run and decides its result; saved in the output folder and in every
/// checkpoint, and compared on resuming.
struct RunRecord {
  static let fileName = "training_config.json"
  /// The name in the output folder until the run has its result: an earlier run's adapter, which may
  /// still be there, has a record of its own.
  static let unfinishedName = "unfinished_run.json"

  /// Tells the checkpoints of this run from those of an earlier one in the same folder.
  var id: String
  /// The resolved settings.
  var settings: JSONObject
  /// Number of steps of the run.
  var totalSteps: Int
  /// Fingerprint of the tokenised training data.
  var dataFingerprint: String
  /// Number of training examples.
  var exampleCount: Int
  /// Number of threads, on which the order of sums depends.
  var threads: Int

  /// A new run's identity.
  static func newID() -> String {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    let number = UInt64(time.tv_sec) << 30 ^ UInt64(time.tv_nsec)
    return String(mix(number, UInt64(getpid())), radix: 16)
  }

  /// The members of the file.
  var object: JSONObject {
    JSONObject([
      ("run_id", .string(id)), ("total_steps", .int(totalSteps)),
      ("train_examples", .int(exampleCount)), ("train_data", .string(dataFingerprint)),
      ("threads", .int(threads)), ("settings", .object(settings)),
    ])
  }

  init(
    id: String, settings: JSONObject, totalSteps: Int, data: Dataset, threads: Int
  ) {
    self.id = id
    self.settings = settings
    self.totalSteps = totalSteps
    dataFingerprint = String(data.fingerprint, radix: 16)
    exampleCount = data.count
    self.threads = threads
  }

  /// Reads the record of the result in a folder that may have none.
  ///
  /// - Throws: ``PEFTError`` when it is malformed.
  init?(ifIn folder: String) throws(PEFTError) {
    let path = FileSystem.join(folder, Self.fileName)
    guard FileSystem.exists(path) else { return nil }
    try self.init(file: path)
  }

  /// Reads the record of the last run that wrote into an output folder; `nil` where none did.
  ///
  /// - Throws: ``PEFTError`` when it is malformed.
  init?(ofLastRunIn output: String) throws(PEFTError) {
    let path = FileSystem.join(output, Self.unfinishedName)
    if FileSystem.exists(path) { try self.init(file: path) } else { try self.init(ifIn: output) }
  }

  /// Reads the record in a folder.
  ///
  /// - Throws: ``PEFTError`` when it is missing or malformed.
  init(folder: String) throws(PEFTError) {
    let path = FileSystem.join(folder, Self.fileName)
    guard FileSystem.exists(path) else {
      throw PEFTError(
        .fileNotFound, "has no \(Self.fileName)", at: folder,
        remedy: "Training can be resumed from the checkpoint folders that 'peft train' writes.")
    }
    try self.init(file: path)
  }

  private init(file path: String) throws(PEFTError) {
    let value = try FileSystem.readJSON(path)
    guard let id = value["run_id"]?.string, let settings = value["settings"]?.object,
      let steps = value["total_steps"]?.int, let data = value["train_data"]?.string,
      let count = value["train_examples"]?.int
    else {
      throw PEFTError(.malformedFile, "is not the record of a training run", at: path)
    }
    self.id = id
    self.settings = settings
    totalSteps = steps
    dataFingerprint = data
    exampleCount = count
    threads = value["threads"]?.int ?? 0
  }

  /// The settings that the weights after a step depend on.
  private static let decisive = [
    "precision", "random_weights", "model_config", "seed", "shuffle",
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "gradient_checkpointing", "optim", "loraplus_lr_ratio",
    "loraplus_weight_decay", "loraplus_lr_embedding", "parameter_groups",
  ]

  /// Refuses to go on from a checkpoint with other settings, since the result would be that of
  /// neither.
  ///
  /// - Parameters:
  ///   - saved: The checkpoint's record.
  ///   - folder: The checkpoint, for messages.
  /// - Throws: ``PEFTError`` naming the first setting that differs.
  func check(against saved: RunRecord, folder: String) throws(PEFTError) {
    for key in Self.decisive {
      let (now, then) = (settings[key] ?? .null, saved.settings[key] ?? .null)
      if now != then { throw Self.differs(key, now, then, folder) }
    }
    for key in ["warmup_steps", "warmup_ratio"] {
      // Only one of the two is there.
      if settings[key] != saved.settings[key] {
        throw Self.differs(key, settings[key] ?? .null, saved.settings[key] ?? .null, folder)
      }
    }
    if dataFingerprint != saved.dataFingerprint {
      throw PEFTError(
        .invalidState,
        "'train_file' has \(exampleCount) examples that are not the \(saved.exampleCount) which "
          + "the checkpoint was trained on", at: folder,
        remedy: "Use the same data, tokenizer and 'max_length', or begin a new run.")
    }
    let isConstant: Bool
    switch settings["lr_scheduler_type"]?.string {
    case "constant": isConstant = true
    case "constant_with_warmup": isConstant = settings["warmup_ratio"] == nil
    default: isConstant = false
    }
    if totalSteps != saved.totalSteps, !isConstant {
      let key = (settings["max_steps"]?.int ?? -1) > 0 ? "max_steps" : "num_train_epochs"
      throw PEFTError(
        .invalidState,
        "'\(key)' makes the run \(totalSteps) steps long, with the checkpoint's settings it has "
          + "\(saved.totalSteps), and the learning rate depends on that", at: folder,
        remedy: "Use the checkpoint's value, or begin a new run with 'init_adapter'.")
    }
  }

  private static func differs(
    _ key: String, _ now: JSONValue, _ then: JSONValue, _ folder: String
  ) -> PEFTError {
    PEFTError(
      .invalidState,
      "'\(key)' is \(now.text(.spaced)), the checkpoint was made with \(then.text(.spaced))",
      at: folder, remedy: "Use the checkpoint's value, or begin a new run.")
  }
}
