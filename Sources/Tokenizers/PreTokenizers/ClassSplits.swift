/// Cuts at white space and drops it.
struct WhitespaceSplit: PreTokenizer {
  func split(_ list: inout PieceList) {
    list.mapPieces { text, piece, result in
      var start = piece.lowerBound
      var place = start
      while place < piece.upperBound {
        let (value, length) = scalar(in: text, at: place)
        let isSpace =
          value < 0x80
          ? value == 0x20 || (value >= 0x09 && value <= 0x0D)
          : ScalarClasses(value).isIn(ScalarClass.whitespace)
        if isSpace {
          if place > start { result.append(start..<place) }
          start = place + length
        }
        place += length
      }
      if place > start { result.append(start..<place) }
    }
  }
}

/// Cuts at the characters of a class, each of which is a match.
struct ClassSplit: PreTokenizer {
  /// A class.
  enum Mask {
    /// ASCII punctuation, symbols included, and `\p{P}` as BERT's tables know it.
    case bertPunctuation
    /// `\p{N}`.
    case number

    var bits: UInt64 {
      switch self {
      case .bertPunctuation: return UnicodeClassTable.bertPunctuation
      case .number: return ScalarClass.number
      }
    }
  }
  let mask: Mask
  let behavior: SplitBehavior

  func split(_ list: inout PieceList) {
    let bits = mask.bits
    list.mapPieces { text, piece, result in
      if behavior == .isolated {
        // The case of every BERT model, without the list of parts.
        Self.parts(text, piece, bits) { range, _ in result.append(range) }
        return
      }
      var parts: [(range: Range<Int>, isMatch: Bool)] = []
      Self.parts(text, piece, bits) { parts.append(($0, $1)) }
      behavior.append(parts, to: &result)
    }
  }

  @inline(__always)
  private static func parts(
    _ text: Span<UInt8>, _ piece: Range<Int>, _ mask: UInt64,
    _ body: (_ range: Range<Int>, _ isMatch: Bool) -> Void
  ) {
    var start = piece.lowerBound
    var place = start
    while place < piece.upperBound {
      let (value, length) = scalar(in: text, at: place)
      if ScalarClasses(value).isIn(mask) {
        if place > start { body(start..<place, false) }
        body(place..<place + length, true)
        start = place + length
      }
      place += length
    }
    if place > start { body(start..<place, false) }
  }
}

/// Runs of word characters and runs of what is neither word nor white space: `\w+|[^\w\s]+`.
struct WordSplit: PreTokenizer {
  func split(_ list: inout PieceList) {
    list.mapPieces { text, piece, result in
      var start = piece.lowerBound
      var place = start
      // 0 is white space, 1 a word, 2 anything else.
      var runKind = 0
      while place < piece.upperBound {
        let (value, length) = scalar(in: text, at: place)
        let classes = ScalarClasses(value)
        let kind =
          classes.isIn(ScalarClass.word) ? 1 : classes.isIn(ScalarClass.whitespace) ? 0 : 2
        if kind != runKind {
          if runKind != 0 { result.append(start..<place) }
          start = place
          runKind = kind
        }
        place += length
      }
      if runKind != 0, place > start { result.append(start..<place) }
    }
  }
}
