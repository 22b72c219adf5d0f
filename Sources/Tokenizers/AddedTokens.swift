import PEFTSupport

/// A token that is matched in the text itself, before the model sees it.
struct AddedToken: Sendable {
  let id: Int32
  let content: [UInt8]
  /// Whether decoding may leave it out.
  let isSpecial: Bool
  /// Whether it is matched after normalisation, normalised itself.
  let isNormalized: Bool
  /// Whether it is matched only where no word character adjoins.
  let isSingleWord: Bool
  /// Whether it takes the white space before it.
  let stripsLeft: Bool
  /// Whether it takes the white space after it.
  let stripsRight: Bool

  init(_ component: Component) throws(PEFTError) {
    guard let id = component.value("id")?.int, id >= 0, id < 1 << 24 else {
      throw PEFTError(.malformedFile, "'\(component.path)' lacks a valid 'id'", at: component.file)
    }
    self.id = Int32(id)
    content = Array(try component.string("content").utf8)
    isSpecial = try component.bool("special", default: false)
    isNormalized = try component.bool("normalized", default: !isSpecial)
    isSingleWord = try component.bool("single_word", default: false)
    stripsLeft = try component.bool("lstrip", default: false)
    stripsRight = try component.bool("rstrip", default: false)
  }
}

/// Finds added tokens in text: the leftmost, and of those at one place the longest.
struct AddedTokenMatcher: Sendable {
  private let tokens: [AddedToken]
  private let patterns: [[UInt8]]
  /// For each first byte the tokens that begin with it, longest first; empty for most bytes.
  private let candidates: [[Int]]
  /// Whether a token begins with the byte.
  private let isFirst: [Bool]

  /// A part of a text: an added token, or what stands between.
  struct Part {
    let token: Int32?
    let range: Range<Int>
  }

  /// Creates a matcher for tokens with the given spellings.
  init(_ tokens: [AddedToken], patterns: [[UInt8]]) {
    self.tokens = tokens
    self.patterns = patterns
    var candidates = [[Int]](repeating: [], count: 256)
    for place in tokens.indices {
      if let first = patterns[place].first { candidates[Int(first)].append(place) }
    }
    for first in candidates.indices {
      // Of equal spellings the later one counts, as in a dictionary.
      candidates[first].sort {
        (patterns[$0].count, $0) > (patterns[$1].count, $1)
      }
    }
    self.candidates = candidates
    isFirst = candidates.map { !$0.isEmpty }
  }

  /// Whether `text` has a byte that a token begins with.
  func mayMatch(_ text: [UInt8]) -> Bool {
    let isFirst = isFirst.span
    for byte in text where isFirst[Int(byte)] { return true }
    return false
  }

  /// Cuts `text` at its added tokens and calls `body` for each part in order.
  func forEachPart(of text: [UInt8], _ body: (Part) -> Void) {
    if text.isEmpty { return }
    var done = 0
    let span = text.span
    let isFirst = isFirst.span
    var place = 0
    while place < span.count {
      guard isFirst[Int(span[place])], let found = match(span, at: place) else {
        place += 1
        continue
      }
      let match = place..<place + patterns[found].count
      place = match.upperBound
      guard let range = accept(tokens[found], span, match, done) else { continue }
      if done < range.lowerBound { body(Part(token: nil, range: done..<range.lowerBound)) }
      body(Part(token: tokens[found].id, range: range))
      done = range.upperBound
    }
    if done < text.count { body(Part(token: nil, range: done..<text.count)) }
  }

  @inline(__always)
  private func match(_ text: Span<UInt8>, at place: Int) -> Int? {
    search: for candidate in candidates[Int(text[place])] {
      let pattern = patterns[candidate]
      if pattern.count > text.count - place { continue }
      for offset in 0..<pattern.count where pattern[offset] != text[place + offset] {
        continue search
      }
      return candidate
    }
    return nil
  }

  /// The text that a match takes, or `nil` when it does not count.
  private func accept(
    _ token: AddedToken, _ text: Span<UInt8>, _ match: Range<Int>, _ done: Int
  ) -> Range<Int>? {
    var start = match.lowerBound
    var end = match.upperBound
    if token.isSingleWord {
      if start > 0, isWord(scalar(in: text, before: start).value) { return nil }
      if end < text.count, isWord(scalar(in: text, at: end).value) { return nil }
    }
    // A match may begin inside the white space that the token before it took.
    while token.stripsLeft, start > done {
      let (value, length) = scalar(in: text, before: start)
      guard ScalarClasses(value).isIn(ScalarClass.whitespace) else { break }
      start -= length
    }
    while token.stripsRight, end < text.count {
      let (value, length) = scalar(in: text, at: end)
      guard ScalarClasses(value).isIn(ScalarClass.whitespace) else { break }
      end += length
    }
    return start..<end
  }

  private func isWord(_ scalar: UInt32) -> Bool { ScalarClasses(scalar).isIn(ScalarClass.word) }
}

/// The tokens beside the model's vocabulary.
struct AddedTokens: Sendable {
  /// Those matched in the text as given.
  let plain: AddedTokenMatcher
  /// Those matched in normalised text.
  let normalized: AddedTokenMatcher
  /// Their contents by id.
  let contents: [Int32: [UInt8]]
  /// What they are to the decoder, by id: those that are normalised on the way in stay so.
  let spellings: [Int32: [UInt8]]
  /// Their ids by content.
  let ids: [[UInt8]: Int32]
  /// The ids that decoding may leave out.
  let specialIDs: Set<Int32>

  init(_ tokens: [AddedToken], normalizers: [any Normalizer]) {
    plain = Self.matcher(tokens.filter { !$0.isNormalized }) { $0.content }
    func spelling(_ token: AddedToken) -> [UInt8] {
      var text = token.content
      if token.isNormalized { for normalizer in normalizers { normalizer.normalize(&text) } }
      return text
    }
    normalized = Self.matcher(tokens.filter(\.isNormalized), spelling)
    spellings = Dictionary(tokens.map { ($0.id, spelling($0)) }) { $1 }
    contents = Dictionary(tokens.map { ($0.id, $0.content) }) { $1 }
    ids = Dictionary(tokens.map { ($0.content, $0.id) }) { $1 }
    specialIDs = Set(tokens.filter(\.isSpecial).map(\.id))
  }

  private static func matcher(
    _ tokens: [AddedToken], _ pattern: (AddedToken) -> [UInt8]
  ) -> AddedTokenMatcher {
    AddedTokenMatcher(tokens, patterns: tokens.map(pattern))
  }
}
