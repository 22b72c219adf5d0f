import CKernels
import PEFTSupport

/// A singular value decomposition M = U diag(S) Vᵀ.
public struct SingularValues: Sendable {
  /// `[m, k]`: left vectors as columns; the largest component of each is positive.
  public var u: MutableSlice<Float>
  /// `[k]`, falling.
  public var s: MutableSlice<Float>
  /// `[k, n]`: right vectors as rows.
  public var vt: MutableSlice<Float>
  /// The number of singular values.
  public var rank: Int
}

/// Decompositions, row-major.
public enum LAPACK {
  /// The singular values and vectors of a matrix, k = min(m, n).
  ///
  /// - Parameters:
  ///   - matrix: `[m, n]`; not changed.
  ///   - m: Rows.
  ///   - n: Columns.
  /// - Throws: `PEFTError.numericalFailure` if the matrix is not finite or no method converges.
  public static func svd(_ matrix: Slice<Float>, m: Int, n: Int) throws(PEFTError) -> SingularValues
  {
    precondition(matrix.count == m * n, "a matrix has another size")
    try checkFinite(matrix, m, n)
    let k = min(m, n)
    let result = SingularValues(
      u: MutableSlice(count: m * k), s: MutableSlice(count: k), vt: MutableSlice(count: k * n),
      rank: k)
    guard k > 0 else { return result }
    // Read by columns, a row-major matrix is its transpose, so U and V change places.
    let copy = MutableSlice<Float>(count: m * n)
    copy.copy(from: matrix)
    let (rows, columns, rank) = (Int32(n), Int32(m), Int32(k))
    let (s, left, right) = (result.s.pointer, result.vt.pointer, result.u.pointer)
    let integers = MutableSlice<Int32>(count: 8 * k)
    let job = CChar(UInt8(ascii: "S"))
    pk_use_threads(pk_threads())
    var failure = withWork { work, count in
      pk_sgesdd(
        job, rows, columns, copy.pointer, rows, s, left, rows, right, rank, work, count,
        integers.pointer)
    }
    if failure > 0 {
      copy.copy(from: matrix)
      failure = withWork { work, count in
        pk_sgesvd(
          job, job, rows, columns, copy.pointer, rows, s, left, rows, right, rank, work, count)
      }
    }
    guard failure == 0 else {
      throw PEFTError(
        .numericalFailure, "the singular value decomposition of a \(m)×\(n) matrix did not converge"
      )
    }
    fixSigns(result, m, n)
    return result
  }

  /// M = Q R with orthonormal columns in Q, k = min(m, n).
  ///
  /// - Parameters:
  ///   - matrix: `[m, n]`; not changed.
  ///   - m: Rows.
  ///   - n: Columns.
  /// - Returns: q `[m, k]` and r `[k, n]`, upper triangular.
  /// - Throws: `PEFTError.numericalFailure` if the matrix is not finite.
  public static func qr(
    _ matrix: Slice<Float>, m: Int, n: Int
  ) throws(PEFTError) -> (q: MutableSlice<Float>, r: MutableSlice<Float>) {
    precondition(matrix.count == m * n, "a matrix has another size")
    try checkFinite(matrix, m, n)
    let k = min(m, n)
    let q = MutableSlice<Float>(count: m * k)
    let r = MutableSlice<Float>(repeating: 0, count: k * n)
    guard k > 0 else { return (q, r) }
    let columns = MutableSlice<Float>(count: m * n)
    Rows.transpose(rows: m, columns: n, matrix, into: columns)
    let tau = MutableSlice<Float>(count: k)
    pk_use_threads(pk_threads())
    var failure = withWork { work, count in
      pk_sgeqrf(Int32(m), Int32(n), columns.pointer, Int32(m), tau.pointer, work, count)
    }
    for row in 0..<k {
      for column in row..<n { r.pointer[row * n + column] = columns.pointer[column * m + row] }
    }
    if failure == 0 {
      failure = withWork { work, count in
        pk_sorgqr(
          Int32(m), Int32(k), Int32(k), columns.pointer, Int32(m), tau.pointer, work, count)
      }
    }
    guard failure == 0 else {
      throw PEFTError(.numericalFailure, "the QR decomposition of a \(m)×\(n) matrix failed")
    }
    Rows.transpose(rows: k, columns: m, columns.readOnly[0..<m * k], into: q)
    return (q, r)
  }

