/// A piece of up to 15 bytes as two integers.
struct PieceKey {
  let low: UInt64
  /// Seven bytes, and the length, which is never 0, on top.
  let high: UInt64

  /// Packs `text[piece]`; `nil` when it is too long.
  @inline(__always)
  init?(_ text: Span<UInt8>, _ piece: Range<Int>) {
    let count = piece.count
    if count > 15 || count == 0 { return nil }
    var low: UInt64 = 0
    var high: UInt64 = 0
    if text.count - piece.lowerBound >= 16 {
      low = text.bytes.unsafeLoadUnaligned(fromByteOffset: piece.lowerBound, as: UInt64.self)
      if count < 8 {
        low &= ~(~0 &<< UInt64(count * 8))
      } else {
        high = text.bytes.unsafeLoadUnaligned(fromByteOffset: piece.lowerBound + 8, as: UInt64.self)
        high &= ~(~0 &<< UInt64((count - 8) * 8))
      }
    } else {
      for offset in 0..<count {
        let byte = UInt64(text[piece.lowerBound + offset])
        if offset < 8 {
          low |= byte &<< UInt64(offset * 8)
        } else {
          high |= byte &<< UInt64((offset - 8) * 8)
        }
      }
    }
    self.low = low
    self.high = high | UInt64(count) &<< 56
  }
}

/// The token ids of the pieces seen so far. It belongs to one encoder, so no lock guards it.
///
/// Text repeats its words: most pieces are found here after one hash and one comparison. The table
/// starts empty, so a single short text pays nothing for it, grows with what it holds and starts
/// again when it is full.
struct PieceCache {
  private struct Slot {
    var low: UInt64 = 0
    /// 0 marks a free slot.
    var high: UInt64 = 0
    var start: UInt32 = 0
    var count: UInt32 = 0
  }

  private static let largest = 1 << 17
  private var slots: [Slot] = []
  private var used = 0
  private var results: [Int32] = []

  /// Appends the ids of a piece if they are known.
  @inline(__always)
  func append(_ key: PieceKey, to ids: inout [Int32]) -> Bool {
    if slots.isEmpty { return false }
    let slots = slots.span
    var place = Self.hash(key) & (slots.count &- 1)
    while true {
      let slot = slots[place]
      if slot.high == 0 { return false }
      if slot.high == key.high, slot.low == key.low {
        let results = results.span
        let start = Int(slot.start)
        for offset in 0..<Int(slot.count) { ids.append(results[start + offset]) }
        return true
      }
      place = (place &+ 1) & (slots.count &- 1)
    }
  }

  /// Keeps the ids of a new piece, which are those of `ids` from `start` on.
  mutating func insert(_ key: PieceKey, _ ids: [Int32], from start: Int) {
    if (used + 1) * 2 > slots.count { grow() }
    var slot = Slot(low: key.low, high: key.high)
    slot.start = UInt32(results.count)
    slot.count = UInt32(ids.count - start)
    results.append(contentsOf: ids[start...])
    place(slot)
    used += 1
  }

  private mutating func grow() {
    let old = slots
    if old.count >= Self.largest {
      slots = [Slot](repeating: Slot(), count: Self.largest)
      results.removeAll(keepingCapacity: true)
      used = 0
      return
    }
    slots = [Slot](repeating: Slot(), count: max(64, old.count * 4))
    for slot in old where slot.high != 0 { place(slot) }
  }

  private mutating func place(_ slot: Slot) {
    let mask = slots.count - 1
    var place = Self.hash(low: slot.low, high: slot.high) & mask
    while slots[place].high != 0 { place = (place + 1) & mask }
    slots[place] = slot
  }

  @inline(__always)
  private static func hash(_ key: PieceKey) -> Int { hash(low: key.low, high: key.high) }

  @inline(__always)
  private static func hash(low: UInt64, high: UInt64) -> Int {
    var mixed = (low &* 0x9E37_79B9_7F4A_7C15) ^ (high &* 0xC2B2_AE3D_27D4_EB4F)
    mixed = (mixed ^ mixed &>> 32) &* 0x9E37_79B9_7F4A_7C15
    return Int(truncatingIfNeeded: mixed &>> 33)
  }
}
