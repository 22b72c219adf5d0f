import PEFTSupport

/// Tokens as bytes, by id and by content.
///
/// All bytes lie in one arena, in the order of the ids. The index is an open-addressed table of ids
/// with 32 bits of hash, so that a lookup compares bytes once as a rule. Keys are bytes because
/// equality of `String` is canonical and would merge tokens that differ only in Unicode normalisation.
struct Vocabulary: Sendable {
  /// The bytes of all tokens.
  let arena: [UInt8]
  /// Where the bytes of each id begin, and after the last where they end. An id without bytes has no
  /// token.
  private let starts: [UInt32]
  /// The number of tokens.
  let count: Int
  /// The ids of tokens that no text can equal: at byte level, those with characters outside of its
  /// alphabet. They are not found by content.
  let foreignIDs: [Int32]
  /// The longest token in bytes.
  let longest: Int
  /// Hash in the upper half, id + 1 in the lower; 0 is free. The length is a power of two.
  private let slots: [UInt64]

  /// Indexes tokens.
  ///
  /// - Parameters:
  ///   - table: The tokens as they are spelled, and their ids.
  ///   - isByteLevel: Whether they are spelled in the byte-level alphabet, and kept as raw bytes.
  init(_ table: JSONScanner.IntegerTable, isByteLevel: Bool) throws(PEFTError) {
    let places = try Self.places(table)
    var arena = [UInt8](repeating: 0, count: table.names.count)
    var starts = [UInt32](repeating: 0, count: places.count + 1)
    var foreign: [Int32] = []
    Self.fill(&arena, &starts, &foreign, table.names, places, isByteLevel)
    arena.removeSubrange(Int(starts[places.count])...)

    var capacity = 16
    while capacity < table.values.count * 2 { capacity *= 2 }
    var slots = [UInt64](repeating: 0, count: capacity)
    var longest = 0
    var nextForeign = foreign[...]
    for id in 0..<places.count where starts[id] < starts[id + 1] {
      if nextForeign.first == Int32(id) {
        nextForeign.removeFirst()
        continue
      }
      longest = max(longest, Int(starts[id + 1] - starts[id]))
      Self.insert(id, arena.span, starts.span, &slots)
    }
    self.arena = arena
    self.starts = starts
    self.slots = slots
    self.longest = longest
    self.foreignIDs = foreign
    self.count = table.values.count
  }

  /// Where the name of each id is in the table's names; empty for ids without one.
  private static func places(
    _ table: JSONScanner.IntegerTable
  ) throws(PEFTError) -> [Range<UInt32>] {
    let largest = table.values.max() ?? -1
    // Embedding tables have a row for each id: one beyond this is a mistake, and would only exhaust
    // the memory. So would a vocabulary with hardly any of its ids.
    guard largest < 1 << 24, largest < table.values.count * 16 + 1 << 16,
      table.values.allSatisfy({ $0 >= 0 }), table.names.count < Int(UInt32.max)
    else {
      throw PEFTError(.malformedFile, "'model.vocab' has token ids out of range")
    }
    var places = [Range<UInt32>](repeating: 0..<0, count: largest + 1)
    var start = 0
    for (end, id) in zip(table.ends, table.values) {
      if !places[id].isEmpty {
        let names = [Int(places[id].lowerBound)..<Int(places[id].upperBound), start..<end]
          .map { "'\(String(decoding: table.names[$0], as: UTF8.self))'" }
        throw PEFTError(
          .malformedFile, "'model.vocab' gives \(names[0]) and \(names[1]) the same id \(id)")
      }
      places[id] = UInt32(start)..<UInt32(end)
      start = end
    }
    return places
  }

  /// Writes the bytes of the tokens in the order of the ids.
  private static func fill(
    _ arena: inout [UInt8], _ starts: inout [UInt32], _ foreign: inout [Int32], _ names: [UInt8],
    _ places: [Range<UInt32>], _ isByteLevel: Bool
  ) {
    let alphabet = ByteLevelAlphabet.bytes
    var result = arena.mutableSpan
    var end = 0
    for (id, place) in places.enumerated() {
      let range = Int(place.lowerBound)..<Int(place.upperBound)
      if isByteLevel {
        if let decoded = ByteLevelAlphabet.decode(
          names.span, range, alphabet.span, into: &result, at: end)
        {
          end = decoded
          starts[id + 1] = UInt32(end)
          continue
        }
        foreign.append(Int32(id))
      }
      for place in range {
        result[end] = names[place]
        end += 1
      }
      starts[id + 1] = UInt32(end)
    }
  }

  private static func insert(
    _ id: Int, _ arena: Span<UInt8>, _ starts: Span<UInt32>, _ slots: inout [UInt64]
  ) {
    let range = Int(starts[id])..<Int(starts[id + 1])
    let hash = hash(arena, range, from: seed)
    var slot = firstSlot(hash, slots.count)
    while slots[slot] != 0 { slot = (slot + 1) & (slots.count - 1) }
    slots[slot] = tag(hash) | UInt64(id + 1)
  }

