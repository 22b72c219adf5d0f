import PEFTSupport

/// How a model is trained: the settings that Hugging Face calls `TrainingArguments`, apart from
/// the model and the data.
///
/// Keys in files are Hugging Face's. So are the defaults, but for these: evaluation and saving
/// happen once an epoch, evaluation batches have 32 examples, and progress is logged every ten
/// steps.
public struct TrainingArguments: Sendable, Equatable {
  /// When something happens besides the last step.
  public enum Strategy: String, Sendable, CaseIterable {
    /// Never.
    case no
    /// At the end of every epoch.
    case epoch
    /// Every so many steps.
    case steps
  }

  /// How long the learning rate rises.
  public enum Warmup: Sendable, Equatable {
    /// So many steps.
    case steps(Int)
    /// A part of all steps, rounded up.
    case ratio(Double)
  }

  /// Where a run goes on.
  public enum Resumption: Sendable, Equatable {
    /// At the beginning.
    case none
    /// At the newest checkpoint in the output folder, if there is one.
    case newest
    /// At a checkpoint folder.
    case checkpoint(String)
  }

  /// `output_dir`: where the adapter, checkpoints and metrics go.
  public var outputFolder: String
  /// `num_train_epochs`; may have a fraction.
  public var epochs = 3.0
  /// `max_steps`: number of optimiser steps instead of ``epochs``.
  public var maxSteps: Int?
  /// `per_device_train_batch_size`: sequences of a forward pass.
  public var trainBatchSize = 8
  /// `per_device_eval_batch_size`.
  public var evaluationBatchSize = 32
  /// `gradient_accumulation_steps`: forward passes of an optimiser step.
  public var accumulationSteps = 1
  /// `learning_rate`.
  public var learningRate = 5e-5
  /// `lr_scheduler_type`.
  public var schedule = LearningRateSchedule.Kind.linear
  /// `warmup_steps` or `warmup_ratio`; the schedule `constant` has none.
  public var warmup = Warmup.steps(0)
  /// `weight_decay`, decoupled; of all trained tensors but biases and norms, see
  /// ``makeOptimizer(for:)``.
  public var weightDecay = 0.0
  /// `adam_beta1`.
  public var beta1 = 0.9
  /// `adam_beta2`.
  public var beta2 = 0.999
  /// `adam_epsilon`; the optimiser's own unless given: 1e-8, for LoRA-FA 1e-6.
  public var epsilon: Double?
  /// `optim`.
  public var optimizer = OptimizerKind.adamW
  /// `loraplus_lr_ratio`, `loraplus_weight_decay` and `loraplus_lr_embedding`.
  public var loraPlus: LoRAPlus?
  /// `parameter_groups`: settings for some of the tensors.
  public var parameterGroups: [ParameterGroupRule] = []
  /// `max_grad_norm`; 0 does not clip.
  public var maxGradientNorm = 1.0
  /// `seed` of initial values, data order and dropout.
  public var seed = 42
  /// `shuffle`: whether the order of the examples is drawn anew for each epoch.
  public var shuffles = true
  /// `eval_strategy`.
  public var evaluationStrategy = Strategy.epoch
  /// `eval_steps`; ``loggingSteps`` unless given.
  public var evaluationSteps: Int?
  /// `save_strategy`.
  public var saveStrategy = Strategy.epoch
  /// `save_steps`.
  public var saveSteps = 500
  /// `save_total_limit`: how many checkpoints are kept, the best and the newest among them;
  /// `nil` keeps all.
  public var saveTotalLimit: Int?
  /// `load_best_model_at_end`: whether the result is the best checkpoint rather than the last.
  public var loadsBestAtEnd = false
  /// `metric_for_best_model`: "loss" or a metric of the task; the task's own unless given.
  public var bestMetric: String?
  /// `resume_from_checkpoint`.
  public var resumption = Resumption.none
  /// `logging_steps`: steps between lines where progress does not go to a terminal.
  public var loggingSteps = 10
  /// `gradient_checkpointing`: recompute blocks in the backward pass to save memory.
  public var recomputesBlocks = false
  /// `num_threads`; OMP_NUM_THREADS, else the processors of this process, unless given.
  public var threads: Int?

