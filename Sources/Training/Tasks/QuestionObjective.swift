import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors

/// Cross-entropies of an answer's first and last token among the tokens of its sequence.
///
/// The metrics compare tokens: `exact_match` where the best span is a right one, and `f1` of the
/// tokens in both, of the right one that gives most. They are means over questions, whose best answer
/// is that of all windows of a long context (``Example/search``).
public struct QuestionAnsweringObjective: Objective {
  private let model: any QuestionAnswerer

  /// Creates the objective of a model.
  public init(_ model: any QuestionAnswerer) { self.model = model }

  /// The metrics of an evaluation.
  public var metricNames: [String] { ["exact_match", "f1"] }

  /// How many sequences of a batch have an answer that counts.
  public func labelCount(_ batch: Batch) -> Int {
    Self.spans(batch).starts.count { $0 != ignoredLabel }
  }

  /// The loss of a batch, summed over its sequences and divided by `count`.
  public func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError)
    -> Tensor?
  {
    guard labelCount(batch) > 0 else { return nil }
    let (starts, ends) = Self.spans(batch)
    return spanCrossEntropy(
      model.logits(batch.tokens, context), offsets: batch.tokens.layout.offsets, starts: starts,
      ends: ends, count: count)
  }

  /// Adds a batch to an evaluation.
  public func evaluate(
    _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
  ) throws(PEFTError) {
    let count = labelCount(batch)
    guard count > 0 else { return }
    let (starts, ends) = Self.spans(batch)
    let logits = model.logits(batch.tokens, context)
    let layout = batch.tokens.layout
    let loss = spanCrossEntropy(logits, offsets: layout.offsets, starts: starts, ends: ends)
    sums.add(meanLoss: Double(loss.item), count: count)
    Self.score(logits.scalars, batch, into: &sums)
  }

  /// Adds the answers that a model gives.
  ///
  /// - Parameters:
  ///   - logits: Two for each row of the batch.
  ///   - batch: The sequences.
  ///   - sums: Gets the answers.
  static func score(_ logits: [Float], _ batch: Batch, into sums: inout EvaluationSums) {
    let (starts, ends) = spans(batch)
    sums.update(AnswerScores.self) { answers in
      for sequence in starts.indices where starts[sequence] != ignoredLabel {
        let rows = batch.tokens.layout.range(sequence)
        let window = Array(logits[2 * rows.lowerBound..<2 * rows.upperBound])
        if let search = batch.searches[sequence] {
          answers.add(window, search)
        } else {
          let first = Int(starts[sequence])
          answers.add(window, answer: first..<max(first, Int(ends[sequence])) + 1)
        }
      }
    }
  }

  /// The metrics of an evaluation.
  public func metrics(of sums: EvaluationSums) -> [Metric] { sums.tally(AnswerScores.self).metrics }

  /// First and last tokens of the answers within their sequences; neither counts when one of them
  /// is not there.
  private static func spans(_ batch: Batch) -> (starts: [Int32], ends: [Int32]) {
    let layout = batch.tokens.layout
    var (starts, ends): ([Int32], [Int32]) = ([], [])
    for sequence in 0..<layout.count {
      let (start, end) = (batch.labels[2 * sequence], batch.labels[2 * sequence + 1])
      let valid = 0..<Int32(layout.range(sequence).count)
      let counts = valid.contains(start) && valid.contains(end)
      starts.append(counts ? start : ignoredLabel)
      ends.append(counts ? end : ignoredLabel)
    }
    return (starts, ends)
  }
}
