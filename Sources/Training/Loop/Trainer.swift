import BLASKernels
import NN
import PEFTCore
import PEFTSupport
import Tensors

/// Trains the active adapters of a model.
///
/// A run is a function of its inputs: data order and dropout come from the seed and the number of
/// the step, so that a run which is resumed from a checkpoint ends with the weights, to the bit,
/// of one that was never interrupted (on one machine, with the same number of threads).
public final class Trainer {
  /// The model; the parameters of its active adapters are trained.
  public let model: PeftModel
  /// The settings.
  public let arguments: TrainingArguments
  /// The length of the run.
  public let plan: TrainingPlan
  let objective: any Objective
  let train: Dataset
  let validation: Dataset?
  let test: Dataset?
  let artifacts: RunArtifacts
  let metric: String
  let optimizer: any Optimizer
  let schedule: LearningRateSchedule
  let checkpoints: CheckpointFolder
  var state = TrainerState()
  var record: RunRecord
  /// The log of a run that is resumed, which may stand in another output folder.
  var formerLog: String?
  private var order: (epoch: Int, places: [Int])?

  /// Creates a trainer.
  ///
  /// - Parameters:
  ///   - model: A model with an active adapter.
  ///   - objective: What to minimise.
  ///   - arguments: The settings.
  ///   - train: The examples to learn from.
  ///   - validation: The examples to evaluate during training.
  ///   - test: The examples to evaluate the result on.
  ///   - metric: "loss", or a metric of the objective: what makes a checkpoint the best, unless the
  ///     settings name another. One that the objective does not have counts as "loss".
  ///   - artifacts: What is saved beside the adapter.
  ///   - optimizer: What changes the weights; the one that the settings name unless given.
  /// - Throws: ``PEFTError``: no data, nothing to train, settings that contradict the data.
  public init(
    _ model: PeftModel, objective: any Objective, arguments: TrainingArguments, train: Dataset,
    validation: Dataset? = nil, test: Dataset? = nil, metric: String = "loss",
    artifacts: RunArtifacts = RunArtifacts(), optimizer: (any Optimizer)? = nil
  ) throws(PEFTError) {
    guard train.count > 0 else {
      throw PEFTError(.invalidData, "the training data is empty", remedy: "Check 'train_file'.")
    }
    guard !model.trainableTensors.isEmpty else {
      throw PEFTError(.invalidState, "no parameter is trainable", remedy: "Activate an adapter.")
    }
    if let threads = arguments.threads { Parallel.threadCount = threads }
    self.model = model
    self.objective = objective
    self.arguments = arguments
    self.train = train
    self.validation = validation
    self.test = test
    self.artifacts = artifacts
    let metrics = ["loss"] + objective.metricNames
    self.metric = arguments.bestMetric ?? (metrics.contains(metric) ? metric : "loss")
    plan = TrainingPlan(arguments, exampleCount: train.count)
    if let optimizer {
      self.optimizer = optimizer
    } else {
      self.optimizer = try arguments.makeOptimizer(for: model)
    }
    schedule = LearningRateSchedule(
      arguments.schedule, baseRate: arguments.learningRate, warmupSteps: plan.warmupSteps,
      totalSteps: plan.totalSteps)
    checkpoints = CheckpointFolder(output: arguments.outputFolder)
    record = RunRecord(
      id: RunRecord.newID(), settings: artifacts.settings ?? arguments.object,
      totalSteps: plan.totalSteps, data: train, threads: Parallel.threadCount)
    if arguments.loadsBestAtEnd, validation == nil {
      throw PEFTError(
        .invalidConfiguration, "'load_best_model_at_end' needs data to evaluate",
        remedy: "Name it with 'validation_file'.")
    }
    if !metrics.contains(self.metric) {
      throw PEFTError(
        .invalidConfiguration,
        "'metric_for_best_model' is \(self.metric), which this task does not have",
        remedy: "Use \(metrics.joined(separator: ", ")).")
    }
  }

