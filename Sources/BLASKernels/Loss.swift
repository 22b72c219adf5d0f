import CKernels
import PEFTSupport

/// Softmax and cross-entropy over the rows of `[rows, columns]` matrices.
public enum Loss {
  /// y = softmax(scale x) in each row; a row of −∞ becomes zeros. y may be x.
  public static func softmax(
    rows: Int, columns: Int, _ x: Slice<Float>, scale: Float = 1, into y: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, x.count, y.count)
    Rows.split(rows, columns, heavy: true) { r in
      let at = r.lowerBound * columns
      pk_softmax(x.pointer + at, scale, y.pointer + at, r.count, columns)
    }
  }

  /// dX of softmax from its output y and dY: scale y ∘ (dY − Σ y dY). dX may be y or dY.
  public static func softmaxBackward(
    rows: Int, columns: Int, output y: Slice<Float>, _ dy: Slice<Float>, scale: Float = 1,
    into dx: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, y.count, dy.count, dx.count)
    Rows.split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_softmax_backward(
        y.pointer + at, dy.pointer + at, scale, dx.pointer + at, r.count, columns)
    }
  }

  /// log Σ eˣ of each row.
  public static func logSumExp(
    rows: Int, columns: Int, _ x: Slice<Float>, into y: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, x.count, column: y.count)
    Rows.split(rows, columns, heavy: true) { r in
      pk_log_sum_exp(x.pointer + r.lowerBound * columns, y.pointer + r.lowerBound, r.count, columns)
    }
  }

  /// The summed cross-entropy of logits against labels; divide by `validCount` for the mean.
  ///
  /// - Parameters:
  ///   - rows: The number of rows.
  ///   - columns: The number of classes.
  ///   - logits: `[rows, columns]`.
  ///   - labels: The right class of each row, or `ignored`.
  ///   - ignored: The label of rows that do not count.
  ///   - logSumExp: Receives log Σ eˣ of each row (0 for ignored rows), for the backward.
  /// - Returns: The sum over the rows that count, in double precision, and their number.
  /// - Throws: `PEFTError.invalidData` for a label that is no class.
  public static func crossEntropyForward(
    rows: Int, columns: Int, logits: Slice<Float>, labels: Slice<Int32>, ignored: Int32 = -100,
    logSumExp: MutableSlice<Float>
  ) throws(PEFTError) -> (sum: Double, validCount: Int) {
    Rows.check(rows, columns, logits.count, column: labels.count)
    Rows.check(rows, columns, column: logSumExp.count)
    var valid = 0
    let label = labels.pointer
    for row in 0..<rows where label[row] != ignored {
      guard label[row] >= 0, Int(label[row]) < columns else {
        throw PEFTError(
          .invalidData,
          "the label \(label[row]) in row \(row) is not a class in 0..<\(columns) nor \(ignored)")
      }
      valid += 1
    }
    Rows.split(rows, columns, heavy: true) { r in
      for row in r {
        if label[row] == ignored {
          logSumExp.pointer[row] = 0
        } else {
          pk_log_sum_exp(logits.pointer + row * columns, logSumExp.pointer + row, 1, columns)
        }
      }
    }
    var sum = 0.0
    for row in 0..<rows where label[row] != ignored {
      sum +=
        Double(logSumExp.pointer[row]) - Double(logits.pointer[row * columns + Int(label[row])])
    }
    return (sum, valid)
  }

  /// The gradient of the cross-entropy: scale (softmax(logits) − onehot(label)), 0 in ignored rows.
  ///
  /// - Parameters:
  ///   - rows: The number of rows.
  ///   - columns: The number of classes.
  ///   - logits: As in the forward.
  ///   - labels: As in the forward, and checked there.
  ///   - ignored: As in the forward.
  ///   - logSumExp: What the forward wrote.
  ///   - scale: The gradient of the loss over the number of valid rows.
  ///   - dLogits: May be the logits' memory.
  public static func crossEntropyBackward(
    rows: Int, columns: Int, logits: Slice<Float>, labels: Slice<Int32>, ignored: Int32 = -100,
    logSumExp: Slice<Float>, scale: Float, into dLogits: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, logits.count, dLogits.count, column: labels.count)
    Rows.check(rows, columns, column: logSumExp.count)
    Rows.split(rows, columns, heavy: true) { r in
      let at = r.lowerBound * columns
      pk_cross_entropy_backward(
        logits.pointer + at, labels.pointer + r.lowerBound, ignored,
        logSumExp.pointer + r.lowerBound, scale, dLogits.pointer + at, r.count, columns)
    }
  }
}
