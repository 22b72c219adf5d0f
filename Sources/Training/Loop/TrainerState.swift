import PEFTSupport

/// Where a run stands; `trainer_state.json` with Hugging Face's keys.
struct TrainerState {
  static let fileName = "trainer_state.json"

  /// Optimiser steps done.
  var step = 0
  /// The best value of the metric so far.
  var bestMetric: Double?
  /// The step of it.
  var bestStep: Int?
  /// The checkpoint of that step, if there is one.
  var bestFolder: String?
  /// Sum of all steps' losses.
  var lossSum = 0.0
  /// Tokens of all steps.
  var tokens = 0
  /// Logged steps and evaluations.
  var logHistory: [JSONValue] = []

  init() {}

  /// Reads the state in a checkpoint.
  ///
  /// - Throws: ``PEFTError`` when it is missing or malformed.
  init(folder: String) throws(PEFTError) {
    let path = FileSystem.join(folder, Self.fileName)
    let value = try FileSystem.readJSON(path)
    guard let step = value["global_step"]?.int, step >= 0 else {
      throw PEFTError(.malformedFile, "has no 'global_step'", at: path)
    }
    self.step = step
    bestMetric = value["best_metric"]?.double
    bestStep = value["best_global_step"]?.int
    bestFolder = value["best_model_checkpoint"]?.string
    lossSum = value["train_loss_sum"]?.double ?? 0
    tokens = value["num_input_tokens_seen"]?.int ?? 0
    logHistory = value["log_history"]?.array ?? []
  }

  /// The members of the file.
  func object(_ plan: TrainingPlan, _ arguments: TrainingArguments) -> JSONObject {
    var object = JSONObject()
    object["best_global_step"] = bestStep.map { .int($0) } ?? .null
    object["best_metric"] = bestMetric.map { .double($0) } ?? .null
    object["best_model_checkpoint"] = bestFolder.map { .string($0) } ?? .null
    object["epoch"] = .double(plan.epochs(after: step))
    object["eval_steps"] = .int(arguments.evaluationSteps ?? arguments.loggingSteps)
    object["global_step"] = .int(step)
    object["is_hyper_param_search"] = false
    object["is_local_process_zero"] = true
    object["is_world_process_zero"] = true
    object["log_history"] = .array(logHistory)
    object["logging_steps"] = .int(arguments.loggingSteps)
    object["max_steps"] = .int(plan.totalSteps)
    object["num_input_tokens_seen"] = .int(tokens)
    object["num_train_epochs"] = .int(plan.epochCount)
    object["save_steps"] = .int(arguments.saveSteps)
    object["stateful_callbacks"] = .object(JSONObject())
    object["total_flos"] = 0.0
    object["train_batch_size"] = .int(arguments.trainBatchSize)
    object["train_loss_sum"] = .double(lossSum)
    object["trial_name"] = .null
    object["trial_params"] = .null
    return object
  }
}
