/// Cuts at white space and drops it.
struct WhitespaceSplit: PreTokenizer {
  func split(_ list: inout PieceList) {
    mapPieces(&list) { text, piece, result in
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

/// Makes a piece of each punctuation character.
struct PunctuationSplit: PreTokenizer {
  /// What counts as punctuation.
  enum Mask {
    /// ASCII punctuation, symbols included, and `\p{P}` as BERT's tables know it.
    case bert
  }
  let mask: Mask

  func split(_ list: inout PieceList) {
    mapPieces(&list) { text, piece, result in
      var start = piece.lowerBound
      var place = start
      while place < piece.upperBound {
        let (value, length) = scalar(in: text, at: place)
        if ScalarClasses(value).isIn(UnicodeClassTable.bertPunctuation) {
          if place > start { result.append(start..<place) }
          result.append(place..<place + length)
          start = place + length
        }
        place += length
      }
      if place > start { result.append(start..<place) }
    }
  }
}