  /// The leading singular values and vectors of a matrix, by randomised subspace iteration.
  ///
  /// The method of Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), algorithms 4.4
  /// and 5.1.
  ///
  /// - Parameters:
  ///   - matrix: `[m, n]`.
  ///   - m: Rows.
  ///   - n: Columns.
  ///   - rank: How many are wanted.
  ///   - oversampling: Extra directions, for accuracy.
  ///   - iterations: Products with M Mᵀ; more where the singular values fall slowly.
  ///   - seed: Seeds the starting directions.
  /// - Throws: `PEFTError.numericalFailure` if the matrix is not finite or no method converges.
  public static func truncatedSVD(
    _ matrix: Slice<Float>, m: Int, n: Int, rank: Int, oversampling: Int = 10, iterations: Int = 4,
    seed: UInt64 = 0
  ) throws(PEFTError) -> SingularValues {
    precondition(matrix.count == m * n, "a matrix has another size")
    try checkFinite(matrix, m, n)
    return try truncatedSVD(
      m: m, n: n, rank: rank, oversampling: oversampling, iterations: iterations, seed: seed
    ) { (x, columns) throws(PEFTError) in
      let y = MutableSlice<Float>(count: m * columns)
      BLAS.gemm(.no, .no, m: m, n: columns, k: n, matrix, x, into: y)
      return y.readOnly
    } multiplyTransposed: { (x, columns) throws(PEFTError) in
      let y = MutableSlice<Float>(count: n * columns)
      BLAS.gemm(.yes, .no, m: n, n: columns, k: m, matrix, x, into: y)
      return y.readOnly
    }
  }

  /// The leading singular values and vectors of a matrix that is known by its products.
  ///
  /// - Parameters:
  ///   - m: Rows.
  ///   - n: Columns.
  ///   - rank: How many are wanted.
  ///   - oversampling: Extra directions, for accuracy.
  ///   - iterations: Products with M Mᵀ.
  ///   - seed: Seeds the starting directions.
  ///   - multiply: Given X `[n, columns]` and `columns`, returns M X `[m, columns]`.
  ///   - multiplyTransposed: Given X `[m, columns]` and `columns`, returns Mᵀ X `[n, columns]`.
  /// - Throws: What the closures throw; `PEFTError.numericalFailure` as for ``svd(_:m:n:)``.
  public static func truncatedSVD(
    m: Int, n: Int, rank: Int, oversampling: Int = 10, iterations: Int = 4, seed: UInt64 = 0,
    multiply: (_ x: Slice<Float>, _ columns: Int) throws(PEFTError) -> Slice<Float>,
    multiplyTransposed: (_ x: Slice<Float>, _ columns: Int) throws(PEFTError) -> Slice<Float>
  ) throws(PEFTError) -> SingularValues {
    let width = min(rank + oversampling, min(m, n))
    let rank = min(rank, width)
    let start = MutableSlice<Float>(count: n * width)
    Random.normal(seed: seed, stream: 0, into: start)
    var basis = try qr(try multiply(start.readOnly, width), m: m, n: width).q
    for _ in 0..<iterations {
      let right = try qr(try multiplyTransposed(basis.readOnly, width), m: n, n: width).q
      basis = try qr(try multiply(right.readOnly, width), m: m, n: width).q
    }
    // M ≈ Q Qᵀ M, and (Qᵀ M)ᵀ = Mᵀ Q = P diag(S) Wᵀ, so U = Q W and V = P.
    let small = try svd(try multiplyTransposed(basis.readOnly, width), m: n, n: width)
    let result = SingularValues(
      u: MutableSlice(count: m * rank), s: MutableSlice(count: rank),
      vt: MutableSlice(count: rank * n), rank: rank)
    BLAS.gemm(
      .no, .yes, m: m, n: rank, k: width, basis.readOnly, small.vt.readOnly[0..<rank * width],
      into: result.u)
    result.s.copy(from: small.s.readOnly[0..<rank])
    for row in 0..<n {
      for i in 0..<rank { result.vt.pointer[i * n + row] = small.u.pointer[row * width + i] }
    }
    fixSigns(result, m, n)
    return result
  }

  // The signs of singular vectors are free; this fixes them, so that results compare.
  static func fixSigns(_ x: SingularValues, _ m: Int, _ n: Int) {
    let (u, k) = (x.u.pointer, x.rank)
    for i in 0..<k {
      var largest: Float = 0
      for row in 0..<m where u[row * k + i].magnitude > largest.magnitude {
        largest = u[row * k + i]
      }
      guard largest < 0 else { continue }
      for row in 0..<m { u[row * k + i] = -u[row * k + i] }
      pk_scale(-1, x.vt.pointer + i * n, x.vt.pointer + i * n, n)
    }
  }

  // Asks for the work size, then runs with as much.
  private static func withWork(_ body: (UnsafeMutablePointer<Float>, Int32) -> Int32) -> Int32 {
    var size: Float = 0
    let failure = body(&size, -1)
    if failure != 0 { return failure }
    // The size comes back rounded to single precision.
    let count = Int32(clamping: Int(size.nextUp.nextUp) + 64)
    return withScratch(Int(count)) { body($0, count) }
  }

  static func checkFinite(_ x: Slice<Float>, _ m: Int, _ n: Int) throws(PEFTError) {
    guard VectorMath.allFinite(x) else {
      throw PEFTError(
        .numericalFailure,
        "a \(m)×\(n) matrix that is to be decomposed has infinite or NaN elements",
        remedy: "Look for the broken weight, or start the adapter without a decomposition.")
    }
  }
}
