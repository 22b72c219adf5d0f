/// Where an evaluation looks for the answer to a question, and what it compares it with.
///
/// An example is a window of the question's context; the best answer of all windows counts.
public struct AnswerSearch: Sendable, Equatable {
  /// The question, a number that its windows share.
  public var question: Int
  /// The tokens of the example that are the context's.
  public var rows: Range<Int>
  /// The place of the first of them among the context's tokens.
  public var start: Int
  /// The right answers among the context's tokens, of which any will do; empty for a question without
  /// an answer, and `nil` for one that the metrics leave out.
  public var answers: [Range<Int>]?
  /// Whether the first token, "no answer", competes with the context's.
  public var allowsNone: Bool

  /// Creates a search.
  public init(
    question: Int, rows: Range<Int>, start: Int, answers: [Range<Int>]?, allowsNone: Bool = false
  ) {
    self.question = question
    self.rows = rows
    self.start = start
    self.answers = answers
    self.allowsNone = allowsNone
  }
}
