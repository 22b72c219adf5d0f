import BLASKernels
import PEFTSupport
import Synchronization

/// The label that losses skip, as in PyTorch.
public let ignoredLabel: Int32 = -100

/// Mean cross-entropy over rows of logits whose label is not ``ignoredLabel``.
///
/// The mean is added up in double precision. The backward pass writes the gradient over the
/// logits' memory where nobody else holds it: for a large vocabulary they are the largest tensor
/// of a step.
///
/// - Parameters:
///   - logits: `[n, classes]`.
///   - labels: `n` class indices.
///   - count: Divisor of the sum instead of the number of counted labels; gradient accumulation
///     over unequal batches needs it.
/// - Returns: A scalar; NaN when no label counts, as in PyTorch.
/// - Throws: ``PEFTError`` `invalidData` for a label that is no class.
public func crossEntropy(
  _ logits: Tensor, labels: [Int32], count: Int? = nil
) throws(PEFTError) -> Tensor {
  let (rows, columns) = (logits.rows, logits.columns)
  precondition(labels.count == rows, "\(labels.count) labels for logits \(logits.shape)")
  var logSumExp = Tensor(uninitialized: [rows])
  let values = logits.detached
  let classes = Slice(labels)
  let (sum, valid) = try logSumExp.withMutableSlice { (lse) throws(PEFTError) in
    try Loss.crossEntropyForward(
      rows: rows, columns: columns, logits: values.slice, labels: classes, ignored: ignoredLabel,
      logSumExp: lse)
  }
  let divisor = Double(count ?? valid)
  let lse = logSumExp
  let saved = TakeableTensor(values)
  return Tensor(Float(sum / divisor)).recorded(from: [logits]) { gradient, sink in
    let scale = Float(Double(gradient.item) / divisor)
    var values = saved.take()
    values.withMutableSlice {
      Loss.crossEntropyBackward(
        rows: rows, columns: columns, logits: $0.readOnly, labels: classes,
        ignored: ignoredLabel, logSumExp: lse.slice, scale: scale, into: $0)
    }
    sink.add(values, to: 0)
  }
}

/// A saved tensor that the backward pass takes out, to write over its memory.
private final class TakeableTensor: Sendable {
  private let tensor: Mutex<Tensor?>

  init(_ tensor: Tensor) { self.tensor = Mutex(tensor) }

  func take() -> Tensor {
    tensor.withLock { $0.take() ?? Tensor.zeros([0]) }
  }
}