  /// Trains to the end, or until asked to stop.
  ///
  /// Writes the output folder: checkpoints, `metrics.jsonl`, and at the end the adapter.
  ///
  /// - Parameters:
  ///   - observe: Told what happens.
  ///   - shouldStop: Asked after every step; when true, a checkpoint is saved and the run ends.
  /// - Throws: ``PEFTError``: a checkpoint that does not fit, a folder that cannot be written, a
  ///   loss that is not finite; and what `observe` throws.
  public func run(
    observe: (TrainingEvent) throws -> Void = { _ in }, shouldStop: () -> Bool = { false }
  ) throws -> TrainingSummary {
    let begin = Clock.seconds
    try resume(observe)
    let start = state.step
    try prepareOutput()
    let log = try MetricsLog(
      FileSystem.join(arguments.outputFolder, MetricsLog.fileName), goingOnAt: start,
      after: formerLog)
    try observe(.started(plan, resumedAt: start))
    var summary = TrainingSummary(
      steps: start, epochs: 0, loss: 0, seconds: 0, trainingSeconds: 0, tokens: 0)
    while state.step < plan.totalSteps {
      let report = try step()
      summary.trainingSeconds += report.seconds
      summary.tokens += report.tokens
      try log.append(report.members)
      if report.step % arguments.loggingSteps == 0 || report.step == plan.totalSteps {
        state.logHistory.append(.object(JSONObject(report.historyMembers)))
      }
      try observe(.step(report))
      if validation != nil, isDue(arguments.evaluationStrategy, every: evaluationSteps) {
        summary.validation = try evaluate(log, observe)
      }
      summary.isInterrupted = shouldStop() && state.step < plan.totalSteps
      // The best is kept whenever it comes, also between the steps that are saved anyway.
      let isBest = arguments.loadsBestAtEnd && state.bestStep == state.step
      if summary.isInterrupted || isBest
        || isDue(arguments.saveStrategy, every: arguments.saveSteps)
      {
        try save(observe)
      }
      if summary.isInterrupted { break }
    }
    if !summary.isInterrupted { try finish(&summary, log, observe) }
    summary.steps = state.step
    summary.epochs = plan.epochs(after: state.step)
    summary.loss = state.lossSum / Double(max(state.step, 1))
    summary.seconds = Clock.seconds - begin
    if let value = state.bestMetric, let step = state.bestStep {
      summary.best = (metric, value, step)
    }
    return summary
  }

  // MARK: A step

  private func step() throws -> StepReport {
    let begin = Clock.seconds
    let number = state.step
    let batches = plan.batches(of: number).map { entry in
      (entry.number, Batch(examples(entry.places, epoch: plan.epoch(of: number))))
    }
    let count = batches.reduce(0) { $0 + objective.labelCount($1.1) }
    var gradients = Gradients()
    var loss = 0.0
    var tokens = 0
    for (microStep, batch) in batches {
      var context = ForwardContext(batch.tokens.layout)
      context.dropoutSeed = mix(UInt64(arguments.seed), UInt64(microStep))
      context.recomputesBlocks = arguments.recomputesBlocks
      tokens += batch.tokens.layout.rows
      guard let part = try objective.loss(batch, context, count: count) else { continue }
      loss += Double(part.item)
      gradients.add(part.backward())
    }
    let norm = optimizer.norm(of: gradients)
    guard loss.isFinite, norm.isFinite else { throw diverged(number + 1, loss, norm) }
    optimizer.update(
      gradients, rateFactor: schedule.factor(at: number),
      gradientScale: gradientClippingFactor(norm: norm, limit: arguments.maxGradientNorm))
    state.step += 1
    state.lossSum += loss
    state.tokens += tokens
    return StepReport(
      step: state.step, epoch: plan.epochs(after: state.step), loss: loss,
      learningRate: schedule.rate(at: number),
      gradientNorm: norm, tokens: tokens, seconds: Clock.seconds - begin)
  }

  private func examples(_ places: Range<Int>, epoch: Int) -> [Example] {
    if order?.epoch != epoch {
      let permutation = DataOrder.permutation(
        train.count, seed: UInt64(arguments.seed), epoch: epoch, shuffles: arguments.shuffles)
      order = (epoch, permutation)
    }
    return order!.places[places].map { train.examples[$0] }
  }

  private func diverged(_ step: Int, _ loss: Double, _ norm: Double) -> PEFTError {
    let what = loss.isFinite ? "gradient's norm is \(norm)" : "loss is \(loss)"
    return PEFTError(
      .numericalFailure, "training diverged: the \(what) at step \(step)",
      remedy: "Lower 'learning_rate', or clip with 'max_grad_norm'.")
  }

  // MARK: When

  private var evaluationSteps: Int { arguments.evaluationSteps ?? arguments.loggingSteps }

  /// Whether something with a strategy happens after the step that was just done; the last step
  /// always counts.
  private func isDue(_ strategy: TrainingArguments.Strategy, every steps: Int) -> Bool {
    let isLast = state.step == plan.totalSteps
    switch strategy {
    case .no: return false
    case .epoch: return isLast || state.step % plan.updatesPerEpoch == 0
    case .steps: return isLast || state.step % steps == 0
    }
  }
}

extension StepReport {
  /// The entry in `metrics.jsonl`.
  var members: [(String, JSONValue)] {
    [
      ("step", .int(step)), ("epoch", .double(epoch)), ("loss", .double(loss)),
      ("learning_rate", .double(learningRate)), ("grad_norm", .double(gradientNorm)),
      ("tokens", .int(tokens)), ("tokens_per_second", .double(tokensPerSecond)),
    ]
  }

  /// The entry in the log history, without what differs from run to run.
  var historyMembers: [(String, JSONValue)] {
    [
      ("epoch", .double(epoch)), ("grad_norm", .double(gradientNorm)),
      ("learning_rate", .double(learningRate)), ("loss", .double(loss)), ("step", .int(step)),
    ]
  }
}
