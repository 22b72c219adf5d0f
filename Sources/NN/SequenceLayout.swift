/// How sequences of different lengths stand one after the other in the rows of a batch.
///
/// Nothing is padded: a batch of lengths 3 and 5 has eight rows. Layers that work row by row need
/// not know; attention takes the offsets.
public struct SequenceLayout: Sendable {
  /// First row of each sequence, and the number of rows at the end.
  public let offsets: [Int32]
  /// Position of each row within its sequence, counted as the model counts positions.
  public let positions: [Int32]
  /// Rows that may be attended to; `nil` when all may.
  public let keyMask: [UInt8]?

  /// Creates a layout.
  public init(offsets: [Int32], positions: [Int32], keyMask: [UInt8]? = nil) {
    precondition(positions.count == Int(offsets.last ?? 0))
    self.offsets = offsets
    self.positions = positions
    self.keyMask = keyMask
  }

  /// Creates a layout of sequences whose positions count from `start`.
  public init(lengths: [Int], start: Int = 0) {
    var offsets: [Int32] = [0]
    var positions: [Int32] = []
    for length in lengths {
      offsets.append(offsets.last! + Int32(length))
      positions.append(contentsOf: (0..<length).map { Int32(start + $0) })
    }
    self.init(offsets: offsets, positions: positions)
  }

  /// Creates a layout of the next rows of sequences that have begun, as in generation.
  ///
  /// - Parameters:
  ///   - seen: Rows of each sequence that came before.
  ///   - counts: Rows of each sequence that come now.
  public init(continuing seen: [Int], by counts: [Int]) {
    precondition(seen.count == counts.count)
    var offsets: [Int32] = [0]
    var positions: [Int32] = []
    for (start, count) in zip(seen, counts) {
      offsets.append(offsets.last! + Int32(count))
      positions.append(contentsOf: (start..<start + count).map { Int32($0) })
    }
    self.init(offsets: offsets, positions: positions)
  }

  /// Number of sequences.
  public var count: Int { offsets.count - 1 }
  /// Number of rows.
  public var rows: Int { positions.count }
  /// The rows of a sequence.
  public func range(_ sequence: Int) -> Range<Int> {
    Int(offsets[sequence])..<Int(offsets[sequence + 1])
  }
  /// The first row of every sequence.
  public var firstRows: [Int32] { Array(offsets.dropLast()) }
  /// The last row of every sequence.
  public var lastRows: [Int32] { offsets.dropFirst().map { $0 - 1 } }
}