  // MARK: Lookup

  /// The id of the token with the bytes `text[range]`.
  func id(of text: Span<UInt8>, _ range: Range<Int>) -> Int32? {
    id(of: text, range, hash: Self.hash(text, range, from: Self.seed), prefix: 0)
  }

  /// The id of the token with these bytes.
  func id(of bytes: [UInt8]) -> Int32? { id(of: bytes.span, 0..<bytes.count) }

  /// The id of a token whose hash is known.
  ///
  /// - Parameters:
  ///   - hash: The hash of the whole token.
  ///   - prefix: How many bytes the token has before those of `text[range]`; they are trusted to be
  ///     the right ones when the hash is.
  @inline(__always)
  func id(of text: Span<UInt8>, _ range: Range<Int>, hash: UInt64, prefix: Int) -> Int32? {
    let slots = slots.span
    var slot = Self.firstSlot(hash, slots.count)
    while true {
      let entry = slots[slot]
      if entry == 0 { return nil }
      if entry & Self.tagMask == Self.tag(hash) {
        let id = Int(UInt32(truncatingIfNeeded: entry) &- 1)
        let start = Int(starts[id])
        if Int(starts[id + 1]) - start == range.count + prefix,
          Self.equal(arena.span, start + prefix, text, range)
        {
          return Int32(truncatingIfNeeded: id)
        }
      }
      slot = (slot &+ 1) & (slots.count &- 1)
    }
  }

  /// What a lookup of a hash reads first.
  @inline(__always)
  func firstEntry(_ hash: UInt64) -> UInt64 { slots[Self.firstSlot(hash, slots.count)] }

  /// The id of a token whose hash and first entry are known.
  @inline(__always)
  func id(
    of text: Span<UInt8>, _ range: Range<Int>, hash: UInt64, firstEntry: UInt64
  ) -> Int32? {
    let id = Int32(truncatingIfNeeded: UInt32(truncatingIfNeeded: firstEntry) &- 1)
    if firstEntry & Self.tagMask == Self.tag(hash), isToken(id, text, range) { return id }
    return self.id(of: text, range, hash: hash, prefix: 0)
  }

  /// Whether the token `id` has the bytes `text[range]`.
  func isToken(_ id: Int32, _ text: Span<UInt8>, _ range: Range<Int>) -> Bool {
    guard let place = self.range(of: id), place.count == range.count else { return false }
    return Self.equal(arena.span, place.lowerBound, text, range)
  }

  /// Where the bytes of a token are in ``arena``.
  func range(of id: Int32) -> Range<Int>? {
    guard id >= 0, Int(id) < starts.count - 1, starts[Int(id)] < starts[Int(id) + 1] else {
      return nil
    }
    return Int(starts[Int(id)])..<Int(starts[Int(id) + 1])
  }

  /// The bytes of a token.
  func bytes(of id: Int32) -> [UInt8]? { range(of: id).map { Array(arena[$0]) } }

  // MARK: Hash

  /// The hash of no bytes.
  static let seed: UInt64 = 0xCBF2_9CE4_8422_2325
  private static let tagMask: UInt64 = 0xFFFF_FFFF_0000_0000

  /// Continues a hash (FNV-1a) over bytes, so that the hashes of all prefixes come in one pass.
  @inline(__always)
  static func hash(_ text: Span<UInt8>, _ range: Range<Int>, from start: UInt64) -> UInt64 {
    precondition(range.upperBound <= text.count)
    var hash = start
    for place in range { hash = Self.hash(hash, text[unchecked: place]) }
    return hash
  }

  /// Continues a hash over one byte.
  @inline(__always)
  static func hash(_ hash: UInt64, _ byte: UInt8) -> UInt64 {
    (hash ^ UInt64(byte)) &* 0x100_0000_01B3
  }

  @inline(__always)
  private static func tag(_ hash: UInt64) -> UInt64 { hash & tagMask }

  @inline(__always)
  private static func firstSlot(_ hash: UInt64, _ count: Int) -> Int {
    // The upper bits depend on all bytes, the lower ones hardly: fold before masking.
    let mixed = (hash ^ hash &>> 29) &* 0x9E37_79B9_7F4A_7C15
    return Int(truncatingIfNeeded: mixed &>> 32) & (count &- 1)
  }

  @inline(__always)
  private static func equal(
    _ a: Span<UInt8>, _ start: Int, _ b: Span<UInt8>, _ range: Range<Int>
  ) -> Bool {
    // One check for all: the loop is the inner one of every lookup.
    precondition(start >= 0 && start + range.count <= a.count && range.upperBound <= b.count)
    for offset in 0..<range.count
    where a[unchecked: start &+ offset] != b[unchecked: range.lowerBound &+ offset] {
      return false
    }
    return true
  }
}
