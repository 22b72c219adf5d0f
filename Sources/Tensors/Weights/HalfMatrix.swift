import BLASKernels

/// A weight matrix of 16-bit floats, bf16 or f16.
public struct HalfMatrix: WeightMatrix {
  /// The bit patterns, row-major.
  public let values: Slice<UInt16>
  /// Number of output features.
  public let rows: Int
  /// Number of input features.
  public let columns: Int
  /// Which of the two formats.
  public let halfFormat: HalfFormat
  /// How activations enter a product: exactly, or rounded to bf16 where the CPU multiplies bf16.
  public var precision: HalfPrecision

  /// Creates a matrix over bit patterns.
  public init(
    _ values: Slice<UInt16>, rows: Int, columns: Int, format: HalfFormat,
    precision: HalfPrecision = .exact
  ) {
    precondition(values.count == rows * columns)
    self.values = values
    self.rows = rows
    self.columns = columns
    self.halfFormat = format
    self.precision = precision
  }

  /// Rounds a tensor of two dimensions to 16 bits, to the nearest with ties to even.
  public init(rounding tensor: Tensor, to format: HalfFormat, precision: HalfPrecision = .exact) {
    let bits = MutableSlice<UInt16>(count: tensor.count)
    Conversion.narrow(tensor.slice, to: format, into: bits)
    self.init(
      bits.readOnly, rows: tensor.shape[0], columns: tensor.shape[1], format: format,
      precision: precision)
  }

  /// The storage format's name.
  public var format: String { halfFormat == .bfloat16 ? "bfloat16" : "float16" }
  /// Bytes that the stored form takes.
  public var byteCount: Int { count * 2 }

  /// `y = beta·y + x·Wᵀ`, `[n, columns]` to `[n, rows]`.
  public func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>) {
    BLAS.gemm(
      x, weight: values, format: halfFormat, transposeWeight: true, m: n, n: rows, k: columns,
      beta: beta, into: y, precision: precision)
  }

  /// `x = beta·x + y·W`, `[n, rows]` to `[n, columns]`.
  public func multiplyTransposed(
    _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>
  ) {
    BLAS.gemm(
      y, weight: values, format: halfFormat, transposeWeight: false, m: n, n: columns, k: rows,
      beta: beta, into: x, precision: precision)
  }

  /// Copies rows as floats, `[ids.count, columns]`.
  public func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>) {
    Embeddings.gatherChecked(
      ids, from: values, format: halfFormat, width: columns, into: output)
  }

  /// Rows as floats, `[range.count, columns]`.
  public func dequantized(rows range: Range<Int>) -> Tensor {
    let block = values[range.lowerBound * columns..<range.upperBound * columns]
    return Tensor.filled([range.count, columns]) {
      Conversion.widen(block, from: halfFormat, into: $0)
    }
  }

  /// ‖row‖² of every row, `[rows]`.
  public func squaredRowNorms() -> Tensor {
    Tensor.filled([rows]) {
      Rows.squaredNorms(
        rows: rows, columns: columns, values, format: halfFormat, into: $0)
    }
  }

  /// This matrix with `delta` added, in the same format.
  public func merging(_ delta: WeightDelta) throws -> any WeightMatrix {
    let merged = MutableSlice<UInt16>(count: count)
    for range in rowBlocks {
      var block = dequantized(rows: range)
      try delta(range, &block)
      let place = merged[range.lowerBound * columns..<range.upperBound * columns]
      Conversion.narrow(block.slice, to: halfFormat, into: place)
    }
    return HalfMatrix(
      merged.readOnly, rows: rows, columns: columns, format: halfFormat, precision: precision)
  }
}
