/// Pairs of token ids that merge, with the rank of the merge and the id of what it makes.
///
/// An open-addressed table of key and value side by side, at most half full.
struct MergeTable: Sendable {
  /// The value of a pair that does not merge: it ranks after all others.
  static let none = UInt64.max

  private var slots: [UInt64]
  private let mask: Int

  /// Creates a table for up to `count` pairs.
  init(capacity count: Int) {
    var capacity = 16
    while capacity < count * 2 { capacity *= 2 }
    mask = capacity - 1
    slots = [UInt64](repeating: Self.none, count: capacity * 2)
  }

  /// Adds a pair; one that was there takes the new rank, as in the reference.
  mutating func insert(_ left: Int32, _ right: Int32, rank: Int, result: Int32) {
    let key = Self.key(left, right)
    var slot = Self.hash(key) & mask
    while slots[slot * 2] != Self.none, slots[slot * 2] != key { slot = (slot + 1) & mask }
    slots[slot * 2] = key
    slots[slot * 2 + 1] = UInt64(rank) << 32 | UInt64(UInt32(bitPattern: result))
  }

  /// The rank of a pair in the upper half and the id of its merge in the lower; ``none`` without.
  @inline(__always)
  subscript(_ left: Int32, _ right: Int32) -> UInt64 {
    let key = Self.key(left, right)
    let slots = slots.span
    var slot = Self.hash(key) & mask
    while true {
      let found = slots[slot &* 2]
      if found == key { return slots[slot &* 2 &+ 1] }
      if found == Self.none { return Self.none }
      slot = (slot &+ 1) & mask
    }
  }

  /// The id that a value of the table stands for.
  @inline(__always)
  static func result(_ value: UInt64) -> Int32 { Int32(truncatingIfNeeded: value) }

  @inline(__always)
  private static func key(_ left: Int32, _ right: Int32) -> UInt64 {
    UInt64(UInt32(bitPattern: left)) &<< 32 | UInt64(UInt32(bitPattern: right))
  }

  @inline(__always)
  private static func hash(_ key: UInt64) -> Int {
    var mixed = key &* 0x9E37_79B9_7F4A_7C15
    mixed = (mixed ^ mixed &>> 32) &* 0xD6E8_FEB8_6659_FD93
    return Int(truncatingIfNeeded: mixed &>> 34)
  }
}
