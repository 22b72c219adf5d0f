import BLASKernels

/// A frozen matrix of shape `[rows, columns]` in some storage format: dense, half precision or
/// quantised.
///
/// Layers and tuners are written once against this protocol and so work on every format. A linear
/// layer's weight has one row for each output feature and one column for each input feature,
/// PyTorch's orientation.
public protocol WeightMatrix: Sendable {
  /// Number of output features.
  var rows: Int { get }
  /// Number of input features.
  var columns: Int { get }
  /// The storage format's name as PyTorch or Hugging Face spell it: "float32", "bfloat16", …
  var format: String { get }
  /// Bytes that the stored form takes.
  var byteCount: Int { get }

  /// `y = beta·y + x·Wᵀ`: `[n, columns]` to `[n, rows]`, the forward pass of a linear layer.
  func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>)

  /// `x = beta·x + y·W`: `[n, rows]` to `[n, columns]`, the gradient of the input.
  func multiplyTransposed(
    _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>)

  /// Copies rows, dequantised, as an embedding does: `[ids.count, columns]`.
  ///
  /// - Precondition: Every id is in `0 ..< rows`.
  func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>)

  /// Rows as floats, `[range.count, columns]`.
  func dequantized(rows range: Range<Int>) -> Tensor

  /// ‖row‖² of every row, `[rows]`, for weight-decomposed adapters.
  func squaredRowNorms() -> Tensor

  /// This matrix with `delta` added, in the same format.
  ///
  /// - Parameter delta: Adds its rows to a block `[range.count, columns]` of dequantised values.
  ///   It is called for consecutive ranges that cover all rows, so no full-size temporary is needed.
  /// - Throws: What `delta` throws.
  func merging(_ delta: WeightDelta) throws -> any WeightMatrix
}

/// Adds rows of a change of a weight to a block of that weight's rows.
public typealias WeightDelta = (_ rows: Range<Int>, _ block: inout Tensor) throws -> Void

extension WeightMatrix {
  /// Number of elements.
  public var count: Int { rows * columns }

  /// The whole matrix as floats, `[rows, columns]`.
  public func dequantized() -> Tensor { dequantized(rows: 0..<rows) }

  /// Consecutive ranges of rows of about a million elements, for work that goes block by block.
  public var rowBlocks: [Range<Int>] {
    let step = max(1, min(rows, 1_048_576 / max(columns, 1)))
    return stride(from: 0, to: rows, by: step).map { $0..<min($0 + step, rows) }
  }

  /// `x·Wᵀ` as a tensor without a graph: `[…, columns]` to `[…, rows]`.
  public func multiply(_ x: Tensor) -> Tensor {
    precondition(x.columns == columns, "input \(x.shape) for a weight [\(rows), \(columns)]")
    return Tensor.filled(x.shape.dropLast() + [rows]) {
      multiply(x.slice, count: x.rows, beta: 0, into: $0)
    }
  }

  /// `x·Wᵀ` and `a·Wᵀ` in one pass over the weight, without graphs.
  ///
  /// - Parameters:
  ///   - x: `[…, columns]`.
  ///   - a: A few more rows, `[k, columns]`.
  /// - Returns: `[…, rows]` and `[k, rows]`.
  public func multiply(_ x: Tensor, and a: Tensor) -> (Tensor, Tensor) {
    precondition(x.columns == columns && a.columns == columns)
    let (count, extra) = (x.rows, a.rows)
    var operand = Tensor(uninitialized: [count + extra, columns])
    operand.withMutableSlice {
      $0[0..<count * columns].copy(from: x.slice)
      $0[(count * columns)...].copy(from: a.slice)
    }
    var product = Tensor(uninitialized: [count + extra, rows])
    product.withMutableSlice {
      multiply(operand.slice, count: count + extra, beta: 0, into: $0)
    }
    let second = Tensor.filled([extra, rows]) { $0.copy(from: product.slice[(count * rows)...]) }
    let first = Tensor(
      shape: x.shape.dropLast() + [rows], storage: product.storage, offset: 0, node: nil)
    return (first, second)
  }
}
