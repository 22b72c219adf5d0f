/// The best answers that a model gives to the questions of an evaluation, and how good they are.
///
/// Windows are compared as in the examples of transformers: the span with the highest sum of its
/// logits in any window is the answer, unless the lowest score that a window gives to "no answer" is
/// not below it.
struct AnswerScores: EvaluationTally {
  fileprivate struct Question {
    var search: AnswerSearch
    /// The best span so far, in the context's tokens.
    var best: AnswerSpan?
    /// Whether a window's scores were no numbers.
    var isBroken = false
    var none: Float?
  }

  private var questions: [Question] = []
  /// Where a question stands that has several windows.
  private var places: [Int: Int] = [:]

  /// Adds a window of a question.
  ///
  /// - Parameters:
  ///   - logits: Two for each row of the window.
  ///   - search: The question, and the rows to look in.
  mutating func add(_ logits: [Float], _ search: AnswerSearch) {
    if search.answers == nil { return }
    let place = places[search.question] ?? questions.count
    if place == questions.count {
      questions.append(Question(search: search))
      places[search.question] = place
    }
    questions[place].add(logits, search)
  }

  /// Adds a sequence that is a question for itself, and whose rows all compete.
  mutating func add(_ logits: [Float], answer: Range<Int>) {
    let search = AnswerSearch(
      question: 0, rows: 0..<logits.count / 2, start: 0, answers: [answer])
    var question = Question(search: search)
    question.add(logits, search)
    questions.append(question)
  }

  /// Means over the questions.
  var metrics: [Metric] {
    var (exact, f1) = (0.0, 0.0)
    for question in questions {
      let score = question.score
      if score.isExact { exact += 1 }
      f1 += score.f1
    }
    let count = Double(max(questions.count, 1))
    return [Metric("exact_match", exact / count), Metric("f1", f1 / count)]
  }
}

extension AnswerScores.Question {
  mutating func add(_ logits: [Float], _ search: AnswerSearch) {
    guard logits.count > 1 else { return }
    let score = logits[0] + logits[1]
    none = min(none ?? score, score)
    let rows = search.rows.clamped(to: 0..<logits.count / 2)
    if rows.isEmpty { return }
    guard let span = AnswerSpan(bestOf: logits, in: rows) else {
      isBroken = true
      return
    }
    guard span.isBetter(than: best) else { return }
    best = span.shifted(by: search.start - rows.lowerBound)
  }

  /// What the model answers, in the context's tokens; `nil` for no answer.
  private var answer: Range<Int>? {
    guard let best else { return nil }
    if search.allowsNone, let none, none >= best.score { return nil }
    return best.tokens
  }

  var score: (isExact: Bool, f1: Double) {
    // To say nothing for want of numbers is no answer.
    if best == nil, isBroken { return (false, 0) }
    let wanted = search.answers ?? []
    guard let answer, !wanted.isEmpty else {
      let isRight = answer == nil && wanted.isEmpty
      return (isRight, isRight ? 1 : 0)
    }
    let f1 = wanted.map { right in
      2 * Double(answer.clamped(to: right).count) / Double(answer.count + right.count)
    }
    return (wanted.contains(answer), f1.max() ?? 0)
  }
}
