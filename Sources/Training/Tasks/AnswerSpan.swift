/// Tokens that a model takes for an answer.
struct AnswerSpan: Sendable {
  /// Most tokens of an answer, as in the examples of transformers.
  static let maxLength = 30

  /// The tokens, at least one.
  private(set) var tokens: Range<Int>
  /// The sum of the first one's start and the last one's end logit.
  let score: Float

  /// The span with the largest score; `nil` where no score is a number.
  ///
  /// - Parameters:
  ///   - logits: Two for each row.
  ///   - rows: The rows to choose among.
  init?(bestOf logits: [Float], in rows: Range<Int>) {
    var best: (score: Float, tokens: Range<Int>)?
    for start in rows {
      for end in start..<min(start + Self.maxLength, rows.upperBound) {
        let score = logits[2 * start] + logits[2 * end + 1]
        if score > best?.score ?? -.infinity { best = (score, start..<end + 1) }
      }
    }
    guard let best else { return nil }
    (score, tokens) = best
  }

  /// Whether it is to be preferred to that of a window before.
  func isBetter(than other: AnswerSpan?) -> Bool { score > other?.score ?? -.infinity }

  /// The same tokens counted from another one.
  func shifted(by distance: Int) -> AnswerSpan {
    var result = self
    result.tokens = tokens.lowerBound + distance..<tokens.upperBound + distance
    return result
  }
}
