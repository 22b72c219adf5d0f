import BLASKernels

/// The transpose of a matrix, as a view: a weight that is stored with one row for each input, in
/// the orientation that layers and tuners expect.
///
/// Products cost the same as those of the matrix itself. Merging takes one full-size temporary.
public struct TransposedMatrix: WeightMatrix {
  /// The matrix as it is stored, `[columns, rows]`.
  public let stored: any WeightMatrix

  /// Creates a view.
  public init(_ stored: any WeightMatrix) { self.stored = stored }

  /// Number of output features.
  public var rows: Int { stored.columns }
  /// Number of input features.
  public var columns: Int { stored.rows }
  /// The storage format's name.
  public var format: String { stored.format }
  /// Bytes that the stored form takes.
  public var byteCount: Int { stored.byteCount }

  /// `y = beta·y + x·Wᵀ`, `[n, columns]` to `[n, rows]`.
  public func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>) {
    stored.multiplyTransposed(x, count: n, beta: beta, into: y)
  }

  /// `x = beta·x + y·W`, `[n, rows]` to `[n, columns]`.
  public func multiplyTransposed(
    _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>
  ) {
    stored.multiply(y, count: n, beta: beta, into: x)
  }

  /// Copies rows as floats, `[ids.count, columns]`.
  public func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>) {
    for (place, id) in ids.enumerated() {
      let row = dequantized(rows: Int(id)..<Int(id) + 1)
      output[place * columns..<(place + 1) * columns].copy(from: row.slice)
    }
  }

  /// Rows as floats, `[range.count, columns]`.
  public func dequantized(rows range: Range<Int>) -> Tensor {
    guard !range.isEmpty else { return .zeros([0, columns]) }
    return Tensor.filled([range.count, columns]) { output in
      for block in stored.rowBlocks {
        let values = stored.dequantized(rows: block)
        Rows.transpose(
          rows: block.count, columns: range.count, values.slice[range.lowerBound...], ldx: rows,
          into: output[block.lowerBound...], ldy: columns)
      }
    }
  }

  /// ‖row‖² of every row, `[rows]`.
  public func squaredRowNorms() -> Tensor {
    var sums = [Double](repeating: 0, count: rows)
    for block in stored.rowBlocks {
      let values = stored.dequantized(rows: block)
      let part = MutableSlice<Float>(count: rows)
      Rows.columnDots(
        rows: block.count, columns: rows, values.slice, values.slice, into: part)
      for (column, value) in part.array.enumerated() { sums[column] += Double(value) }
    }
    return Tensor(shape: [rows], scalars: sums.map(Float.init))
  }

  /// This matrix with `delta` added, in the same format.
  public func merging(_ delta: WeightDelta) throws -> any WeightMatrix {
    var merged = Tensor(uninitialized: [columns, rows])
    for range in rowBlocks {
      var block = dequantized(rows: range)
      try delta(range, &block)
      merged.withMutableSlice {
        Rows.transpose(
          rows: range.count, columns: columns, block.slice, into: $0[range.lowerBound...],
          ldy: rows)
      }
    }
    return TransposedMatrix(
      try stored.merging { range, block in block = merged.rowRange(range) })
  }
}
