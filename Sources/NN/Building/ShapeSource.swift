import BLASKernels
import PEFTSupport
import Tensors

/// A matrix that has a shape and no values: a model of such matrices takes no memory and can be
/// described, printed and counted, but not run.
public struct ShapeOnlyMatrix: WeightMatrix {
  /// Number of output features.
  public let rows: Int
  /// Number of input features.
  public let columns: Int
  /// The storage format's name.
  public let format: String

  /// Creates a placeholder.
  public init(rows: Int, columns: Int, format: String) {
    self.rows = rows
    self.columns = columns
    self.format = format
  }

  /// Bytes that the stored form takes.
  public var byteCount: Int { 0 }

  /// `y = beta·y + x·Wᵀ`, `[n, columns]` to `[n, rows]`.
  public func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>) {
    preconditionFailure("a model that was built for description cannot run")
  }

  /// `x = beta·x + y·W`, `[n, rows]` to `[n, columns]`.
  public func multiplyTransposed(
    _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>
  ) {
    preconditionFailure("a model that was built for description cannot run")
  }

  /// Copies rows as floats, `[ids.count, columns]`.
  public func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>) {
    preconditionFailure("a model that was built for description cannot run")
  }

  /// Zeros: copies for modules that are trained in full begin with this.
  public func dequantized(rows range: Range<Int>) -> Tensor { .zeros([range.count, columns]) }

  /// ‖row‖² of every row, `[rows]`.
  public func squaredRowNorms() -> Tensor { .zeros([rows]) }

  /// This matrix with `delta` added, in the same format.
  public func merging(_ delta: WeightDelta) throws -> any WeightMatrix { self }
}

extension WeightMatrix {
  /// Whether the matrix holds values: not that of a model that is only described, in either form.
  public var hasValues: Bool {
    !(((self as? TransposedMatrix)?.stored ?? self) is ShapeOnlyMatrix)
  }
}

/// Parameters without values, for models that are only described.
public final class ShapeSource: ParameterSource {
  private let format: String

  /// Creates a source; `format` is what matrices claim to be stored in.
  public init(format: String = "float32") { self.format = format }

  /// Whether there is anything under the name.
  public func contains(_ name: String) -> Bool { true }

  /// A matrix `[rows, columns]`.
  public func matrix(
    _ name: String, rows: Int, columns: Int
  ) throws(PEFTError) -> any WeightMatrix {
    ShapeOnlyMatrix(rows: rows, columns: columns, format: format)
  }

  /// A vector of `count` elements.
  public func vector(_ name: String, count: Int, initial: Float) throws(PEFTError) -> Tensor {
    Tensor(repeating: initial, shape: [count])
  }
}
