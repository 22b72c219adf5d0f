import PEFTSupport

/// Pairs of token ids that merge, with the rank of the merge and the id of what it makes.
///
/// An open-addressed table of key and value side by side, at most half full.
struct MergeTable: Sendable {
  /// The value of a pair that does not merge: it ranks after all others.
  static let none = UInt64.max

  private var slots: [UInt64]
  private let mask: Int

  /// Looks up the tokens of merges.
  ///
  /// - Parameters:
  ///   - pairs: The two halves of each merge as they are spelled, the best merge first.
  ///   - isByteLevel: Whether they are spelled in the byte-level alphabet.
  init(
    _ pairs: JSONScanner.PairTable, _ vocabulary: Vocabulary, isByteLevel: Bool,
    _ component: Component
  ) throws(PEFTError) {
    var capacity = 16
    while capacity < pairs.ends.count * 2 { capacity *= 2 }
    mask = capacity - 1
    slots = [UInt64](repeating: Self.none, count: capacity * 2)

    // Vocabularies list the results of merges in the order of the merges: the id after the last
    // result is nearly always the next one.
    var result: Int32 = -1
    var block = MergeBlock(pairs)
    var found: [(left: Int32, right: Int32, result: Int32)] = []
    while block.next(pairs, isByteLevel: isByteLevel) {
      block.readAhead(vocabulary)
      found.removeAll(keepingCapacity: true)
      for place in 0..<block.count {
        guard let merge = block.find(place, vocabulary, after: result) else {
          throw Self.unknownMerge(pairs, block.start + place, component)
        }
        result = merge.result
        found.append(merge)
      }
      for (place, merge) in found.enumerated() {
        insert(merge.left, merge.right, rank: block.start + place, result: merge.result)
      }
    }
  }

  private static func unknownMerge(
    _ pairs: JSONScanner.PairTable, _ rank: Int, _ component: Component
  ) -> PEFTError {
    let start = rank == 0 ? 0 : pairs.ends[rank - 1].second
    let ends = pairs.ends[rank]
    let left = String(decoding: pairs.text[start..<ends.first], as: UTF8.self)
    let right = String(decoding: pairs.text[ends.first..<ends.second], as: UTF8.self)
    return PEFTError(
      .malformedFile,
      "'model.merges[\(rank)]' joins '\(left)' and '\(right)': one of them, or the result, is not in"
        + " the vocabulary", at: component.file)
  }

  /// Adds a pair; one that was there takes the new rank, as in the reference.
  private mutating func insert(_ left: Int32, _ right: Int32, rank: Int, result: Int32) {
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

/// Some merges at a time, so that the loads of their lookups, which miss the caches, overlap.
private struct MergeBlock {
  private struct Half {
    var range = 0..<0
    var hash: UInt64 = 0
    var firstEntry: UInt64 = 0
    /// Whether the half has bytes at all, which it lacks with characters outside of the alphabet.
    var isKnown = false
  }

  private static let size = 64
  private let alphabet = ByteLevelAlphabet.bytes
  private var buffer: [UInt8]
  private var halves = [Half](repeating: Half(), count: 2 * size)
  /// The rank of the first merge of the block.
  private(set) var start = 0
  private(set) var count = 0

  init(_ pairs: JSONScanner.PairTable) {
    var largest = 0
    var before = 0
    for rank in stride(from: 0, to: pairs.ends.count, by: Self.size) {
      let end = pairs.ends[min(rank + Self.size, pairs.ends.count) - 1].second
      largest = max(largest, end - before)
      before = end
    }
    buffer = [UInt8](repeating: 0, count: largest)
  }

  /// Takes the bytes of the next merges; `false` after the last.
  mutating func next(_ pairs: JSONScanner.PairTable, isByteLevel: Bool) -> Bool {
    start += count
    count = min(Self.size, pairs.ends.count - start)
    var source = start == 0 ? 0 : pairs.ends[start - 1].second
    var end = 0
    let text = pairs.text.span
    let alphabet = isByteLevel ? alphabet : []
    for place in 0..<count {
      let ends = pairs.ends[start + place]
      halves[2 * place] = take(source..<ends.first, text, alphabet.span, &end)
      halves[2 * place + 1] = take(ends.first..<ends.second, text, alphabet.span, &end)
      source = ends.second
    }
    return count > 0
  }

  private mutating func take(
    _ range: Range<Int>, _ text: Span<UInt8>, _ alphabet: Span<Int16>, _ end: inout Int
  ) -> Half {
    var half = Half()
    let start = end
    var bytes = buffer.mutableSpan
    if !alphabet.isEmpty {
      guard
        let decoded = ByteLevelAlphabet.decode(text, range, alphabet, into: &bytes, at: end)
      else { return half }
      end = decoded
    } else {
      for place in range {
        bytes[end] = text[place]
        end += 1
      }
    }
    half.isKnown = true
    half.range = start..<end
    half.hash = Vocabulary.hash(bytes.span, half.range, from: Vocabulary.seed)
    return half
  }

  mutating func readAhead(_ vocabulary: borrowing Vocabulary) {
    for place in 0..<2 * count {
      halves[place].firstEntry = vocabulary.firstEntry(halves[place].hash)
    }
  }

  /// The ids of the two halves of a merge and of its result, which is expected after `last`.
  func find(
    _ place: Int, _ vocabulary: borrowing Vocabulary, after last: Int32
  ) -> (left: Int32, right: Int32, result: Int32)? {
    let left = halves[2 * place]
    let right = halves[2 * place + 1]
    let bytes = buffer.span
    guard left.isKnown, right.isKnown,
      let leftID = vocabulary.id(
        of: bytes, left.range, hash: left.hash, firstEntry: left.firstEntry),
      let rightID = vocabulary.id(
        of: bytes, right.range, hash: right.hash, firstEntry: right.firstEntry)
    else { return nil }
    let whole = left.range.lowerBound..<right.range.upperBound
    if vocabulary.isToken(last + 1, bytes, whole) { return (leftID, rightID, last + 1) }
    return vocabulary.id(of: bytes, whole).map { (leftID, rightID, $0) }
  }
}
