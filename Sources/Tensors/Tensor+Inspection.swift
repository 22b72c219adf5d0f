import BLASKernels

extension Tensor {
  /// Whether no element is infinite or not a number.
  public var allFinite: Bool { VectorMath.allFinite(slice) }
  /// The largest absolute value; 0 when empty.
  public var maximumMagnitude: Float { VectorMath.maximumMagnitude(slice) }
  /// The sum of squares, in double precision.
  public var sumOfSquares: Double { VectorMath.sumOfSquares(slice) }
  /// For each row the position of its largest element, the first among equals.
  public var argmaxOfRows: [Int32] {
    let result = MutableSlice<Int32>(count: rows)
    Rows.argmax(rows: rows, columns: columns, slice, into: result)
    return result.array
  }
}