  /// Creates settings with the defaults.
  public init(outputFolder: String) { self.outputFolder = outputFolder }

  static let keys = [
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "shuffle", "eval_strategy",
    "eval_steps", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end",
    "metric_for_best_model", "resume_from_checkpoint", "logging_steps", "gradient_checkpointing",
    "num_threads", "optim", "loraplus_lr_ratio", "loraplus_weight_decay",
    "loraplus_lr_embedding", "parameter_groups",
  ]

  init(_ reader: inout SettingsReader) throws(PEFTError) {
    guard let folder = try reader.string("output_dir") else {
      throw PEFTError(.invalidConfiguration, "the key 'output_dir' is missing")
    }
    self.init(outputFolder: folder)
    try readLength(&reader)
    try readSchedule(&reader)
    try readOptimization(&reader)
    try readSaving(&reader)
    try validate()
  }

  private mutating func readLength(_ reader: inout SettingsReader) throws(PEFTError) {
    epochs = try reader.number("num_train_epochs", "above 0") { $0 > 0 } ?? epochs
    if let steps = try reader.int("max_steps", atLeast: -1) {
      if steps == 0 {
        throw PEFTError(
          .invalidConfiguration, "'max_steps' is 0, it must be positive, or -1 for no limit")
      }
      maxSteps = steps < 0 ? nil : steps
    }
    trainBatchSize =
      try reader.int("per_device_train_batch_size", atLeast: 1) ?? trainBatchSize
    evaluationBatchSize =
      try reader.int("per_device_eval_batch_size", atLeast: 1) ?? evaluationBatchSize
    accumulationSteps =
      try reader.int("gradient_accumulation_steps", atLeast: 1) ?? accumulationSteps
    // Up to here a number of JSON is the same in every reader.
    seed = try reader.int("seed", atLeast: 0, atMost: 1 << 53) ?? seed
    shuffles = try reader.bool("shuffle") ?? shuffles
    recomputesBlocks = try reader.bool("gradient_checkpointing") ?? recomputesBlocks
    threads = try reader.int("num_threads", atLeast: 1)
    loggingSteps = try reader.int("logging_steps", atLeast: 1) ?? loggingSteps
  }

  private mutating func readSchedule(_ reader: inout SettingsReader) throws(PEFTError) {
    learningRate = try reader.number("learning_rate", "0 or more") { $0 >= 0 } ?? learningRate
    schedule = try reader.choice("lr_scheduler_type", LearningRateSchedule.Kind.self) ?? schedule
    let ratio = try reader.number("warmup_ratio", "from 0 to 1") { (0...1).contains($0) }
    let largest = SettingsReader.largestCount
    let steps = try reader.number("warmup_steps", "from 0 to \(largest)") {
      (0...Double(largest)).contains($0)
    }
    if let steps, steps > 0 {
      // As in transformers: below 1 it is a ratio, and it goes before warmup_ratio.
      if steps >= 1, steps != steps.rounded() {
        throw PEFTError(
          .invalidConfiguration, "'warmup_steps' is \(steps), it must be a whole number")
      }
      warmup = steps < 1 ? .ratio(steps) : .steps(Int(steps))
    } else if let ratio {
      warmup = .ratio(ratio)
    }
  }

  /// What to say about a warm-up that has no effect.
  var warmupNotice: String? {
    guard schedule == .constant, warmup != .steps(0), warmup != .ratio(0) else { return nil }
    return "the warm-up has no effect with 'lr_scheduler_type: constant'; "
      + "'constant_with_warmup' has one"
  }

  /// What to say about evaluations where there is nothing to evaluate.
  var evaluationNotice: String? {
    guard evaluationSteps != nil || evaluationStrategy == .steps || bestMetric != nil else {
      return nil
    }
    return "settings of evaluations have no effect without 'validation_file'"
  }

