/// What a character is to a ``SplitPattern``; bits, so that a run may be of several kinds.
struct CharacterKind: OptionSet {
  let rawValue: UInt8

  /// White space but carriage return and line feed.
  static let space = CharacterKind(rawValue: 1)
  /// Carriage return and line feed.
  static let newline = CharacterKind(rawValue: 2)
  static let number = CharacterKind(rawValue: 4)
  /// Upper and title case letters.
  static let upper = CharacterKind(rawValue: 8)
  static let lower = CharacterKind(rawValue: 16)
  /// Letters without case.
  static let caseless = CharacterKind(rawValue: 32)
  static let mark = CharacterKind(rawValue: 64)
  static let other = CharacterKind(rawValue: 128)

  static let letter: CharacterKind = [.upper, .lower, .caseless]
  static let whitespace: CharacterKind = [.space, .newline]
  /// Neither letter nor number nor white space.
  static let symbol: CharacterKind = [.mark, .other]

  @inline(__always)
  func isIn(_ kinds: CharacterKind) -> Bool { rawValue & kinds.rawValue != 0 }
}

/// Cuts text as a ``SplitPattern`` says.
///
/// Each `end…` function takes the place where a match begins and returns where it ends, always
/// further on: the patterns match any text.
struct PatternSplit: PreTokenizer {
  let pattern: SplitPattern
  /// The kinds of the ASCII characters.
  private let ascii: [CharacterKind]
  /// The kinds of other characters by their numbers in ``ScalarClasses``.
  private let kinds: [CharacterKind]

  init(_ pattern: SplitPattern) {
    self.pattern = pattern
    func kind(_ classes: ScalarClasses) -> CharacterKind {
      typealias Table = UnicodeClassTable
      if classes.isIn(Table.whitespace) { return .space }
      if classes.isIn(Table.upper | Table.title) { return .upper }
      if classes.isIn(Table.lower) { return .lower }
      if classes.isIn(Table.modifier | Table.otherLetter) { return .caseless }
      if classes.isIn(Table.mark) { return pattern.joinsMarks ? .caseless : .mark }
      return classes.isIn(Table.number) ? .number : .other
    }
    kinds = (0..<64).map { kind(ScalarClasses(number: $0)) }
    ascii = (0..<128).map { $0 == 0x0A || $0 == 0x0D ? .newline : kind(ScalarClasses($0)) }
  }

  func split(_ list: inout PieceList) {
    switch pattern.shape {
    case .gpt2: split(&list) { endOfGPT2($0, $1, $2) }
    case .cl100k: split(&list) { endOfCL100K($0, $1, $2) }
    case .o200k: split(&list) { endOfO200K($0, $1, $2) }
    }
  }

  @inline(__always)
  private func split(
    _ list: inout PieceList, _ endOfMatch: (_ text: Span<UInt8>, _ place: Int, _ end: Int) -> Int
  ) {
    list.mapPieces { text, piece, result in
      var place = piece.lowerBound
      while place < piece.upperBound {
        let start = place
        place = endOfMatch(text, start, piece.upperBound)
        result.append(start..<place)
      }
    }
  }

  // MARK: The shapes

  @inline(__always)
  private func endOfGPT2(_ text: Span<UInt8>, _ place: Int, _ end: Int) -> Int {
    if text[place] == UInt8(ascii: "'"), let end = endOfContraction(text, place, end, true) {
      return end
    }
    var start = place
    var (kind, length) = kind(text, place)
    if text[place] == 0x20, place + 1 < end {
      let next = self.kind(text, place + 1)
      if !next.kind.isIn(.whitespace) {
        start = place + 1
        (kind, length) = next
      }
    }
    if kind.isIn(.whitespace) { return endOfSpaces(text, place, end) }
    let run: CharacterKind = kind.isIn(.letter) ? .letter : kind.isIn(.number) ? .number : .symbol
    return endOfRun(text, start + length, end, run)
  }

  @inline(__always)
  private func endOfCL100K(_ text: Span<UInt8>, _ place: Int, _ end: Int) -> Int {
    if text[place] == UInt8(ascii: "'"), let end = endOfContraction(text, place, end, false) {
      return end
    }
    let (kind, length) = kind(text, place)
    if kind.isIn(.letter) { return endOfRun(text, place + length, end, .letter) }
    if !kind.isIn([.newline, .number]), place + length < end {
      let next = self.kind(text, place + length)
      if next.kind.isIn(.letter) {
        return endOfRun(text, place + length + next.length, end, .letter)
      }
    }
    return endOfNumberOrSymbols(text, place, end, (kind, length), slash: false)
  }

  @inline(__always)
  private func endOfO200K(_ text: Span<UInt8>, _ place: Int, _ end: Int) -> Int {
    let first = kind(text, place)
    let takesPrefix = first.kind.isIn([.space, .mark, .other]) && place + first.length < end
    let start = takesPrefix ? place + first.length : place
    // The optional symbol before the word is taken if the word can still be matched, and otherwise
    // left; that makes a difference for marks, which are symbols and parts of words.
    if let word = endOfLowerWord(text, start, end) ?? endOfLowerWord(text, place, end) {
      return endOfWord(text, word, end)
    }
    var word = endOfRun(text, start, end, [.upper, .caseless, .mark])
    if word > start { return endOfWord(text, word, end) }
    word = endOfRun(text, place, end, [.upper, .caseless, .mark])
    if word > place { return endOfWord(text, word, end) }
    return endOfNumberOrSymbols(text, place, end, first, slash: true)
  }

