import PEFTSupport

/// How many steps a run has and where its epochs end, counted as Hugging Face's trainer counts.
public struct TrainingPlan: Sendable, Equatable {
  /// Forward passes of an epoch; the last one may be smaller.
  public let batchesPerEpoch: Int
  /// Optimiser steps of an epoch; the last one may have fewer forward passes.
  public let updatesPerEpoch: Int
  /// Optimiser steps of the run.
  public let totalSteps: Int
  /// Warm-up steps.
  public let warmupSteps: Int
  private let accumulationSteps: Int
  private let batchSize: Int
  private let exampleCount: Int

  /// Creates the plan of a run over so many examples.
  public init(_ arguments: TrainingArguments, exampleCount: Int) {
    precondition(exampleCount > 0)
    self.exampleCount = exampleCount
    batchSize = arguments.trainBatchSize
    accumulationSteps = arguments.accumulationSteps
    batchesPerEpoch = (exampleCount + batchSize - 1) / batchSize
    updatesPerEpoch = (batchesPerEpoch + accumulationSteps - 1) / accumulationSteps
    // Clamped, so that no number of epochs overflows.
    let steps = (arguments.epochs * Double(updatesPerEpoch)).rounded(.up)
    totalSteps = arguments.maxSteps ?? Int(min(max(steps, 1), 1e15))
    warmupSteps = LearningRateSchedule.warmupSteps(arguments.warmup, totalSteps: totalSteps)
  }

  /// The epoch, from 0, of a step, from 0.
  public func epoch(of step: Int) -> Int { step / updatesPerEpoch }

  /// How many epochs are done after so many steps, with the fraction.
  public func epochs(after steps: Int) -> Double {
    let batches = min(steps % updatesPerEpoch * accumulationSteps, batchesPerEpoch)
    return Double(steps / updatesPerEpoch) + Double(batches) / Double(batchesPerEpoch)
  }

  /// The number of epochs begun by the end of the run.
  public var epochCount: Int { (totalSteps + updatesPerEpoch - 1) / updatesPerEpoch }

  /// The forward passes of a step: for each its number within the run, from which dropout is
  /// seeded, and the places of its examples in the epoch's order.
  public func batches(of step: Int) -> [(number: Int, places: Range<Int>)] {
    let first = step % updatesPerEpoch * accumulationSteps
    return (first..<min(first + accumulationSteps, batchesPerEpoch)).map { index in
      (
        epoch(of: step) * batchesPerEpoch + index,
        index * batchSize..<min((index + 1) * batchSize, exampleCount)
      )
    }
  }
}
