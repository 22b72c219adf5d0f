import Models
import PEFTCore
import PEFTSupport
import Tensors
import Tokenizers

extension DatasetBuilder {
  /// The examples of questions, each with a context that holds the answer.
  ///
  /// A context that is too long is cut into windows that share `doc_stride` tokens. In a window
  /// without the answer, as for a question without one, the answer is the first token. Training
  /// takes the first of several answers; evaluations look for any of them where predictions do.
  func questions(_ source: DataSource) throws(PEFTError) -> Dataset {
    var encoder = QuestionEncoder(
      try requireTokenizer(), maxLength: maxLength, stride: configuration.stride)
    var examples: [Example] = []
    var cut = 0
    var hasUnanswered = false
    for (number, record) in source.records.enumerated() {
      let question = try record.text("question", setBy: "data_format")
      let context = try record.text("context", setBy: "data_format")
      let answers = try record.answers(in: context)
      let windows: [QuestionEncoder.Window]
      do { windows = try encoder.windows(question: question, context: context) } catch {
        throw error.located(at: record.location)
      }
      var tokens: [Range<Int>] = []
      for answer in answers { tokens.append(encoder.tokens(answer, of: context)) }
      if windows.count > 1 { cut += 1 }
      if answers.isEmpty { hasUnanswered = true }
      let wanted = tokens.filter { !$0.isEmpty }
      for window in windows {
        let place = tokens.first.flatMap { window.place(of: $0) } ?? 0...0
        let example = Example(
          tokenIDs: window.ids, typeIDs: segments(window.types),
          labels: [Int32(place.lowerBound), Int32(place.upperBound)],
          search: AnswerSearch(
            question: number, rows: window.rows, start: window.part.lowerBound,
            // Answers that no token stands for cannot be given.
            answers: wanted.isEmpty && !tokens.isEmpty ? nil : wanted))
        try check(example, at: record.location)
        examples.append(example)
      }
    }
    // Where every question has an answer, a model need not learn to give none.
    if hasUnanswered {
      for index in examples.indices { examples[index].search?.allowsNone = true }
    }
    return Dataset(examples, truncatedCount: cut)
  }
}

/// Tokenises questions with their contexts, and finds places of the context among the tokens.
struct QuestionEncoder: ~Copyable {
  /// A question with a part of its context.
  struct Window {
    var ids: [Int32]
    var types: [Int32]
    /// The tokens of the context that are in it, counted in the whole context.
    var part: Range<Int>
    /// Where the first of them stands in the window.
    var offset: Int
    /// The tokens of the window that are the context's.
    var rows: Range<Int> { offset..<offset + part.count }

    /// The place of an answer; `nil` when the window does not hold all of it.
    func place(of tokens: Range<Int>) -> ClosedRange<Int>? {
      guard !tokens.isEmpty, part.contains(tokens.lowerBound),
        part.contains(tokens.upperBound - 1)
      else { return nil }
      let shift = offset - part.lowerBound
      return tokens.lowerBound + shift...tokens.upperBound - 1 + shift
    }
  }

  private var encoder: Tokenizer.Encoder
  private let maxLength: Int
  private let stride: Int?

  /// Tokens that windows share unless a number is given; fewer where windows are short.
  private static let usualStride = 128

  init(_ tokenizer: Tokenizer, maxLength: Int, stride: Int?) {
    var tokenizer = tokenizer
    tokenizer.truncation = nil
    tokenizer.padding = nil
    encoder = tokenizer.makeEncoder()
    self.maxLength = maxLength
    self.stride = stride
  }

  /// The windows of a pair.
  ///
  /// - Throws: ``PEFTError`` when the question leaves no room for the context, or windows would share
  ///   all of it.
  mutating func windows(question: String, context: String) throws(PEFTError) -> [Window] {
    let whole = encoder.encode(question, pair: context)
    let count = encoder.ids(of: context).count
    // The context's tokens are the last ones that are not special, in one piece.
    let inside = whole.ids.indices.filter { !whole.specialTokensMask[$0] }.suffix(count)
    let start = inside.first ?? whole.count
    let end = (inside.last).map { $0 + 1 } ?? whole.count
    let (head, tail) = (0..<start, end..<whole.count)
    let room = maxLength - head.count - tail.count
    guard room > 0 else {
      throw PEFTError(
        .invalidData,
        "the question has \(head.count) tokens, which leaves none of \(maxLength) "
          + "for the context", remedy: "Raise 'max_length'.")
    }
    if let stride, count > room, stride >= room {
      throw PEFTError(
        .invalidData,
        "'doc_stride' is \(stride), but beside the question a window has room for only \(room) "
          + "tokens of the context", remedy: "Lower 'doc_stride' or raise 'max_length'.")
    }
    let shared = stride ?? min(Self.usualStride, room / 2)
    var windows: [Window] = []
    var first = 0
    repeat {
      let part = first..<min(first + room, count)
      let places = [head, start + part.lowerBound..<start + part.upperBound, tail]
      windows.append(
        Window(
          ids: places.flatMap { whole.ids[$0] }, types: places.flatMap { whole.typeIDs[$0] },
          part: part, offset: start))
      if part.upperBound == count { break }
      first += room - shared
    } while true
    return windows
  }