  /// `[upper]*[lower]+`, where letters without case and marks are both.
  private func endOfLowerWord(_ text: Span<UInt8>, _ start: Int, _ end: Int) -> Int? {
    var place = start
    // The longest run of the first set whose last character may be given to the second.
    var endOfBoth: Int?
    while place < end {
      let (kind, length) = kind(text, place)
      if !kind.isIn([.upper, .caseless, .mark]) { break }
      place += length
      if !kind.isIn(.upper) { endOfBoth = place }
    }
    let word = endOfRun(text, place, end, [.lower, .caseless, .mark])
    return word > place ? word : endOfBoth
  }

  /// The end of a word with the contraction that may follow.
  private func endOfWord(_ text: Span<UInt8>, _ word: Int, _ end: Int) -> Int {
    guard pattern.knowsContractions, word < end, text[word] == UInt8(ascii: "'") else {
      return word
    }
    return endOfContraction(text, word, end, false) ?? word
  }

  /// What cl100k and o200k have in common: digits, symbols with line breaks after them, white space.
  @inline(__always)
  private func endOfNumberOrSymbols(
    _ text: Span<UInt8>, _ place: Int, _ end: Int, _ first: (kind: CharacterKind, length: Int),
    slash: Bool
  ) -> Int {
    if first.kind.isIn(.number) { return endOfDigits(text, place, end) }
    var symbols = place
    if text[place] == 0x20, place + 1 < end { symbols += 1 }
    let run = endOfRun(text, symbols, end, .symbol)
    if run > symbols {
      var place = run
      while place < end {
        let byte = text[place]
        guard byte == 0x0A || byte == 0x0D || slash && byte == UInt8(ascii: "/") else { break }
        place += 1
      }
      return place
    }
    return endOfLinesOrSpaces(text, place, end)
  }

  // MARK: Parts

  /// The kind of the character at `place` and its length.
  @inline(__always)
  private func kind(_ text: Span<UInt8>, _ place: Int) -> (kind: CharacterKind, length: Int) {
    let byte = text[place]
    if byte < 0x80 { return (ascii[Int(byte)], 1) }
    let (value, length) = scalar(in: text, at: place)
    return (kinds[Int(ScalarClasses(value).number)], length)
  }

  /// Where a run of characters of the given kinds ends, which may be where it begins.
  @inline(__always)
  private func endOfRun(
    _ text: Span<UInt8>, _ start: Int, _ end: Int, _ kinds: CharacterKind
  ) -> Int {
    var place = start
    while place < end {
      let (kind, length) = kind(text, place)
      if !kind.isIn(kinds) { break }
      place += length
    }
    return place
  }

  private func endOfDigits(_ text: Span<UInt8>, _ start: Int, _ end: Int) -> Int {
    var place = start
    var count = 0
    while place < end, count < pattern.digits {
      let (kind, length) = kind(text, place)
      if !kind.isIn(.number) { break }
      place += length
      count += 1
    }
    return place
  }

  /// The end of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at an apostrophe.
  private func endOfContraction(
    _ text: Span<UInt8>, _ place: Int, _ end: Int, _ isCaseSensitive: Bool
  ) -> Int? {
    guard place + 1 < end else { return nil }
    let fold: UInt8 = isCaseSensitive ? 0 : 0x20
    let first = text[place + 1]
    // The long s is an s to a match that ignores case.
    if first == 0xC5, !isCaseSensitive, text[place + 2] == 0xBF { return place + 3 }
    switch first | fold {
    case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"):
      return place + 2
    case UInt8(ascii: "r"), UInt8(ascii: "v"):
      return place + 2 < end && text[place + 2] | fold == UInt8(ascii: "e") ? place + 3 : nil
    case UInt8(ascii: "l"):
      return place + 2 < end && text[place + 2] | fold == UInt8(ascii: "l") ? place + 3 : nil
    default: return nil
    }
  }

  /// `\s+(?!\S)|\s+`: white space without its last character, unless the text ends with it or it has
  /// no other.
  private func endOfSpaces(_ text: Span<UInt8>, _ start: Int, _ end: Int) -> Int {
    var place = start
    var last = start
    while place < end {
      let (kind, length) = kind(text, place)
      if !kind.isIn(.whitespace) { break }
      last = place
      place += length
    }
    return place == end || last == start ? place : last
  }

  /// `\s*[\r\n]+` before the rule of ``endOfSpaces``: white space up to its last line break.
  private func endOfLinesOrSpaces(_ text: Span<UInt8>, _ start: Int, _ end: Int) -> Int {
    var place = start
    var endOfLines = start
    while place < end {
      let (kind, length) = kind(text, place)
      if !kind.isIn(.whitespace) { break }
      place += length
      if kind.isIn(.newline) { endOfLines = place }
    }
    return endOfLines > start ? endOfLines : endOfSpaces(text, start, end)
  }
}