  private mutating func readSaving(_ reader: inout SettingsReader) throws(PEFTError) {
    evaluationSteps = try reader.int("eval_steps", atLeast: 1)
    evaluationStrategy =
      try reader.choice("eval_strategy", Strategy.self)
      ?? (evaluationSteps == nil ? evaluationStrategy : .steps)
    let saveEvery = try reader.int("save_steps", atLeast: 1)
    saveStrategy =
      try reader.choice("save_strategy", Strategy.self)
      ?? (saveEvery == nil ? saveStrategy : .steps)
    saveSteps = saveEvery ?? saveSteps
    saveTotalLimit = try reader.int("save_total_limit", atLeast: 1)
    loadsBestAtEnd = try reader.bool("load_best_model_at_end") ?? loadsBestAtEnd
    bestMetric = try reader.string("metric_for_best_model").map { name in
      name.hasPrefix("eval_") ? String(name.dropFirst("eval_".count)) : name
    }
    switch reader.value("resume_from_checkpoint") {
    case nil, .bool(false)?: resumption = .none
    case .bool(true)?: resumption = .newest
    case .string(let path)? where !path.isEmpty: resumption = .checkpoint(path)
    case let value?:
      throw PEFTError(
        .invalidConfiguration,
        "'resume_from_checkpoint' is \(value.text()), true or a folder was expected")
    }
  }

  private func validate() throws(PEFTError) {
    guard loadsBestAtEnd else { return }
    if evaluationStrategy == .no || saveStrategy == .no {
      let key = evaluationStrategy == .no ? "eval_strategy" : "save_strategy"
      throw PEFTError(
        .invalidConfiguration,
        "'load_best_model_at_end' needs evaluations and checkpoints, but "
          + "'\(key)' is no", remedy: "Set it to epoch.")
    }
    let matches =
      evaluationStrategy == saveStrategy
      && (saveStrategy == .epoch || saveSteps % (evaluationSteps ?? loggingSteps) == 0)
    if !matches {
      throw PEFTError(
        .invalidConfiguration,
        "'load_best_model_at_end' needs an evaluation for every checkpoint",
        remedy: "Make 'save_strategy' and 'eval_strategy' equal, and 'save_steps' a multiple of "
          + "'eval_steps'.")
    }
  }
}

extension TrainingArguments {
  /// The settings under their keys, resolved.
  public var object: JSONObject {
    var members: [(String, JSONValue)] = [
      ("output_dir", .string(outputFolder)),
      ("num_train_epochs", .double(epochs)),
      ("max_steps", .int(maxSteps ?? -1)),
      ("per_device_train_batch_size", .int(trainBatchSize)),
      ("per_device_eval_batch_size", .int(evaluationBatchSize)),
      ("gradient_accumulation_steps", .int(accumulationSteps)),
      ("learning_rate", .double(learningRate)),
      ("lr_scheduler_type", .string(schedule.rawValue)),
    ]
    switch warmup {
    case .steps(let steps): members.append(("warmup_steps", .int(steps)))
    case .ratio(let ratio): members.append(("warmup_ratio", .double(ratio)))
    }
    members += [
      ("weight_decay", .double(weightDecay)),
      ("adam_beta1", .double(beta1)),
      ("adam_beta2", .double(beta2)),
      ("adam_epsilon", .double(optimizerSettings.epsilon)),
      ("optim", .string(optimizer.rawValue)),
      ("loraplus_lr_ratio", loraPlus.map { .double($0.ratio) } ?? .null),
      ("loraplus_weight_decay", loraPlus.map { .double($0.weightDecay) } ?? .null),
      ("loraplus_lr_embedding", loraPlus.map { .double($0.embeddingRate) } ?? .null),
      ("parameter_groups", .array(parameterGroups.map(\.json))),
      ("max_grad_norm", .double(maxGradientNorm)),
      ("seed", .int(seed)),
      ("shuffle", .bool(shuffles)),
      ("eval_strategy", .string(evaluationStrategy.rawValue)),
      ("eval_steps", evaluationSteps.map { .int($0) } ?? .null),
      ("save_strategy", .string(saveStrategy.rawValue)),
      ("save_steps", .int(saveSteps)),
      ("save_total_limit", saveTotalLimit.map { .int($0) } ?? .null),
      ("load_best_model_at_end", .bool(loadsBestAtEnd)),
      ("metric_for_best_model", bestMetric.map { .string($0) } ?? .null),
      ("logging_steps", .int(loggingSteps)),
      ("gradient_checkpointing", .bool(recomputesBlocks)),
      ("num_threads", threads.map { .int($0) } ?? .null),
    ]
    return JSONObject(members)
  }
}
