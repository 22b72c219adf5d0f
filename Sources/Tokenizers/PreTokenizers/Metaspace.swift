import PEFTSupport

/// SentencePiece's white space: spaces become `▁`, words begin with it.
struct Metaspace: PreTokenizer {
  /// Which pieces get a `▁` in front if they have none.
  enum PrependScheme {
    case always
    /// Only the one that the input begins with.
    case first
    case never
  }

  /// The UTF-8 form of the character that stands for a space.
  let replacement: [UInt8]
  let prependScheme: PrependScheme
  /// Whether words become pieces.
  let cutsWords: Bool

  init(_ component: Component) throws(PEFTError) {
    var bytes: [UInt8] = []
    bytes.append(scalar: try component.scalar("replacement", default: "▁"))
    replacement = bytes
    prependScheme = try Self.scheme(component)
    cutsWords = try component.bool("split", default: true)
  }

  /// Reads `prepend_scheme`, or `add_prefix_space` of older files.
  static func scheme(_ component: Component) throws(PEFTError) -> PrependScheme {
    if try !component.bool("add_prefix_space", default: true) { return .never }
    let name = try component.string("prepend_scheme", default: "always")
    switch name {
    case "always": return .always
    case "first": return .first
    case "never": return .never
    default: throw component.unsupportedSetting("prepend_scheme", "'\(name)'")
    }
  }

  func split(_ list: inout PieceList) {
    replaceSpaces(&list)
    let replacement = replacement
    switch prependScheme {
    case .always: list.prepend(replacement) { piece, _ in !piece.starts(with: replacement) }
    case .first:
      list.prepend(replacement) { piece, startsInput in
        startsInput && !piece.starts(with: replacement)
      }
    case .never: break
    }
    if cutsWords { WordMarkerSplit(marker: replacement, cutsInside: true).split(&list) }
  }

  private func replaceSpaces(_ list: inout PieceList) {
    let space = UInt8(ascii: " ")
    if !list.bytes.contains(space) { return }
    var result: [UInt8] = []
    result.reserveCapacity(list.bytes.count + list.bytes.count / 2)
    for place in list.pieces.indices {
      let start = result.count
      let piece = list.pieces[place]
      for byte in list.bytes[piece] {
        if byte == space { result.append(contentsOf: replacement) } else { result.append(byte) }
      }
      // What the input begins with must still be seen to begin there, and nothing else.
      if piece.lowerBound > 0, start == 0 { list.startsInput = false }
      list.pieces[place] = start..<result.count
    }
    list.bytes = result
  }
}

/// Cuts before word markers.
struct WordMarkerSplit: PreTokenizer {
  let marker: [UInt8]
  /// Whether each marker begins a piece, and not only the first of several.
  let cutsInside: Bool

  func split(_ list: inout PieceList) {
    guard let first = marker.first else { return }
    let marker = marker
    list.mapPieces { text, piece, result in
      var start = piece.lowerBound
      var place = start
      var followsMarker = false
      while place < piece.upperBound {
        var isMarker = text[place] == first && piece.upperBound - place >= marker.count
        if isMarker {
          for offset in marker.indices where text[place + offset] != marker[offset] {
            isMarker = false
          }
        }
        if isMarker, place > start, cutsInside || !followsMarker {
          result.append(start..<place)
          start = place
        }
        followsMarker = isMarker
        place += isMarker ? marker.count : 1
      }
      if place > start { result.append(start..<place) }
    }
  }
}

/// A space before each piece that does not begin with one.
struct PrefixSpace: PreTokenizer {
  func split(_ list: inout PieceList) {
    list.prepend([0x20]) { piece, _ in piece.first != 0x20 }
  }
}
