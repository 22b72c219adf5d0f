import CKernels
import PEFTSupport

// A truncated decomposition loses what lies between singular values that are close, so single
// precision costs it more than rounding. In double precision its result is right to a float's last digits.
extension LAPACK {
  /// The singular values and vectors of a product B·A of thin factors, k = min(m, r, n), computed
  /// in double precision.
  ///
  /// The product is not made. With B = Q·R and Aᵀ = P·T it is Q·(R·Tᵀ)·Pᵀ, and only a matrix of the size of
  /// r is decomposed: (m + n)·r² operations in place of m·n·min(m, n).
  ///
  /// - Parameters:
  ///   - b: `[m, r]`.
  ///   - a: `[r, n]`.
  ///   - m: Rows of the product.
  ///   - r: The inner dimension.
  ///   - n: Columns of the product.
  /// - Throws: `PEFTError.numericalFailure` if a factor is not finite or the method does not converge.
  public static func svd(
    _ b: Slice<Float>, times a: Slice<Float>, m: Int, r: Int, n: Int
  ) throws(PEFTError) -> SingularValues {
    precondition(b.count == m * r && a.count == r * n, "a factor has another size")
    try checkFinite(b, m, r)
    try checkFinite(a, r, n)
    guard m > 0, r > 0, n > 0 else { return try svd(Slice([]), m: m, n: 0) }
    // Read by columns, A is its transpose already.
    let left = try thinQR(transposed(b, rows: m, columns: r), rows: m, columns: r)
    let right = try thinQR(doubles(a), rows: n, columns: r)
    let (p, q) = (min(m, r), min(n, r))
    let core = MutableSlice<Double>(count: p * q)
    multiply("N", "T", p, q, r, left.r, p, right.r, q, into: core, p)
    let small = try thinSVD(core, rows: p, columns: q)
    let k = min(p, q)
    let (u, vt) = (MutableSlice<Double>(count: m * k), MutableSlice<Double>(count: k * n))
    // Uᵀ·Qᵀ by columns is Q·U by rows, and P·V by columns is Vᵀ·Pᵀ by rows.
    multiply("T", "T", k, m, p, small.u, p, left.q, m, into: u, k)
    multiply("N", "T", n, k, q, right.q, n, small.vt, k, into: vt, n)
    return singles(u, small.s, vt, m, n)
  }

  /// The singular values and vectors of a matrix as ``svd(_:m:n:)`` gives them, computed in double
  /// precision.
  ///
  /// - Throws: ``PEFTError`` `numericalFailure` as that.
  public static func preciseSVD(
    _ matrix: Slice<Float>, m: Int, n: Int
  ) throws(PEFTError) -> SingularValues {
    precondition(matrix.count == m * n, "a matrix has another size")
    try checkFinite(matrix, m, n)
    guard m > 0, n > 0 else { return try svd(matrix, m: m, n: n) }
    // Read by columns, a row-major matrix is its transpose, so U and V change places.
    let found = try thinSVD(doubles(matrix), rows: n, columns: m)
    return singles(found.vt, found.s, found.u, m, n)
  }

  // MARK: Column-major, double precision

  private static func thinQR(
    _ matrix: MutableSlice<Double>, rows: Int, columns: Int
  ) throws(PEFTError) -> (q: MutableSlice<Double>, r: MutableSlice<Double>) {
    let k = min(rows, columns)
    let tau = MutableSlice<Double>(count: k)
    pk_use_threads(pk_threads())
    var failure = withDoubleWork { work, count in
      pk_dgeqrf(
        Int32(rows), Int32(columns), matrix.pointer, Int32(rows), tau.pointer, work, count)
    }
    let r = MutableSlice<Double>(repeating: 0, count: k * columns)
    for column in 0..<columns {
      for row in 0...min(column, k - 1) { r[column * k + row] = matrix[column * rows + row] }
    }
    if failure == 0 {
      failure = withDoubleWork { work, count in
        pk_dorgqr(
          Int32(rows), Int32(k), Int32(k), matrix.pointer, Int32(rows), tau.pointer, work, count)
      }
    }
    guard failure == 0 else {
      throw PEFTError(
        .numericalFailure, "the QR decomposition of a \(rows)×\(columns) matrix failed")
    }
    return (matrix, r)
  }

  private static func thinSVD(
    _ matrix: MutableSlice<Double>, rows: Int, columns: Int
  ) throws(PEFTError) -> (
    u: MutableSlice<Double>, s: MutableSlice<Double>, vt: MutableSlice<Double>
  ) {
    let k = min(rows, columns)
    let (u, s) = (MutableSlice<Double>(count: rows * k), MutableSlice<Double>(count: k))
    let vt = MutableSlice<Double>(count: k * columns)
    let integers = MutableSlice<Int32>(count: 8 * k)
    pk_use_threads(pk_threads())
    let failure = withDoubleWork { work, count in
      pk_dgesdd(
        CChar(UInt8(ascii: "S")), Int32(rows), Int32(columns), matrix.pointer, Int32(rows),
        s.pointer, u.pointer, Int32(rows), vt.pointer, Int32(k), work, count, integers.pointer)
    }
    guard failure == 0 else {
      throw PEFTError(
        .numericalFailure,
        "the singular value decomposition of a \(rows)×\(columns) matrix did not converge")
    }
    return (u, s, vt)
  }

  private static func multiply(
    _ ta: Unicode.Scalar, _ tb: Unicode.Scalar, _ m: Int, _ n: Int, _ k: Int,
    _ a: MutableSlice<Double>, _ lda: Int, _ b: MutableSlice<Double>, _ ldb: Int,
    into c: MutableSlice<Double>, _ ldc: Int
  ) {
    precondition(c.count == m * n)
    pk_dgemm(
      CChar(UInt8(ascii: ta)), CChar(UInt8(ascii: tb)), Int32(m), Int32(n), Int32(k), a.pointer,
      Int32(lda), b.pointer, Int32(ldb), c.pointer, Int32(ldc))
  }

  private static func withDoubleWork(
    _ body: (UnsafeMutablePointer<Double>, Int32) -> Int32
  ) -> Int32 {
    var size = 0.0
    let failure = body(&size, -1)
    if failure != 0 { return failure }
    let work = MutableSlice<Double>(count: Int(size) + 1)
    return withExtendedLifetime(work) { body(work.pointer, Int32(clamping: work.count)) }
  }

  private static func doubles(_ x: Slice<Float>) -> MutableSlice<Double> {
    let y = MutableSlice<Double>(count: x.count)
    for i in 0..<x.count { y.pointer[i] = Double(x.pointer[i]) }
    return y
  }

  private static func transposed(
    _ x: Slice<Float>, rows: Int, columns: Int
  ) -> MutableSlice<Double> {
    let y = MutableSlice<Float>(count: x.count)
    Rows.transpose(rows: rows, columns: columns, x, into: y)
    return doubles(y.readOnly)
  }

  /// Row-major doubles as floats.
  private static func singles(
    _ u: MutableSlice<Double>, _ s: MutableSlice<Double>, _ vt: MutableSlice<Double>, _ m: Int,
    _ n: Int
  ) -> SingularValues {
    func floats(_ x: MutableSlice<Double>) -> MutableSlice<Float> {
      let y = MutableSlice<Float>(count: x.count)
      for i in 0..<x.count { y.pointer[i] = Float(x.pointer[i]) }
      return y
    }
    let result = SingularValues(u: floats(u), s: floats(s), vt: floats(vt), rank: s.count)
    fixSigns(result, m, n)
    return result
  }
}
