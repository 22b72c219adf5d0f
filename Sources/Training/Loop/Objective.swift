import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors

/// What a run minimises: how a batch becomes a loss, and what an evaluation counts.
public protocol Objective {
  /// How many labels of a batch count.
  func labelCount(_ batch: Batch) -> Int

  /// The loss of a batch, summed over its labels and divided by `count`; `nil` when none counts.
  ///
  /// - Parameters:
  ///   - batch: The examples.
  ///   - context: The pass; with a dropout seed in training.
  ///   - count: Number of labels in all batches of the step.
  /// - Throws: ``PEFTError`` for a label that the model does not have.
  func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError) -> Tensor?

  /// Adds a batch to an evaluation.
  func evaluate(_ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums)
    throws(PEFTError)
}

/// Cross-entropy of one class for each sequence.
public struct ClassificationObjective: Objective {
  private let model: any SequenceClassifier

  /// Creates the objective of a classifier.
  public init(_ model: any SequenceClassifier) { self.model = model }

  public func labelCount(_ batch: Batch) -> Int {
    batch.labels.count { $0 != ignoredLabel }
  }

  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    guard labelCount(batch) > 0 else { return nil }
    return try crossEntropy(model.logits(batch.tokens, context), labels: batch.labels, count: count)
  }

  public func evaluate(
    _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
  ) throws(PEFTError) {
    try sums.add(logits: model.logits(batch.tokens, context), labels: batch.labels)
  }
}

/// Cross-entropy of the next token.
public struct LanguageModelObjective: Objective {
  private let model: any CausalLanguageModel
  /// Most logits that an evaluation holds at once, 64 MB of them.
  private static let evaluationLogits = 1 << 24

  /// Creates the objective of a language model.
  public init(_ model: any CausalLanguageModel) { self.model = model }

  public func labelCount(_ batch: Batch) -> Int { targets(batch).labels.count }

  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    let (rows, labels) = targets(batch)
    guard !rows.isEmpty else { return nil }
    // Most of the work of a small model is in its output layer: only rows that have a label go
    // through it.
    let hidden = model.lastHiddenState(batch.tokens, context).selectRows(rows)
    return try crossEntropy(
      model.logits(fromHidden: hidden, context), labels: labels, count: count)
  }

  public func evaluate(
    _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
  ) throws(PEFTError) {
    let (rows, labels) = targets(batch)
    guard !rows.isEmpty else { return }
    let hidden = model.lastHiddenState(batch.tokens, context)
    let vocabulary = model.configuration.object["vocab_size"]?.int ?? 32768
    let chunk = max(1, Self.evaluationLogits / max(vocabulary, 1))
    for start in stride(from: 0, to: rows.count, by: chunk) {
      let part = start..<min(start + chunk, rows.count)
      let logits = model.logits(fromHidden: hidden.selectRows(Array(rows[part])), context)
      try sums.add(logits: logits, labels: Array(labels[part]))
    }
  }

  /// The rows that predict a counted label, and those labels: row t of a sequence predicts the
  /// label of t + 1.
  private func targets(_ batch: Batch) -> (rows: [Int32], labels: [Int32]) {
    var rows: [Int32] = []
    var labels: [Int32] = []
    let layout = batch.tokens.layout
    for sequence in 0..<layout.count {
      for row in layout.range(sequence).dropLast() where batch.labels[row + 1] != ignoredLabel {
        rows.append(Int32(row))
        labels.append(batch.labels[row + 1])
      }
    }
    return (rows, labels)
  }
}

/// What an evaluation has counted so far.
public struct EvaluationSums: Sendable {
  /// Sum of the losses of all labels.
  public private(set) var loss = 0.0
  /// Number of labels.
  public private(set) var count = 0
  /// Number of labels with the largest logit.
  public private(set) var correct = 0

  /// Creates sums of nothing.
  public init() {}

  /// Adds rows of logits.
  ///
  /// - Parameters:
  ///   - logits: `[labels.count, classes]`.
  ///   - labels: The right classes; ``Tensors/ignoredLabel`` does not count.
  public mutating func add(logits: Tensor, labels: [Int32]) throws(PEFTError) {
    let counted = labels.count { $0 != ignoredLabel }
    guard counted > 0 else { return }
    loss += try Double(crossEntropy(logits, labels: labels).item) * Double(counted)
    count += counted
    correct += zip(logits.argmaxOfRows, labels).count { $0 == $1 }
  }
}

/// What came of an evaluation.
public struct EvaluationResult: Sendable, Equatable {
  /// Mean loss of a label.
  public var loss: Double
  /// Part of the labels that had the largest logit.
  public var accuracy: Double
  /// exp(loss), for language models.
  public var perplexity: Double?
  /// Number of examples.
  public var examples: Int
  /// Time taken.
  public var seconds: Double

  /// The value of a metric: "loss", "accuracy" or "perplexity".
  public func value(of metric: String) -> Double? {
    switch metric {
    case "loss": return loss
    case "accuracy": return accuracy
    case "perplexity": return perplexity
    default: return nil
    }
  }

  /// The members of a log entry, with Hugging Face's names.
  ///
  /// - Parameter prefix: "eval" or "test".
  public func members(_ prefix: String) -> [(String, JSONValue)] {
    var result: [(String, JSONValue)] = [
      ("\(prefix)_loss", .double(loss)), ("\(prefix)_accuracy", .double(accuracy)),
    ]
    if let perplexity { result.append(("\(prefix)_perplexity", .double(perplexity))) }
    result += [
      ("\(prefix)_runtime", .double(seconds)),
      ("\(prefix)_samples_per_second", .double(seconds > 0 ? Double(examples) / seconds : 0)),
    ]
    return result
  }

  /// The result in one line.
  public var summary: String {
    var text = "loss \(fixed(loss, 4)), accuracy \(fixed(accuracy, 4))"
    if let perplexity { text += ", perplexity \(fixed(perplexity, 3))" }
    return text
  }
}
