import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Computes loss and metrics of a model on a data set.
public struct Evaluator {
  private let objective: any Objective

  /// Creates an evaluator.
  public init(_ objective: any Objective) { self.objective = objective }

  /// Evaluates, dropout off and without gradients.
  ///
  /// - Parameters:
  ///   - data: The examples.
  ///   - batchSize: Sequences of a forward pass.
  ///   - progress: Called with the number of examples done.
  /// - Throws: What `progress` throws, and ``PEFTError`` when no label counts.
  public func evaluate(
    _ data: Dataset, batchSize: Int, progress: (Int) throws -> Void = { _ in }
  ) throws -> EvaluationResult {
    let start = Clock.seconds
    var sums = EvaluationSums()
    try withoutGradients {
      // No more than there are, so that no sum overflows.
      let size = min(batchSize, data.count)
      for first in stride(from: 0, to: data.count, by: max(size, 1)) {
        let end = min(first + size, data.count)
        let batch = Batch(data.examples[first..<end])
        try objective.evaluate(batch, ForwardContext(batch.tokens.layout), into: &sums)
        try progress(end)
      }
    }
    guard sums.count > 0 else {
      throw PEFTError(.invalidData, "the data to evaluate holds no label that counts")
    }
    return EvaluationResult(
      loss: sums.loss / Double(sums.count), metrics: objective.metrics(of: sums),
      examples: data.count, seconds: Clock.seconds - start)
  }
}

/// Time that only runs forward.
enum Clock {
  /// Seconds since some fixed moment.
  static var seconds: Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
  }
}
