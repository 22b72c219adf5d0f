import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors

/// What a run minimises: how a batch becomes a loss, and what an evaluation counts.
public protocol Objective {
  /// The metrics that an evaluation gives besides the loss, in the order in which
  /// they are shown.
  var metricNames: [String] { get }

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

  /// Adds a batch to an evaluation: loss and count, and what ``metrics(of:)`` needs.
  func evaluate(_ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums)
    throws(PEFTError)

  /// The metrics, under ``metricNames``, of what ``evaluate(_:_:into:)`` has counted.
  func metrics(of sums: EvaluationSums) -> [Metric]
}

/// The value of a metric.
public struct Metric: Sendable, Equatable {
  /// Its name: "accuracy".
  public var name: String
  /// Its value.
  public var value: Double

  /// Names a value.
  public init(_ name: String, _ value: Double) {
    self.name = name
    self.value = value
  }

  /// Whether a greater value of a metric is a better one: of all but losses and errors.
  public static func isGreaterBetter(_ name: String) -> Bool {
    !["loss", "perplexity", "mse", "mae"].contains(name)
  }
}

/// What an objective counts over an evaluation where numbers do not do.
public protocol EvaluationTally: Sendable {
  /// Creates a tally of nothing.
  init()
}

/// What an evaluation has counted so far.
public struct EvaluationSums: Sendable {
  /// Sum of the losses of all labels.
  public private(set) var loss = 0.0
  /// Number of labels.
  public private(set) var count = 0
  private var others: [String: Double] = [:]
  private var tallies: [ObjectIdentifier: any EvaluationTally] = [:]

  /// Creates sums of nothing.
  public init() {}

  /// A sum that an objective keeps for its metrics; 0 at first.
  public subscript(name: String) -> Double {
    get { others[name] ?? 0 }
    set { others[name] = newValue }
  }

  /// What an objective counts in a type of its own; a new one at first.
  public func tally<Tally: EvaluationTally>(_ type: Tally.Type) -> Tally {
    tallies[ObjectIdentifier(type)] as? Tally ?? Tally()
  }

  /// Changes what an objective counts in a type of its own.
  public mutating func update<Tally: EvaluationTally>(
    _ type: Tally.Type, _ change: (inout Tally) -> Void
  ) {
    // Taken out, so that the change copies nothing.
    var tally = tallies.removeValue(forKey: ObjectIdentifier(type)) as? Tally ?? Tally()
    change(&tally)
    tallies[ObjectIdentifier(type)] = tally
  }

  /// Adds labels.
  ///
  /// - Parameters:
  ///   - loss: The mean of their losses.
  ///   - count: How many there are.
  public mutating func add(meanLoss loss: Double, count: Int) {
    self.loss += loss * Double(count)
    self.count += count
  }

  /// Adds rows of logits: their cross-entropy, and in "correct" the number of labels with the
  /// largest logit.
  ///
  /// - Parameters:
  ///   - logits: `[labels.count, classes]`.
  ///   - labels: The right classes; ``Tensors/ignoredLabel`` does not count.
  /// - Throws: ``PEFTError`` for a label that is no class.
  public mutating func add(logits: Tensor, labels: [Int32]) throws(PEFTError) {
    let counted = labels.count { $0 != ignoredLabel }
    guard counted > 0 else { return }
    add(meanLoss: try Double(crossEntropy(logits, labels: labels).item), count: counted)
    self["correct"] += Double(zip(logits.argmaxOfRows, labels).count { $0 == $1 })
  }

  /// "correct" per label.
  var accuracy: Metric { Metric("accuracy", self["correct"] / Double(max(count, 1))) }

  /// Precision, recall and their harmonic mean of what was found, was there, and was both.
  static func f1(found: Double, present: Double, both: Double) -> [Metric] {
    let precision = found > 0 ? both / found : 0
    let recall = present > 0 ? both / present : 0
    let sum = precision + recall
    return [
      Metric("precision", precision), Metric("recall", recall),
      Metric("f1", sum > 0 ? 2 * precision * recall / sum : 0),
    ]
  }
}

/// What came of an evaluation.
public struct EvaluationResult: Sendable, Equatable {
  /// Mean loss of a label.
  public var loss: Double
  /// The task's metrics.
  public var metrics: [Metric]
  /// Number of examples.
  public var examples: Int
  /// Time taken.
  public var seconds: Double

  /// The value of a metric: "loss", or one of ``metrics``.
  public func value(of metric: String) -> Double? {
    metric == "loss" ? loss : metrics.first { $0.name == metric }?.value
  }

  /// The members of a log entry, with Hugging Face's names.
  ///
  /// - Parameter prefix: "eval" or "test".
  public func members(_ prefix: String) -> [(String, JSONValue)] {
    [("\(prefix)_loss", .double(loss))]
      + metrics.map { ("\(prefix)_\($0.name)", .double($0.value)) }
      + [
        ("\(prefix)_runtime", .double(seconds)),
        ("\(prefix)_samples_per_second", .double(seconds > 0 ? Double(examples) / seconds : 0)),
      ]
  }

  /// The result in one line.
  public var summary: String {
    var text = "loss \(fixed(loss, 4))"
    for metric in metrics {
      text += ", \(metric.name) \(fixed(metric.value, metric.name == "perplexity" ? 3 : 4))"
    }
    return text
  }
}
