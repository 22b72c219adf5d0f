import PEFTSupport

/// Tokens as bytes, by id and by content.
///
/// All bytes lie in one arena. The index is an open-addressed table of ids with 32 bits of hash, so
/// that a lookup compares bytes once as a rule. Keys are bytes because equality of `String` is
/// canonical and would merge tokens that differ only in Unicode normalisation.
struct Vocabulary: Sendable {
  /// Where the bytes of a token are; `start` is ``absent`` for ids without a token.
  struct Place: Sendable {
    var start: UInt32
    var length: UInt32
    static let absent = UInt32.max
  }

  /// The bytes of all tokens.
  let arena: [UInt8]
  /// The place of each id's bytes.
  let places: [Place]
  /// The number of tokens.
  let count: Int
  /// The ids of tokens that no text can equal; they are not found by content.
  let foreignIDs: [Int32]
  /// The longest token in bytes.
  let longest: Int
  /// Hash in the upper half, id + 1 in the lower; 0 is free. The length is a power of two.
  private let slots: [UInt64]

  /// Indexes tokens.
  ///
  /// - Parameters:
  ///   - arena: The bytes of the tokens.
  ///   - entries: Place and id of each token; of two with equal bytes the later one counts.
  ///   - unindexed: The number of entries, at the end of `entries`, that no text can equal; they are
  ///     known by id only.
  init(arena: [UInt8], entries: [(place: Place, id: Int32)], unindexed: Int = 0) {
    let largest = entries.reduce(-1) { max($0, Int($1.id)) }
    var places = [Place](repeating: Place(start: Place.absent, length: 0), count: largest + 1)
    var capacity = 16
    while capacity < entries.count * 2 { capacity *= 2 }
    var slots = [UInt64](repeating: 0, count: capacity)
    var longest = 0
    for (offset, entry) in entries.enumerated() {
      places[Int(entry.id)] = entry.place
      if offset >= entries.count - unindexed { continue }
      longest = max(longest, Int(entry.place.length))
      Self.insert(entry.place, entry.id, arena.span, places.span, &slots)
    }
    self.arena = arena
    self.places = places
    self.slots = slots
    self.longest = longest
    self.count = entries.count
    self.foreignIDs = entries.suffix(unindexed).map(\.id)
  }

  private static func insert(
    _ place: Place, _ id: Int32, _ arena: Span<UInt8>, _ places: Span<Place>,
    _ slots: inout [UInt64]
  ) {
    let start = Int(place.start)
    let range = start..<start + Int(place.length)
    let hash = hash(arena, range, from: seed)
    var slot = firstSlot(hash, slots.count)
    let entry = tag(hash) | UInt64(UInt32(bitPattern: id) + 1)
    while slots[slot] != 0 {
      let other = places[Int(UInt32(truncatingIfNeeded: slots[slot]) - 1)]
      if slots[slot] & tagMask == tag(hash), other.length == place.length,
        equal(arena, Int(other.start), arena, range)
      {
        break
      }
      slot = (slot + 1) & (slots.count - 1)
    }
    slots[slot] = entry
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
        let place = places[id]
        if Int(place.length) == range.count + prefix,
          Self.equal(arena.span, Int(place.start) + prefix, text, range)
        {
          return Int32(truncatingIfNeeded: id)
        }
      }
      slot = (slot &+ 1) & (slots.count &- 1)
    }
  }

  /// Whether the token `id` has the bytes `text[range]`.
  func isToken(_ id: Int32, _ text: Span<UInt8>, _ range: Range<Int>) -> Bool {
    guard let place = self.range(of: id), place.count == range.count else { return false }
    return Self.equal(arena.span, place.lowerBound, text, range)
  }

  /// Where the bytes of a token are in ``arena``.
  func range(of id: Int32) -> Range<Int>? {
    guard id >= 0, Int(id) < places.count else { return nil }
    let place = places[Int(id)]
    if place.start == Place.absent { return nil }
    return Int(place.start)..<Int(place.start) + Int(place.length)
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
    var hash = start
    for place in range { hash = Self.hash(hash, text[place]) }
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
    for offset in 0..<range.count where a[start + offset] != b[range.lowerBound + offset] {
      return false
    }
    return true
  }
}
