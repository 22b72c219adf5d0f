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

/// Cross-entropy of the next token.
public struct LanguageModelObjective: Objective {
  private let model: any CausalLanguageModel
  /// Most logits that an evaluation holds at once, 64 MB of them.
  private static let evaluationLogits = 1 << 24

  /// Creates the objective of a language model.
  public init(_ model: any CausalLanguageModel) { self.model = model }

  /// The metrics of an evaluation.
  public var metricNames: [String] { ["accuracy", "perplexity"] }

  /// How many labels of a batch count.
  public func labelCount(_ batch: Batch) -> Int { targets(batch).labels.count }

  /// The loss of a batch, summed over its labels and divided by `count`.
  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    let (rows, labels) = targets(batch)
    guard !rows.isEmpty else { return nil }
    // Most of the work of a small model is in its output layer: only rows that have a label go
    // through it.
    return try crossEntropy(
      model.logits(batch.tokens, rows: rows, context), labels: labels, count: count)
  }

  /// Adds a batch to an evaluation.
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

  /// The metrics of an evaluation.
  public func metrics(of sums: EvaluationSums) -> [Metric] {
    [sums.accuracy, Metric("perplexity", exp(sums.loss / Double(max(sums.count, 1))))]
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

/// Cross-entropy of each token's class.
///
/// Where the labels are those of entities, `B-…` and `I-…`, there are precision, recall and F1 of
/// whole entities besides: one is found when its kind, its first and its last token are right.
public struct TokenClassificationObjective: Objective {
  private let model: any TokenClassifier
  private let entities: EntityLabels?

  /// Creates the objective of a classifier.
  ///
  /// - Parameters:
  ///   - model: The model.
  ///   - labels: The names of its classes, if they have names.
  public init(_ model: any TokenClassifier, labels: LabelSet? = nil) {
    self.model = model
    entities = labels.flatMap { EntityLabels($0.names) }
  }

  /// The metrics of an evaluation.
  public var metricNames: [String] {
    ["accuracy"] + (entities == nil ? [] : ["precision", "recall", "f1"])
  }

  /// How many labels of a batch count.
  public func labelCount(_ batch: Batch) -> Int {
    batch.labels.count { $0 != ignoredLabel }
  }

  /// The loss of a batch, summed over its labels and divided by `count`.
  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    let (rows, labels) = targets(batch)
    guard !rows.isEmpty else { return nil }
    return try crossEntropy(
      model.logits(batch.tokens, rows: rows, context), labels: labels, count: count)
  }

  /// Adds a batch to an evaluation.
  public func evaluate(
    _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
  ) throws(PEFTError) {
    let (rows, labels) = targets(batch)
    guard !rows.isEmpty else { return }
    let logits = model.logits(batch.tokens, rows: rows, context)
    try sums.add(logits: logits, labels: labels)
    guard let entities else { return }
    let found = logits.argmaxOfRows
    var next = 0
    for sequence in 0..<batch.tokens.layout.count {
      let start = next
      let end = batch.tokens.layout.range(sequence).upperBound
      while next < rows.count, Int(rows[next]) < end { next += 1 }
      let right = Set(entities.spans(labels[start..<next]))
      let guessed = Set(entities.spans(found[start..<next]))
      sums["found"] += Double(guessed.count)
      sums["present"] += Double(right.count)
      sums["both"] += Double(right.intersection(guessed).count)
    }
  }

  /// The metrics of an evaluation.
  public func metrics(of sums: EvaluationSums) -> [Metric] {
    let f1 = EvaluationSums.f1(
      found: sums["found"], present: sums["present"], both: sums["both"])
    return [sums.accuracy] + (entities == nil ? [] : f1)
  }

  private func targets(_ batch: Batch) -> (rows: [Int32], labels: [Int32]) {
    let rows = batch.labels.indices.filter { batch.labels[$0] != ignoredLabel }
    return (rows.map { Int32($0) }, rows.map { batch.labels[$0] })
  }
}

/// Labels that mark entities: a prefix for the place in one and its kind.
struct EntityLabels {
  /// An entity in a sequence.
  struct Span: Hashable {
    var kind: Substring
    var rows: Range<Int>
  }

  private let names: [(prefix: Character, kind: Substring)]

  /// Splits names; `nil` when they are not all `O` or a place and a kind, with a `B-` or `I-` among
  /// them.
  init?(_ names: [String]) {
    var parts: [(prefix: Character, kind: Substring)] = []
    for name in names {
      if name == "O" {
        parts.append(("O", ""))
      } else if let first = name.first, "BIES".contains(first), name.dropFirst().first == "-" {
        parts.append((first, name.dropFirst(2)))
      } else {
        return nil
      }
    }
    guard parts.contains(where: { $0.prefix == "B" || $0.prefix == "I" }) else { return nil }
    self.names = parts
  }

  /// The entities of a sequence, read as the CoNLL evaluation reads them: one begins at `B` or `S`,
  /// where the kind changes, and after the end of another; it ends before any of these and at `E`
  /// and `S`.
  func spans(_ labels: ArraySlice<Int32>) -> [Span] {
    var spans: [Span] = []
    var open: (kind: Substring, start: Int)?
    for (place, label) in labels.enumerated() {
      let (prefix, kind) = names[Int(label)]
      if let current = open, prefix == "O" || prefix == "B" || prefix == "S" || kind != current.kind
      {
        spans.append(Span(kind: current.kind, rows: current.start..<place))
        open = nil
      }
      if prefix == "O" { continue }
      let start = open?.start ?? place
      if prefix == "E" || prefix == "S" {
        spans.append(Span(kind: kind, rows: start..<place + 1))
        open = nil
      } else {
        open = (kind, start)
      }
    }
    if let open { spans.append(Span(kind: open.kind, rows: open.start..<labels.count)) }
    return spans
  }
}
