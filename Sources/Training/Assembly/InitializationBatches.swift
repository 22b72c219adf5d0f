import NN
import PEFTCore
import PEFTSupport
import Tensors

extension Dataset {
  /// The batches that a run begins with, in its order and of its size, for initial values that depend on
  /// data.
  ///
  /// - Parameters:
  ///   - count: Most batches; an epoch at most.
  ///   - arguments: How the run trains.
  ///   - objective: What it minimises.
  public func calibration(
    batches count: Int, _ arguments: TrainingArguments, _ objective: any Objective
  ) -> Calibration {
    let order = DataOrder.permutation(
      self.count, seed: UInt64(arguments.seed), epoch: 0, shuffles: arguments.shuffles)
    let size = arguments.trainBatchSize
    let starts = stride(from: 0, to: self.count, by: size).prefix(count)
    let batches = starts.lazy.map { start in
      Batch(order[start..<min(start + size, order.count)].map { examples[$0] })
    }
    return Calibration(
      batches,
      // Labels of tokens say which rows count; those of sequences belong to no row.
      labels: { $0.labels.count == $0.tokens.layout.rows ? $0.labels : nil }
    ) { (batch, observer) throws(PEFTError) in
      var context = ForwardContext(batch.tokens.layout)
      context.observer = observer
      return try objective.loss(batch, context, count: objective.labelCount(batch))
    }
  }
}