  /// The tokens that hold a range of characters of a text.
  ///
  /// Tokens before a place are those that the text before it is made of, as far as they are the
  /// whole text's; tokens after it are those that the rest ends with. A token that spans the first
  /// or the last place of the range belongs to it.
  mutating func tokens(_ characters: Range<String.Index>, of text: String) -> Range<Int> {
    let all = encoder.ids(of: text)
    let before = Self.common(all, encoder.ids(of: String(text[..<characters.lowerBound])))
    let until = encoder.ids(of: String(text[..<characters.upperBound]))
    if until.count > before, Self.common(all, until) == until.count { return before..<until.count }
    let after = Self.common(
      all.reversed(), encoder.ids(of: String(text[characters.upperBound...])).reversed())
    return before..<max(before, all.count - after)
  }

  /// The part of a text that tokens stand for, widened to whole words, as it is written there;
  /// decoded tokens may differ from it in case and spaces.
  ///
  /// - Returns: `nil` for a text without words.
  mutating func words(of tokens: Range<Int>, in text: String) -> Substring? {
    let words = Self.words(text)
    if words.isEmpty { return nil }
    let all = encoder.ids(of: text)
    let next = bisect(words, \.lowerBound, in: text, all, reaching: tokens.lowerBound + 1)
    let first = max(next - 1, 0)
    let last = bisect(words, \.upperBound, in: text, all, reaching: tokens.upperBound)
    return text[words[first].lowerBound..<words[max(first, min(last, words.count - 1))].upperBound]
  }

  /// The first word before whose start, or end, there are as many of the text's tokens.
  private mutating func bisect(
    _ words: [Range<String.Index>], _ end: KeyPath<Range<String.Index>, String.Index>,
    in text: String, _ all: [Int32], reaching count: Int
  ) -> Int {
    var (low, high) = (0, words.count)
    while low < high {
      let middle = (low + high) / 2
      let before = String(text[..<words[middle][keyPath: end]])
      if Self.common(all, encoder.ids(of: before)) >= count {
        high = middle
      } else {
        low = middle + 1
      }
    }
    return low
  }

  /// Runs of letters and digits; any other character is a word of its own.
  private static func words(_ text: String) -> [Range<String.Index>] {
    var words: [Range<String.Index>] = []
    var isOpen = false
    for place in text.indices {
      let character = text[place]
      if character.isWhitespace {
        isOpen = false
        continue
      }
      let end = text.index(after: place)
      let continues = character.isLetter || character.isNumber
      if isOpen, continues {
        words[words.count - 1] = words[words.count - 1].lowerBound..<end
      } else {
        words.append(place..<end)
      }
      isOpen = continues
    }
    return words
  }

  private static func common(_ one: [Int32], _ other: [Int32]) -> Int {
    zip(one, other).prefix { $0 == $1 }.count
  }
}

extension DataRecord {
  /// Where the answers stand in the context, each once: `answers` as SQuAD has them, or `answer` and
  /// `answer_start`; empty when there are none. Starts count Unicode scalars, as Python counts
  /// characters.
  func answers(in context: String) throws(PEFTError) -> [Range<String.Index>] {
    var found: [Range<String.Index>] = []
    for (text, start) in try writtenAnswers() {
      if let place = try place(of: text, at: start, in: context), !found.contains(place) {
        found.append(place)
      }
    }
    return found
  }

  /// The answers as the record has them.
  private func writtenAnswers() throws(PEFTError) -> [(text: JSONValue?, start: JSONValue?)] {
    guard let answers = values["answers"], !answers.isNull else {
      return [(values["answer"], values["answer_start"])]
    }
    if let list = answers.array { return list.map { ($0["text"], $0["answer_start"]) } }
    guard let texts = answers["text"]?.array, let starts = answers["answer_start"]?.array,
      texts.count == starts.count
    else {
      throw PEFTError(
        .invalidData, "'answers' is no mapping with the lists 'text' and 'answer_start'",
        at: location)
    }
    return zip(texts, starts).map { ($0, $1) }
  }

  /// The place of an answer; `nil` for one that is empty.
  private func place(
    of text: JSONValue?, at start: JSONValue?, in context: String
  ) throws(PEFTError) -> Range<String.Index>? {
    guard let answer = text?.string, !answer.isEmpty else {
      if let text, !text.isNull, text.string == nil {
        throw PEFTError(
          .invalidData, "the answer is \(text.kindName), a text was expected", at: location)
      }
      return nil
    }
    guard let offset = start?.int, offset >= 0 else {
      throw PEFTError(
        .invalidData,
        "'answer_start' is \((start ?? .null).text()), the place of '\(answer)' in "
          + "the context was expected", at: location)
    }
    let scalars = context.unicodeScalars
    let length = answer.unicodeScalars.count
    guard
      let first = scalars.index(scalars.startIndex, offsetBy: offset, limitedBy: scalars.endIndex),
      let last = scalars.index(first, offsetBy: length, limitedBy: scalars.endIndex),
      String(scalars[first..<last]) == answer
    else {
      throw PEFTError(
        .invalidData, "the context does not have '\(answer)' at character \(offset)", at: location,
        remedy: "'answer_start' counts Unicode characters from 0.")
    }
    return first..<last
  }
}
