/// Buffers for the merges of one piece.
struct MergeBuffers {
  /// The symbols of the piece, as token ids.
  var ids: [Int32] = []
  /// What each symbol and the next merge to, as the ``MergeTable`` says.
  fileprivate var values: [UInt64] = []
  fileprivate var next: [Int32] = []
  fileprivate var previous: [Int32] = []
  fileprivate var heap = MergeHeap()

  /// Up to this length a scan for the best pair beats a heap.
  private static let longestScan = 100

  /// Merges ``ids``, always the pair of the lowest rank first, of equal ones the leftmost, and
  /// appends what is left.
  mutating func merge(_ table: borrowing MergeTable, into result: inout [Int32]) {
    let count = ids.count
    if count < 2 {
      result.append(contentsOf: ids)
      return
    }
    values.removeAll(keepingCapacity: true)
    for place in 0..<count - 1 { values.append(table[ids[place], ids[place + 1]]) }
    values.append(MergeTable.none)
    if count <= Self.longestScan {
      Self.scan(&ids, &values, table, into: &result)
    } else {
      mergeByHeap(table, into: &result)
    }
  }

  private static func scan(
    _ symbols: inout [Int32], _ merges: inout [UInt64], _ table: borrowing MergeTable,
    into result: inout [Int32]
  ) {
    var count = symbols.count
    var ids = symbols.mutableSpan
    var values = merges.mutableSpan
    while true {
      var best = MergeTable.none
      var place = 0
      for candidate in 0..<count where values[candidate] < best {
        best = values[candidate]
        place = candidate
      }
      if best == MergeTable.none { break }
      ids[place] = MergeTable.result(best)
      count -= 1
      var shifted = place + 1
      while shifted < count {
        ids[shifted] = ids[shifted + 1]
        values[shifted] = values[shifted + 1]
        shifted += 1
      }
      values[place] = place + 1 < count ? table[ids[place], ids[place + 1]] : MergeTable.none
      if place > 0 { values[place - 1] = table[ids[place - 1], ids[place]] }
    }
    for place in 0..<count { result.append(ids[place]) }
  }

  private mutating func mergeByHeap(_ table: borrowing MergeTable, into result: inout [Int32]) {
    let count = ids.count
    next.removeAll(keepingCapacity: true)
    previous.removeAll(keepingCapacity: true)
    heap.removeAll()
    for place in 0..<count {
      next.append(Int32(place + 1))
      previous.append(Int32(place - 1))
      heap.appendUnordered(values[place], place)
    }
    heap.order()
    while let (value, place) = heap.pop() {
      // A symbol that was swallowed or has another neighbour by now leaves its old entry behind.
      guard values[place] == value else { continue }
      let swallowed = Int(next[place])
      let after = Int(next[swallowed])
      ids[place] = MergeTable.result(value)
      values[swallowed] = MergeTable.none
      next[place] = Int32(after)
      if after < count { previous[after] = Int32(place) }
      values[place] = after < count ? table[ids[place], ids[after]] : MergeTable.none
      heap.push(values[place], place)
      if previous[place] >= 0 {
        let before = Int(previous[place])
        values[before] = table[ids[before], ids[place]]
        heap.push(values[before], before)
      }
    }
    var place = 0
    while place < count {
      result.append(ids[place])
      place = Int(next[place])
    }
  }
}

/// A binary heap of merges, by rank and then by place.
private struct MergeHeap {
  private struct Entry {
    /// Rank above, place below.
    let key: UInt64
    let result: Int32

    init(_ value: UInt64, _ place: Int) {
      key = value & ~0xFFFF_FFFF | UInt64(place)
      result = MergeTable.result(value)
    }

    var value: UInt64 { key & ~0xFFFF_FFFF | UInt64(UInt32(bitPattern: result)) }
    var place: Int { Int(UInt32(truncatingIfNeeded: key)) }
  }

  private var entries: [Entry] = []

  mutating func removeAll() { entries.removeAll(keepingCapacity: true) }

  /// Adds an entry; ``order()`` must follow before anything is taken out.
  mutating func appendUnordered(_ value: UInt64, _ place: Int) {
    if value != MergeTable.none { entries.append(Entry(value, place)) }
  }

  mutating func order() {
    for place in (0..<entries.count / 2).reversed() { sink(place) }
  }

  mutating func push(_ value: UInt64, _ place: Int) {
    if value == MergeTable.none { return }
    entries.append(Entry(value, place))
    var child = entries.count - 1
    while child > 0 {
      let parent = (child - 1) / 2
      if entries[parent].key <= entries[child].key { break }
      entries.swapAt(parent, child)
      child = parent
    }
  }

  mutating func pop() -> (value: UInt64, place: Int)? {
    guard let top = entries.first else { return nil }
    let last = entries.removeLast()
    if !entries.isEmpty {
      entries[0] = last
      sink(0)
    }
    return (top.value, top.place)
  }

  private mutating func sink(_ start: Int) {
    let entry = entries[start]
    var place = start
    while true {
      var child = place * 2 + 1
      if child >= entries.count { break }
      if child + 1 < entries.count, entries[child + 1].key < entries[child].key { child += 1 }
      if entry.key <= entries[child].key { break }
      entries[place] = entries[child]
      place = child
    }
    entries[place] = entry
  }
}
