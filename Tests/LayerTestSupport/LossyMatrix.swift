import BLASKernels
import Tensors

/// A weight in a made-up lossy format, for tests that a tuner works on any: 4-bit codes with one
/// scale for each row. Merging rounds to the same format.
public struct LossyMatrix: WeightMatrix {
  private let codes: [Int8]
  private let scales: [Float]
  /// Number of output features.
  public let rows: Int
  /// Number of input features.
  public let columns: Int

  /// Rounds a matrix.
  public init(rounding values: Tensor) {
    rows = values.rows
    columns = values.columns
    var codes: [Int8] = []
    var scales: [Float] = []
    for row in 0..<rows {
      let row = values.rowRange(row..<row + 1).scalars
      let scale = max((row.map { abs($0) }.max() ?? 0) / 7, 1e-20)
      scales.append(scale)
      codes += row.map { Int8(($0 / scale).rounded()) }
    }
    self.codes = codes
    self.scales = scales
  }

  /// The storage format's name.
  public var format: String { "lossy4" }
  /// Bytes that the stored form takes.
  public var byteCount: Int { codes.count + 4 * scales.count }

  /// Rows as floats.
  public func dequantized(rows range: Range<Int>) -> Tensor {
    let values = (range.lowerBound * columns..<range.upperBound * columns).map {
      Float(codes[$0]) * scales[$0 / columns]
    }
    return Tensor(shape: [range.count, columns], scalars: values)
  }

  private var dense: DenseMatrix { DenseMatrix(dequantized()) }

  /// `y = beta·y + x·Wᵀ`.
  public func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>) {
    dense.multiply(x, count: n, beta: beta, into: y)
  }

  /// `x = beta·x + y·W`.
  public func multiplyTransposed(
    _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>
  ) {
    dense.multiplyTransposed(y, count: n, beta: beta, into: x)
  }

  /// Copies rows, dequantised.
  public func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>) {
    dense.gatherRows(ids, into: output)
  }

  /// ‖row‖² of every row.
  public func squaredRowNorms() -> Tensor { dense.squaredRowNorms() }

  /// This matrix with `delta` added, rounded once; in blocks of two rows.
  public func merging(_ delta: WeightDelta) throws -> any WeightMatrix {
    var parts: [Tensor] = []
    for start in stride(from: 0, to: rows, by: 2) {
      let range = start..<min(start + 2, rows)
      var block = dequantized(rows: range)
      try delta(range, &block)
      parts.append(block)
    }
    return LossyMatrix(rounding: .stackingRows(parts))
  }
}
