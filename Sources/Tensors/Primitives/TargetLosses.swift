#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Mean squared error against targets: the loss of a regression head.
///
/// - Parameters:
///   - predictions: Any shape.
///   - targets: As many numbers.
///   - count: Divisor of the sum instead of the number of targets; gradient accumulation over
///     unequal batches needs it.
public func meanSquaredError(
  _ predictions: Tensor, targets: [Float], count: Int? = nil
) -> Tensor {
  elementwiseLoss(predictions, targets, count) { prediction, target in
    let difference = prediction - target
    return (difference * difference, 2 * difference)
  }
}

/// Mean binary cross-entropy of logits against probabilities: the loss of labels that exclude each
/// other not.
///
/// max(x, 0) − x·t + log(1 + exp(−|x|)), as `BCEWithLogitsLoss` of torch.
///
/// - Parameters:
///   - logits: Any shape.
///   - targets: As many probabilities, 0 or 1 as a rule.
///   - count: Divisor of the sum instead of the number of targets.
public func binaryCrossEntropy(_ logits: Tensor, targets: [Float], count: Int? = nil) -> Tensor {
  elementwiseLoss(logits, targets, count) { x, target in
    let small = exp(-abs(x))
    let sigmoid = x >= 0 ? 1 / (1 + small) : small / (1 + small)
    return (max(x, 0) - x * target + log1p(small), sigmoid - target)
  }
}

/// A mean over elements of a function of prediction and target, with its derivative.
private func elementwiseLoss(
  _ predictions: Tensor, _ targets: [Float], _ count: Int?,
  _ function: (_ prediction: Double, _ target: Double) -> (loss: Double, slope: Double)
) -> Tensor {
  precondition(predictions.count == targets.count)
  let divisor = Double(count ?? targets.count)
  var sum = 0.0
  var slopes: [Float] = []
  slopes.reserveCapacity(targets.count)
  for (prediction, target) in zip(predictions.scalars, targets) {
    let (loss, slope) = function(Double(prediction), Double(target))
    sum += loss
    slopes.append(Float(slope / divisor))
  }
  let gradientOfOne = Tensor(shape: predictions.shape, scalars: slopes)
  return Tensor(Float(sum / divisor)).recorded(from: [predictions]) { gradient, sink in
    sink.add(gradientOfOne.scaled(by: gradient.item), to: 0)
  }
}

/// The loss of spans: half the sum of the cross-entropies of their first and of their last rows,
/// each over the rows of their own sequence.
///
/// The mean of each is over the sequences that have such a row; sums are in double precision.
///
/// - Parameters:
///   - logits: `[rows, 2]`: a row begins a span, a row ends one.
///   - offsets: First row of each sequence, and the number of rows at the end.
///   - starts: For each sequence the first row of its span, counted within the sequence;
///     ``ignoredLabel`` does not count.
///   - ends: The last row.
///   - count: Divisor of both sums instead of the numbers of counted rows.
/// - Returns: A scalar; NaN when nothing counts, as in PyTorch.
/// - Precondition: Rows are within their sequences.
public func spanCrossEntropy(
  _ logits: Tensor, offsets: [Int32], starts: [Int32], ends: [Int32], count: Int? = nil
) -> Tensor {
  precondition(logits.columns == 2 && Int(offsets.last ?? 0) == logits.rows)
  precondition(starts.count == offsets.count - 1 && ends.count == starts.count)
  let values = logits.scalars
  var slopes = [Float](repeating: 0, count: values.count)
  var total = 0.0
  for (column, labels) in [starts, ends].enumerated() {
    let counted = labels.count { $0 != ignoredLabel }
    let divisor = 2 * Double(count ?? counted)
    if count == nil, counted == 0 { total = .nan }
    for (sequence, label) in labels.enumerated() where label != ignoredLabel {
      let rows = Int(offsets[sequence])..<Int(offsets[sequence + 1])
      let target = rows.lowerBound + Int(label)
      precondition(rows.contains(target), "row \(label) of a sequence of \(rows.count)")
      let largest = rows.reduce(-Double.infinity) { max($0, Double(values[2 * $1 + column])) }
      let weights = rows.map { exp(Double(values[2 * $0 + column]) - largest) }
      let sum = weights.reduce(0, +)
      total += (largest + log(sum) - Double(values[2 * target + column])) / divisor
      for (row, weight) in zip(rows, weights) {
        slopes[2 * row + column] = Float((weight / sum - (row == target ? 1 : 0)) / divisor)
      }
    }
  }
  let gradientOfOne = Tensor(shape: logits.shape, scalars: slopes)
  return Tensor(Float(total)).recorded(from: [logits]) { gradient, sink in
    sink.add(gradientOfOne.scaled(by: gradient.item), to: 0)
  }
}
