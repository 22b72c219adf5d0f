import PEFTSupport

/// Greedy longest-match subwords (BERT).
///
/// A class, because copies of all its tables would be counted at every call.
final class WordPiece: Sendable {
  let vocabulary: Vocabulary
  let unknownID: Int32?
  private let continuing: [UInt8]
  private let continuingHash: UInt64
  private let maximumScalars: Int

  init(_ component: Component, _ vocabulary: Vocabulary) throws(PEFTError) {
    let prefix = Array(try component.string("continuing_subword_prefix", default: "##").utf8)
    continuing = prefix
    continuingHash = Vocabulary.hash(prefix.span, 0..<prefix.count, from: Vocabulary.seed)
    maximumScalars = try component.int("max_input_chars_per_word", default: 100)
    self.vocabulary = vocabulary
    let unknown = try component.string("unk_token", default: "[UNK]")
    unknownID = vocabulary.id(of: Array(unknown.utf8))
    if unknownID == nil {
      throw PEFTError(
        .malformedFile, "'model.unk_token' is '\(unknown)', which is not in the vocabulary",
        at: component.file)
    }
  }

  /// Appends the ids of the word `text[piece]`; the unknown token when a part of it has none.
  func encode(_ text: Span<UInt8>, _ piece: Range<Int>, into ids: inout [Int32]) {
    let first = ids.count
    guard let unknownID else { return }
    if piece.count > maximumScalars, scalarCount(text, piece) > maximumScalars {
      ids.append(unknownID)
      return
    }
    var start = piece.lowerBound
    while start < piece.upperBound {
      let prefix = start == piece.lowerBound ? 0 : continuing.count
      guard let (id, end) = longestMatch(text, start..<piece.upperBound, prefix) else {
        ids.removeSubrange(first...)
        ids.append(unknownID)
        return
      }
      ids.append(id)
      start = end
    }
  }

  /// The longest token that starts where `rest` does, and where it ends.
  private func longestMatch(
    _ text: Span<UInt8>, _ rest: Range<Int>, _ prefix: Int
  ) -> (Int32, Int)? {
    // Hash forwards and remember the last hit: one pass instead of one per length.
    var hash = prefix == 0 ? Vocabulary.seed : continuingHash
    var best: (Int32, Int)?
    let end = min(rest.upperBound, rest.lowerBound + vocabulary.longest - prefix)
    var place = rest.lowerBound
    while place < end {
      hash = Vocabulary.hash(hash, text[place])
      place += 1
      if place < rest.upperBound, text[place] & 0xC0 == 0x80 { continue }
      if let id = match(text, rest.lowerBound..<place, hash, prefix) { best = (id, place) }
    }
    return best
  }

  @inline(__always)
  private func match(
    _ text: Span<UInt8>, _ range: Range<Int>, _ hash: UInt64, _ prefix: Int
  ) -> Int32? {
    guard let id = vocabulary.id(of: text, range, hash: hash, prefix: prefix) else { return nil }
    // The hash covered the prefix; make sure of its bytes.
    guard prefix > 0, let place = vocabulary.range(of: id) else { return id }
    return vocabulary.arena[place].starts(with: continuing) ? id : nil
  }

  private func scalarCount(_ text: Span<UInt8>, _ piece: Range<Int>) -> Int {
    var count = 0
    for place in piece where text[place] & 0xC0 != 0x80 { count += 1 }
    return count
  }
}
