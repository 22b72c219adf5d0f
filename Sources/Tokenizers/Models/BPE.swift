import PEFTSupport

/// Byte-pair encoding, over bytes (GPT-2) or over characters with byte fallback (SentencePiece).
///
/// A class, because copies of all its tables would be counted at every call.
final class BPE: Sendable {
  let vocabulary: Vocabulary
  let unknownID: Int32?
  /// Whether ``vocabulary`` holds raw bytes and the symbols of a piece are its bytes.
  let isByteLevel: Bool
  /// Whether a piece that is a token as a whole is not built from merges.
  let ignoresMerges: Bool
  private let merges: MergeTable
  /// Whether a merge makes a token with `▁` after something else.
  private let mergesAcrossWords: Bool
  private let fusesUnknown: Bool
  /// Ids of one-byte symbols: all bytes at byte level, ASCII characters otherwise; -1 without.
  private let symbolIDs: [Int32]
  /// Ids of `<0x00>` to `<0xFF>`, -1 without; empty when there is no fallback.
  private let fallbackIDs: [Int32]

  init(
    _ component: Component, _ vocabulary: Vocabulary, _ pairs: JSONScanner.PairTable,
    isByteLevel: Bool
  ) throws(PEFTError) {
    self.vocabulary = vocabulary
    self.isByteLevel = isByteLevel
    ignoresMerges = try component.bool("ignore_merges", default: false)
    fusesUnknown = try component.bool("fuse_unk", default: false)
    unknownID = try Self.unknown(component, vocabulary)
    merges = try MergeTable(pairs, vocabulary, isByteLevel: isByteLevel, component)
    mergesAcrossWords = isByteLevel || Self.crossesWords(pairs)
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
      let text = try component.string(key, default: "")
      if !text.isEmpty { throw component.unsupportedSetting(key, "'\(text)'") }
    }
    if let dropout = component.value("dropout")?.double, dropout > 0 {
      throw component.unsupportedSetting("dropout", "\(dropout)")
    }
    symbolIDs = (0..<256).map { byte in
      byte < 0x80 || isByteLevel ? vocabulary.id(of: [UInt8(byte)]) ?? -1 : -1
    }
    let hasFallback = try component.bool("byte_fallback", default: false)
    fallbackIDs = hasFallback ? (0..<256).map { Self.fallback($0, vocabulary) } : []
    if isByteLevel, hasFallback, symbolIDs.contains(-1) {
      throw component.unsupportedSetting("byte_fallback", "true for a byte-level vocabulary")
    }
  }

  private static func unknown(
    _ component: Component, _ vocabulary: Vocabulary
  ) throws(PEFTError) -> Int32? {
    guard component.value("unk_token") != nil else { return nil }
    let token = try component.string("unk_token")
    guard let id = vocabulary.id(of: Array(token.utf8)) else {
      throw PEFTError(
        .malformedFile, "'model.unk_token' is '\(token)', which is not in the vocabulary",
        at: component.file)
    }
    return id
  }

  private static func fallback(_ byte: Int, _ vocabulary: Vocabulary) -> Int32 {
    let digits = String(byte, radix: 16, uppercase: true)
    return vocabulary.id(of: Array("<0x\(digits.count < 2 ? "0" : "")\(digits)>".utf8)) ?? -1
  }

  private static func crossesWords(_ pairs: JSONScanner.PairTable) -> Bool {
    let marker = wordMarker
    var start = 0
    for ends in pairs.ends {
      let token = pairs.text[start..<ends.second]
      start = ends.second
      var place = token.startIndex
      while token[place...].starts(with: marker) { place += marker.count }
      while place < token.endIndex {
        if token[place] == marker[0], token[place...].starts(with: marker) { return true }
        place += 1
      }
    }
    return false
  }

  /// SentencePiece's character for a space, `▁`.
  static let wordMarker = Array("▁".utf8)

  /// Whether text can be cut before each first `▁` of several without a change of its ids: no token
  /// has one after something else, and it is known itself, so that it ends a run of unknown symbols.
  var canCutWords: Bool {
    !mergesAcrossWords && !ignoresMerges && vocabulary.id(of: Self.wordMarker) != nil
  }

  /// Appends the ids of the piece `text[piece]`.
  func encode(
    _ text: Span<UInt8>, _ piece: Range<Int>, _ buffers: inout MergeBuffers,
    into ids: inout [Int32]
  ) {
    if ignoresMerges, let id = vocabulary.id(of: text, piece) {
      ids.append(id)
      return
    }
    buffers.ids.removeAll(keepingCapacity: true)
    if isByteLevel {
      appendByteSymbols(text, piece, &buffers.ids)
    } else {
      appendCharacterSymbols(text, piece, &buffers.ids)
    }
    buffers.merge(merges, into: &ids)
  }

  private func appendByteSymbols(
    _ text: Span<UInt8>, _ piece: Range<Int>, _ symbols: inout [Int32]
  ) {
    var unknown = UnknownRun(id: unknownID, fuses: fusesUnknown)
    let table = symbolIDs
    let symbolIDs = table.span
    for place in piece {
      let id = symbolIDs[Int(text[place])]
      if id >= 0 {
        unknown.end(&symbols)
        symbols.append(id)
      } else {
        unknown.add(&symbols)
      }
    }
    unknown.end(&symbols)
  }

  private func appendCharacterSymbols(
    _ text: Span<UInt8>, _ piece: Range<Int>, _ symbols: inout [Int32]
  ) {
    var unknown = UnknownRun(id: unknownID, fuses: fusesUnknown)
    var place = piece.lowerBound
    while place < piece.upperBound {
      let start = place
      let byte = text[place]
      place += byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4
      let known = byte < 0x80 ? symbolIDs[Int(byte)] : vocabulary.id(of: text, start..<place) ?? -1
      if known >= 0 {
        unknown.end(&symbols)
        symbols.append(known)
      } else if !appendFallback(text, start..<place, &symbols) {
        unknown.add(&symbols)
      }
    }
    unknown.end(&symbols)
  }

  private func appendFallback(
    _ text: Span<UInt8>, _ bytes: Range<Int>, _ symbols: inout [Int32]
  ) -> Bool {
    if fallbackIDs.isEmpty { return false }
    for place in bytes where fallbackIDs[Int(text[place])] < 0 { return false }
    for place in bytes { symbols.append(fallbackIDs[Int(text[place])]) }
    return true
  }
}

/// Consecutive symbols that the vocabulary lacks. Without an unknown token they vanish.
private struct UnknownRun {
  let id: Int32?
  let fuses: Bool
  private var isPending = false

  init(id: Int32?, fuses: Bool) {
    self.id = id
    self.fuses = fuses
  }

  @inline(__always)
  mutating func add(_ symbols: inout [Int32]) {
    guard id != nil else { return }
    if !fuses { end(&symbols) }
    isPending = true
  }

  // A byte fallback does not end a run: its bytes come out before the unknown token that was
  // pending, as in the reference.
  @inline(__always)
  mutating func end(_ symbols: inout [Int32]) {
    if isPending, let id { symbols.append(id) }
    isPending = false
  }
}
