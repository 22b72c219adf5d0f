/// What happens during a run, for progress displays.
public enum TrainingEvent: Sendable {
  /// The run begins; the number of steps that an earlier run had done.
  case started(TrainingPlan, resumedAt: Int)
  /// A step is done.
  case step(StepReport)
  /// An evaluation has done so many examples.
  case evaluating(done: Int, total: Int)
  /// An evaluation is done; whether it is the best so far.
  case evaluated(EvaluationResult, name: String, epoch: Double, isBest: Bool)
  /// A checkpoint is complete.
  case saved(path: String)
  /// Something that a user should know.
  case notice(String)
}

/// One optimiser step.
public struct StepReport: Sendable, Equatable {
  /// The step, from 1.
  public var step: Int
  /// Epochs done, with the fraction.
  public var epoch: Double
  /// Mean loss of a label in the step, before the update.
  public var loss: Double
  /// The rate of the update.
  public var learningRate: Double
  /// 2-norm of the gradient before clipping.
  public var gradientNorm: Double
  /// Tokens of the step.
  public var tokens: Int
  /// Time taken.
  public var seconds: Double

  /// Tokens a second.
  public var tokensPerSecond: Double { seconds > 0 ? Double(tokens) / seconds : 0 }
}

/// What came of a run.
public struct TrainingSummary: Sendable {
  /// Optimiser steps done, those before resuming included.
  public var steps: Int
  /// Epochs done.
  public var epochs: Double
  /// Mean of all steps' losses.
  public var loss: Double
  /// Time of this run, evaluations and saving included.
  public var seconds: Double
  /// Time of the steps of this run.
  public var trainingSeconds: Double
  /// Tokens that the steps of this run went over.
  public var tokens: Int
  /// The last evaluation during training.
  public var validation: EvaluationResult?
  /// The evaluation of the result on the test data.
  public var test: EvaluationResult?
  /// The best value of the metric, and the step of it.
  public var best: (metric: String, value: Double, step: Int)?
  /// The checkpoint that the result was taken from, when it is not the last step.
  public var loadedBest: String?
  /// Whether the run was asked to stop before its end; it can be resumed.
  public var isInterrupted = false
}
