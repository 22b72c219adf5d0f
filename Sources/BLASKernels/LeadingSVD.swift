import CKernels
import PEFTSupport

extension LAPACK {
  /// The largest singular values and their vectors, as exact as the whole decomposition in single
  /// precision and, where few are wanted, several times faster.
  ///
  /// From the eigenvectors of the smaller one of MᵀM and M Mᵀ, in double precision: squaring loses half
  /// of the digits, of which single precision needs no more.
  ///
  /// - Parameters:
  ///   - matrix: `[m, n]`; not changed.
  ///   - m: Rows.
  ///   - n: Columns.
  ///   - rank: How many are wanted; at most min(m, n) are returned.
  /// - Throws: `PEFTError.numericalFailure` if the matrix is not finite or no method converges.
  public static func leadingSVD(
    _ matrix: Slice<Float>, m: Int, n: Int, rank: Int
  ) throws(PEFTError) -> SingularValues {
    precondition(matrix.count == m * n, "a matrix has another size")
    let k = min(m, n)
    let rank = min(rank, k)
    // The whole decomposition costs little then.
    guard k > 64, rank * 4 <= k else {
      return try svd(matrix, m: m, n: n).leading(rank, m, n)
    }
    try checkFinite(matrix, m, n)
    pk_use_threads(pk_threads())
    guard let vectors = leadingEigenvectors(matrix, m, n, rank) else {
      return try svd(matrix, m: m, n: n).leading(rank, m, n)
    }
    let result = SingularValues(
      u: MutableSlice(count: m * rank), s: MutableSlice(count: rank),
      vt: MutableSlice(count: rank * n), rank: rank)
    if m >= n {
      result.vt.copy(from: vectors)
      BLAS.gemm(.no, .yes, m: m, n: rank, k: n, matrix, vectors, into: result.u)
      // The lengths of M's images of the right vectors are the singular values.
      let squares = MutableSlice<Double>(repeating: 0, count: rank)
      for row in 0..<m {
        for i in 0..<rank {
          let value = Double(result.u.pointer[row * rank + i])
          squares.pointer[i] += value * value
        }
      }
      for i in 0..<rank { result.s.pointer[i] = Float(squares.pointer[i].squareRoot()) }
      for row in 0..<m {
        for i in 0..<rank { result.u.pointer[row * rank + i] /= result.s.pointer[i] }
      }
    } else {
      for i in 0..<rank {
        for row in 0..<m { result.u.pointer[row * rank + i] = vectors.pointer[i * m + row] }
      }
      BLAS.gemm(.no, .no, m: rank, n: n, k: m, vectors, matrix, into: result.vt)
      for i in 0..<rank {
        let row = result.vt[i * n..<(i + 1) * n]
        let length = VectorMath.sumOfSquares(row.readOnly).squareRoot()
        result.s.pointer[i] = Float(length)
        VectorMath.scale(Float(1 / length), row.readOnly, into: row)
      }
    }
    // A matrix of a lower rank has no such vectors, and near that the images of the others are inexact.
    guard result.s.pointer[rank - 1] > 1e-3 * result.s.pointer[0] else {
      return try svd(matrix, m: m, n: n).leading(rank, m, n)
    }
    fixSigns(result, m, n)
    return result
  }

  /// The inverse of a symmetric positive definite matrix.
  ///
  /// - Parameters:
  ///   - matrix: `[n, n]`; not changed.
  ///   - n: Rows and columns.
  /// - Returns: `[n, n]`, or `nil` if the matrix is not positive definite in single precision.
  public static func inverseOfPositiveDefinite(
    _ matrix: Slice<Float>, n: Int
  ) -> MutableSlice<Float>? {
    precondition(matrix.count == n * n, "a matrix has another size")
    let result = MutableSlice<Float>(count: n * n)
    result.copy(from: matrix)
    pk_use_threads(pk_threads())
    guard VectorMath.allFinite(matrix), pk_sposinv(Int32(n), result.pointer) == 0 else {
      return nil
    }
    // Of the lower triangle by columns, the upper one by rows, the other half is a copy.
    let values = result.pointer
    for row in 0..<n {
      for column in 0..<row { values[row * n + column] = values[column * n + row] }
    }
    return result
  }

  /// Eigenvectors of the smaller one of MᵀM and M Mᵀ as rows, the largest eigenvalue first.
  private static func leadingEigenvectors(
    _ matrix: Slice<Float>, _ m: Int, _ n: Int, _ rank: Int
  ) -> Slice<Float>? {
    let k = min(m, n)
    let gram = MutableSlice<Double>(count: k * k)
    let wide = MutableSlice<Double>(count: m * n)
    let (from, to) = (matrix.pointer, wide.pointer)
    Parallel.split(m * n, grain: Parallel.lightGrain) { range in
      for i in range { to[i] = Double(from[i]) }
    }
    pk_dgram(n <= m, Int32(m), Int32(n), wide.pointer, gram.pointer)
    let values = MutableSlice<Double>(count: k)
    let vectors = MutableSlice<Double>(count: k * rank)
    let support = MutableSlice<Int32>(count: 2 * rank)
    let (first, last) = (Int32(k - rank + 1), Int32(k))
    var (size, integers): (Double, Int32) = (0, 0)
    var failure = pk_dsyevr(
      Int32(k), gram.pointer, first, last, values.pointer, vectors.pointer, support.pointer,
      &size, -1, &integers, -1)
    guard failure == 0 else { return nil }
    let work = MutableSlice<Double>(count: Int(size))
    let integerWork = MutableSlice<Int32>(count: Int(integers))
    failure = pk_dsyevr(
      Int32(k), gram.pointer, first, last, values.pointer, vectors.pointer, support.pointer,
      work.pointer, Int32(work.count), integerWork.pointer, integers)
    guard failure == 0 else { return nil }
    let result = MutableSlice<Float>(count: rank * k)
    for i in 0..<rank {
      for j in 0..<k {
        result.pointer[i * k + j] = Float(vectors.pointer[(rank - 1 - i) * k + j])
      }
    }
    return result.readOnly
  }
}

extension SingularValues {
  /// The first singular values and vectors alone.
  func leading(_ rank: Int, _ m: Int, _ n: Int) -> SingularValues {
    guard rank < self.rank else { return self }
    let result = SingularValues(
      u: MutableSlice(count: m * rank), s: MutableSlice(count: rank),
      vt: MutableSlice(count: rank * n), rank: rank)
    for row in 0..<m {
      for i in 0..<rank { result.u.pointer[row * rank + i] = u.pointer[row * self.rank + i] }
    }
    result.s.copy(from: s.readOnly[0..<rank])
    result.vt.copy(from: vt.readOnly[0..<rank * n])
    return result
  }
}
