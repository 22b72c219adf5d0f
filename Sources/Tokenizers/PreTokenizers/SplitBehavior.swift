import PEFTSupport

/// What becomes of the matches of a pattern.
enum SplitBehavior: String {
  /// They are dropped.
  case removed = "Removed"
  /// Each is a piece.
  case isolated = "Isolated"
  /// Adjoining ones are a piece together.
  case contiguous = "Contiguous"
  /// Each ends the piece before it.
  case mergedWithPrevious = "MergedWithPrevious"
  /// Each begins the piece after it.
  case mergedWithNext = "MergedWithNext"

  /// Reads the setting `behavior`.
  init(_ component: Component, default fallback: String? = nil) throws(PEFTError) {
    let name = try component.string("behavior", default: fallback)
    guard let value = SplitBehavior(rawValue: name) else {
      throw component.unsupportedSetting("behavior", "'\(name)'")
    }
    self = value
  }

  /// Appends the pieces of a text that is cut into matches and what is between them.
  func append(_ parts: [(range: Range<Int>, isMatch: Bool)], to result: inout [Range<Int>]) {
    switch self {
    case .removed: for part in parts where !part.isMatch { result.append(part.range) }
    case .isolated: for part in parts { result.append(part.range) }
    case .contiguous, .mergedWithPrevious:
      var before: Bool?
      for part in parts {
        let isJoined =
          self == .contiguous ? part.isMatch == before : part.isMatch && before == false
        if isJoined, let last = result.popLast() {
          result.append(last.lowerBound..<part.range.upperBound)
        } else {
          result.append(part.range)
        }
        before = part.isMatch
      }
    case .mergedWithNext:
      var pieces: [Range<Int>] = []
      var after: Bool?
      for part in parts.reversed() {
        if part.isMatch, after == false, let last = pieces.popLast() {
          pieces.append(part.range.lowerBound..<last.upperBound)
        } else {
          pieces.append(part.range)
        }
        after = part.isMatch
      }
      result.append(contentsOf: pieces.reversed())
    }
  }
}

/// Makes the step of a `Split` component.
func makeSplit(_ component: Component) throws(PEFTError) -> any PreTokenizer {
  let behavior = try SplitBehavior(component)
  let inverts = try component.bool("invert", default: false)
  switch try component.pattern() {
  case .literal(let text):
    return LiteralSplit(pattern: Array(text.utf8), behavior: behavior, inverts: inverts)
  case .regex(let text):
    guard let pattern = SplitPattern(regex: text) else {
      throw component.unsupportedSetting("pattern", "the regular expression \(text)")
    }
    // The known patterns match all of a text, so that both of these keep each match and no more.
    guard behavior == .isolated || behavior == .removed && inverts else {
      throw component.unsupportedSetting("behavior", "'\(behavior.rawValue)' with this pattern")
    }
    return PatternSplit(pattern)
  }
}

/// Cuts at the occurrences of a literal text.
struct LiteralSplit: PreTokenizer {
  let pattern: [UInt8]
  let behavior: SplitBehavior
  /// Whether what is between the occurrences counts as the match.
  let inverts: Bool

  func split(_ list: inout PieceList) {
    guard let first = pattern.first else { return }
    let bytes = list.bytes
    list.mapPieces { text, piece, result in
      var parts: [(range: Range<Int>, isMatch: Bool)] = []
      var done = piece.lowerBound
      var place = done
      while place + pattern.count <= piece.upperBound {
        if text[place] == first, bytes[place...].starts(with: pattern) {
          if done < place { parts.append((done..<place, inverts)) }
          parts.append((place..<place + pattern.count, !inverts))
          place += pattern.count
          done = place
        } else {
          place += 1
        }
      }
      if done < piece.upperBound { parts.append((done..<piece.upperBound, inverts)) }
      behavior.append(parts, to: &result)
    }
  }
}
