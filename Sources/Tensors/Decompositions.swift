import BLASKernels
import PEFTSupport

/// U·diag(s)·Vᵀ, whole or of the leading singular values alone.
public struct Decomposition: Sendable {
  /// `[m, k]`, left vectors as columns; the largest component of each is positive.
  public var u: Tensor
  /// The singular values, falling.
  public var s: [Float]
  /// `[k, n]`, right vectors as rows.
  public var vt: Tensor

  /// Takes over what LAPACK found of a matrix `[m, n]`.
  public init(_ values: SingularValues, m: Int, n: Int) {
    u = Tensor(shape: [m, values.rank], slice: values.u.readOnly)
    s = values.s.array
    vt = Tensor(shape: [values.rank, n], slice: values.vt.readOnly)
  }
}

/// Decompositions and products of matrices, without a graph.
extension Tensor {
  /// All singular values and vectors of a matrix `[m, n]`.
  ///
  /// - Throws: ``PEFTError`` `numericalFailure` if the matrix is not finite.
  public func decomposed() throws(PEFTError) -> Decomposition {
    let (m, n) = matrixSize
    return Decomposition(try LAPACK.svd(slice, m: m, n: n), m: m, n: n)
  }

  /// The `rank` largest singular values and their vectors, or all where there are fewer; as exact
  /// as ``decomposed()`` and faster where few are wanted.
  ///
  /// - Throws: ``PEFTError`` `numericalFailure` if the matrix is not finite.
  public func decomposed(rank: Int) throws(PEFTError) -> Decomposition {
    let (m, n) = matrixSize
    return Decomposition(try LAPACK.leadingSVD(slice, m: m, n: n, rank: rank), m: m, n: n)
  }

  /// About the `rank` largest singular values and their vectors, by randomised iteration.
  ///
  /// - Parameters:
  ///   - rank: How many are wanted.
  ///   - oversampling: Extra directions, for accuracy.
  ///   - iterations: Products with M Mᵀ.
  ///   - seed: Seeds the starting directions.
  /// - Throws: ``PEFTError`` `numericalFailure` if the matrix is not finite.
  public func decomposed(
    rank: Int, oversampling: Int, iterations: Int, seed: UInt64
  ) throws(PEFTError) -> Decomposition {
    let (m, n) = matrixSize
    return Decomposition(
      try LAPACK.truncatedSVD(
        slice, m: m, n: n, rank: rank, oversampling: oversampling, iterations: iterations,
        seed: seed), m: m, n: n)
  }

  /// Q `[m, k]` with orthonormal columns and R `[k, n]`, upper triangular; k = min(m, n).
  ///
  /// - Throws: ``PEFTError`` `numericalFailure` if the matrix is not finite.
  public func orthogonalTriangular() throws(PEFTError) -> (q: Tensor, r: Tensor) {
    let (m, n) = matrixSize
    let (q, r) = try LAPACK.qr(slice, m: m, n: n)
    let k = min(m, n)
    return (
      Tensor(shape: [m, k], slice: q.readOnly), Tensor(shape: [k, n], slice: r.readOnly)
    )
  }

  /// The inverse of a symmetric positive definite matrix; `nil` where it is none in single
  /// precision.
  public func inverseOfPositiveDefinite() -> Tensor? {
    let (n, columns) = matrixSize
    precondition(n == columns, "the inverse of a matrix \(shape)")
    return LAPACK.inverseOfPositiveDefinite(slice, n: n).map {
      Tensor(shape: [n, n], slice: $0.readOnly)
    }
  }

  /// This matrix times another, `[m, k]·[k, n]`.
  public func multiplied(by other: Tensor) -> Tensor {
    let ((m, k), (rows, n)) = (matrixSize, other.matrixSize)
    precondition(k == rows, "\(shape) times \(other.shape)")
    return Tensor.filled([m, n]) {
      BLAS.gemm(.no, .no, m: m, n: n, k: k, slice, other.slice, into: $0)
    }
  }

  /// Adds `scale`·XᵀY to this matrix `[m, n]`, for X `[rows, m]` and Y `[rows, n]`.
  public mutating func addTransposedProduct(_ x: Tensor, _ y: Tensor, scale: Float = 1) {
    precondition(
      shape == [x.columns, y.columns] && x.rows == y.rows, "\(x.shape)ᵀ\(y.shape) into \(shape)")
    let (rowCount, m, n) = (x.rows, x.columns, y.columns)
    withMutableSlice {
      BLAS.gemm(
        .yes, .no, m: m, n: n, k: rowCount, alpha: scale, x.slice, y.slice, beta: 1, into: $0)
    }
  }

  /// Some columns of a matrix, copied.
  public func copyingColumns(_ columns: some Sequence<Int>) -> Tensor {
    selectColumns(detached, columns.map { Int32($0) }).transposed()
  }

  /// Some rows of a matrix, copied.
  public func copyingRows(_ rows: some Sequence<Int>) -> Tensor {
    detached.selectRows(rows.map { Int32($0) })
  }

  private var matrixSize: (Int, Int) {
    precondition(shape.count == 2, "a matrix has two dimensions, not \(shape)")
    return (shape[0], shape[1])
  }
}
