import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors

/// Cross-entropy of one class for each sequence.
public struct ClassificationObjective: Objective {
  private let model: any SequenceClassifier

  /// Creates the objective of a classifier.
  public init(_ model: any SequenceClassifier) { self.model = model }

  /// The metrics of an evaluation.
  public var metricNames: [String] { ["accuracy"] }

  /// How many labels of a batch count.
  public func labelCount(_ batch: Batch) -> Int {
    batch.labels.count { $0 != ignoredLabel }
  }

  /// The loss of a batch, summed over its labels and divided by `count`.
  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    guard labelCount(batch) > 0 else { return nil }
    return try crossEntropy(model.logits(batch.tokens, context), labels: batch.labels, count: count)
  }

  /// Adds a batch to an evaluation.
  public func evaluate(
    _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
  ) throws(PEFTError) {
    try sums.add(logits: model.logits(batch.tokens, context), labels: batch.labels)
  }

  /// The metrics of an evaluation.
  public func metrics(of sums: EvaluationSums) -> [Metric] { [sums.accuracy] }
}

/// Binary cross-entropy of each label of each sequence.
///
/// F1 is over all labels together; a sequence is right for the accuracy when all of its labels are.
public struct MultiLabelObjective: Objective {
  private let model: any SequenceClassifier

  /// Creates the objective of a classifier.
  public init(_ model: any SequenceClassifier) { self.model = model }

  /// The metrics of an evaluation.
  public var metricNames: [String] { ["accuracy", "precision", "recall", "f1"] }

  /// How many sequences of a batch count.
  public func labelCount(_ batch: Batch) -> Int { batch.tokens.layout.count }

  /// The loss of a batch, summed over its sequences and divided by `count`.
  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    let logits = model.logits(batch.tokens, context)
    let targets = try batch.targets(logits)
    return binaryCrossEntropy(logits, targets: targets, count: count * logits.columns)
  }

  /// Adds a batch to an evaluation.
  public func evaluate(
    _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
  ) throws(PEFTError) {
    let logits = model.logits(batch.tokens, context)
    let targets = try batch.targets(logits)
    sums.add(
      meanLoss: Double(binaryCrossEntropy(logits, targets: targets).item), count: logits.rows)
    let found = logits.scalars.map { $0 > 0 }
    let present = targets.map { $0 > 0.5 }
    for row in 0..<logits.rows {
      let places = row * logits.columns..<(row + 1) * logits.columns
      if found[places] == present[places] { sums["correct"] += 1 }
    }
    sums["found"] += Double(found.count { $0 })
    sums["present"] += Double(present.count { $0 })
    sums["both"] += Double(zip(found, present).count { $0 && $1 })
  }

  /// The metrics of an evaluation.
  public func metrics(of sums: EvaluationSums) -> [Metric] {
    [sums.accuracy]
      + EvaluationSums.f1(found: sums["found"], present: sums["present"], both: sums["both"])
  }
}

/// Mean squared error of the numbers of each sequence.
///
/// Errors are means over all numbers, and so is the correlation, Pearson's.
public struct RegressionObjective: Objective {
  private let model: any SequenceClassifier

  /// Creates the objective of a classifier.
  public init(_ model: any SequenceClassifier) { self.model = model }

  /// The metrics of an evaluation.
  public var metricNames: [String] { ["mae", "pearson"] }

  /// How many sequences of a batch count.
  public func labelCount(_ batch: Batch) -> Int { batch.tokens.layout.count }

  /// The loss of a batch, summed over its sequences and divided by `count`.
  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    let predictions = model.logits(batch.tokens, context)
    let targets = try batch.targets(predictions)
    return meanSquaredError(predictions, targets: targets, count: count * predictions.columns)
  }

  /// Adds a batch to an evaluation.
  public func evaluate(
    _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
  ) throws(PEFTError) {
    let predictions = model.logits(batch.tokens, context)
    let targets = try batch.targets(predictions)
    sums.add(
      meanLoss: Double(meanSquaredError(predictions, targets: targets).item),
      count: predictions.rows)
    for (x, y) in zip(predictions.scalars, targets) {
      let (x, y) = (Double(x), Double(y))
      sums["n"] += 1
      sums["error"] += abs(x - y)
      sums["x"] += x
      sums["y"] += y
      sums["xx"] += x * x
      sums["yy"] += y * y
      sums["xy"] += x * y
    }
  }

  /// The metrics of an evaluation.
  public func metrics(of sums: EvaluationSums) -> [Metric] {
    let n = max(sums["n"], 1)
    let covariance = sums["xy"] - sums["x"] * sums["y"] / n
    let spread =
      (sums["xx"] - sums["x"] * sums["x"] / n) * (sums["yy"] - sums["y"] * sums["y"] / n)
    return [
      Metric("mae", sums["error"] / n),
      Metric("pearson", spread > 0 ? covariance / spread.squareRoot() : 0),
    ]
  }
}

extension Batch {
  /// The targets, checked to be as many as the numbers that a model gives.
  fileprivate func targets(_ predictions: Tensor) throws(PEFTError) -> [Float] {
    guard targets.count == predictions.count else {
      throw PEFTError(
        .invalidData,
        "\(targets.count) targets for \(predictions.rows) sequences with \(predictions.columns) "
          + "numbers each")
    }
    return targets
  }
}
