import BLASKernels

/// A weight matrix of 32-bit floats.
public struct DenseMatrix: WeightMatrix {
  /// The values, `[rows, columns]`.
  public let values: Tensor

  /// Creates a matrix over a tensor of two dimensions.
  public init(_ values: Tensor) {
    precondition(values.shape.count == 2, "a matrix has two dimensions, not \(values.shape)")
    self.values = values.detached
  }

  /// Number of output features.
  public var rows: Int { values.shape[0] }
  /// Number of input features.
  public var columns: Int { values.shape[1] }
  /// The storage format's name.
  public var format: String { "float32" }
  /// Bytes that the stored form takes.
  public var byteCount: Int { values.count * 4 }

  /// `y = beta·y + x·Wᵀ`, `[n, columns]` to `[n, rows]`.
  public func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>) {
    BLAS.gemm(.no, .yes, m: n, n: rows, k: columns, x, values.slice, beta: beta, into: y)
  }

  /// `x = beta·x + y·W`, `[n, rows]` to `[n, columns]`.
  public func multiplyTransposed(
    _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>
  ) {
    BLAS.gemm(.no, .no, m: n, n: columns, k: rows, y, values.slice, beta: beta, into: x)
  }

  /// Copies rows as floats, `[ids.count, columns]`.
  public func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>) {
    Embeddings.gatherChecked(ids, from: values.slice, width: columns, into: output)
  }

  /// Rows as floats, `[range.count, columns]`.
  public func dequantized(rows range: Range<Int>) -> Tensor {
    let block = values.slice[range.lowerBound * columns..<range.upperBound * columns]
    return Tensor(shape: [range.count, columns], slice: block)
  }

  /// ‖row‖² of every row, `[rows]`.
  public func squaredRowNorms() -> Tensor {
    Tensor.filled([rows]) {
      Rows.squaredNorms(rows: rows, columns: columns, values.slice, into: $0)
    }
  }

  /// This matrix with `delta` added, in the same format.
  public func merging(_ delta: WeightDelta) throws -> any WeightMatrix {
    // One block: the result is this large anyway, and the delta is added straight into it.
    var merged = values
    merged.withMutableSlice { _ in }
    try delta(0..<rows, &merged)
    return DenseMatrix(merged)
  }
}
