import CKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Who multiplies dense matrices.
public enum GEMMBackend: Sendable, CaseIterable {
  /// oneDNN, unless the package was built without it.
  case oneDNN
  /// OpenBLAS, the baseline.
  case openBLAS

  /// The backends of this build.
  public static var available: [GEMMBackend] {
    allCases.filter { $0 == .openBLAS || pk_has_onednn() }
  }

  /// oneDNN where it is built in; the environment variable `PEFT_GEMM` (`onednn`, `openblas`) overrides.
  public static let standard: GEMMBackend = {
    let wish = getenv("PEFT_GEMM").map { String(cString: $0) }
    return pk_has_onednn() && wish != "openblas" ? .oneDNN : .openBLAS
  }()

  var code: pk_gemm_backend { self == .oneDNN ? PK_ONEDNN : PK_OPENBLAS }
}

/// Which code multiplies, for measurements and tests.
public enum GEMMRoute: Sendable, CaseIterable {
  /// What measured fastest for the shape: an own kernel or the backend.
  case automatic
  /// The backend.
  case library
  /// The own kernels.
  case own
}

/// Whether a factor of a product is used transposed.
public enum Transpose: Sendable {
  /// As stored.
  case no
  /// Transposed.
  case yes
}

/// Dense products, row-major.
///
/// A destination must not overlap a source.
public enum BLAS {
  /// C = alpha op(A) op(B) + beta C in f32.
  ///
  /// - Parameters:
  ///   - ta: Whether A is stored `[k, m]`.
  ///   - tb: Whether B is stored `[n, k]`.
  ///   - m: Rows of C.
  ///   - n: Columns of C.
  ///   - k: The summed extent; 0 leaves beta C.
  ///   - alpha: Scales the product.
  ///   - a: op(A) is `[m, k]`.
  ///   - lda: A's row stride; its number of columns unless given.
  ///   - b: op(B) is `[k, n]`.
  ///   - ldb: B's row stride; its number of columns unless given.
  ///   - beta: Scales C; C is not read when it is 0.
  ///   - c: `[m, n]`.
  ///   - ldc: C's row stride; n unless given.
  ///   - backend: Who does it; small and narrow problems go to an own kernel with either, if that is faster.
  ///   - route: Overrules that choice.
  public static func gemm(
    _ ta: Transpose, _ tb: Transpose, m: Int, n: Int, k: Int, alpha: Float = 1,
    _ a: Slice<Float>, lda: Int? = nil, _ b: Slice<Float>, ldb: Int? = nil, beta: Float = 0,
    into c: MutableSlice<Float>, ldc: Int? = nil, backend: GEMMBackend = .standard,
    route: GEMMRoute = .automatic
  ) {
    let lda = lda ?? (ta == .no ? k : m)
    let ldb = ldb ?? (tb == .no ? n : k)
    let ldc = ldc ?? n
    checkMatrix(a.count, rows: ta == .no ? m : k, columns: ta == .no ? k : m, stride: lda)
    checkMatrix(b.count, rows: tb == .no ? k : n, columns: tb == .no ? n : k, stride: ldb)
    checkMatrix(c.count, rows: m, columns: n, stride: ldc)
    gemm(
      ta == .yes, tb == .yes, m, n, k, alpha, a.pointer, lda, b.pointer, ldb, beta, c.pointer, ldc,
      backend, route)
  }

  /// `count` products C[i] = alpha op(A[i]) op(B[i]) + beta C[i], parallel over i.
  ///
  /// Strides are the distances in elements from one matrix to the next; 0 uses the same factor for all. The
  /// other parameters are those of `gemm`.
  public static func batchedGEMM(
    _ ta: Transpose, _ tb: Transpose, count: Int, m: Int, n: Int, k: Int, alpha: Float = 1,
    _ a: Slice<Float>, lda: Int? = nil, strideA: Int, _ b: Slice<Float>, ldb: Int? = nil,
    strideB: Int, beta: Float = 0, into c: MutableSlice<Float>, ldc: Int? = nil, strideC: Int,
    backend: GEMMBackend = .standard
  ) {
    guard count > 0 else { return }
    let lda = lda ?? (ta == .no ? k : m)
    let ldb = ldb ?? (tb == .no ? n : k)
    let ldc = ldc ?? n
    let last = count - 1
    checkMatrix(
      a.count - last * strideA, rows: ta == .no ? m : k, columns: ta == .no ? k : m, stride: lda)
    checkMatrix(
      b.count - last * strideB, rows: tb == .no ? k : n, columns: tb == .no ? n : k, stride: ldb)
    checkMatrix(c.count - last * strideC, rows: m, columns: n, stride: ldc)
    let one = { (i: Int) in
      gemm(
        ta == .yes, tb == .yes, m, n, k, alpha, a.pointer + i * strideA, lda,
        b.pointer + i * strideB, ldb, beta, c.pointer + i * strideC, ldc, backend)
    }
    // With few matrices the product itself is the better place for the threads.
    if count < Parallel.threadCount || m * n * k * count < 1 << 14 {
      for i in 0..<count { one(i) }
    } else {
      Parallel.forEach(count, one)
    }
  }

  /// y = alpha op(W) x + beta y.
  ///
  /// - Parameters:
  ///   - transpose: Whether y has `columns` elements and x `rows`.
  ///   - rows: Rows of W.
  ///   - columns: Columns of W.
  ///   - alpha: Scales the product.
  ///   - w: `[rows, columns]`.
  ///   - ldw: W's row stride; `columns` unless given.
  ///   - x: The vector.
  ///   - beta: Scales y; y is not read when it is 0.
  ///   - y: The result.
  public static func gemv(
    transpose: Transpose = .no, rows: Int, columns: Int, alpha: Float = 1, _ w: Slice<Float>,
    ldw: Int? = nil, _ x: Slice<Float>, beta: Float = 0, into y: MutableSlice<Float>
  ) {
    let ld = ldw ?? columns
    checkMatrix(w.count, rows: rows, columns: columns, stride: ld)
    precondition(
      x.count >= (transpose == .no ? columns : rows)
        && y.count >= (transpose == .no ? rows : columns), "a vector is too short")
    gemv(
      transpose == .yes, rows, columns, alpha, w.pointer, ld, x.pointer, beta, y.pointer, pk_gemv,
      pk_gemv_t)
  }

  /// y = alpha op(W) x + beta y with W in bf16 or f16; parameters as for f32.
  public static func gemv(
    transpose: Transpose = .no, rows: Int, columns: Int, alpha: Float = 1, _ w: Slice<UInt16>,
    format: HalfFormat, ldw: Int? = nil, _ x: Slice<Float>, beta: Float = 0,
    into y: MutableSlice<Float>
  ) {
    let ld = ldw ?? columns
    checkMatrix(w.count, rows: rows, columns: columns, stride: ld)
    precondition(
      x.count >= (transpose == .no ? columns : rows)
        && y.count >= (transpose == .no ? rows : columns), "a vector is too short")
    switch format {
    case .bfloat16:
      gemv(
        transpose == .yes, rows, columns, alpha, w.pointer, ld, x.pointer, beta, y.pointer,
        pk_gemv_bf16, pk_gemv_t_bf16)
    case .float16:
      gemv(
        transpose == .yes, rows, columns, alpha, w.pointer, ld, x.pointer, beta, y.pointer,
        pk_gemv_f16, pk_gemv_t_f16)
    }
  }

  // MARK: Pointers

  static func gemm(
    _ ta: Bool, _ tb: Bool, _ m: Int, _ n: Int, _ k: Int, _ alpha: Float,
    _ a: UnsafePointer<Float>, _ lda: Int, _ b: UnsafePointer<Float>, _ ldb: Int, _ beta: Float,
    _ c: UnsafeMutablePointer<Float>, _ ldc: Int, _ backend: GEMMBackend,
    _ route: GEMMRoute = .automatic
  ) {
    guard m > 0, n > 0 else { return }
    guard k > 0, alpha != 0 else {
      for row in 0..<m {
        let line = c + row * ldc
        if beta == 0 { pk_fill(0, line, n) } else { pk_scale(beta, line, line, n) }
      }
      return
    }
    if route == .own || route == .automatic && OwnGEMM.isFaster(ta, tb, m, n, k, than: backend) {
      OwnGEMM.run(
        pk_gemm_task(
          a: a, b: b, c: c, m: m, n: n, k: k, lda: lda, ldb: ldb, ldc: ldc, alpha: alpha,
          beta: beta, ta: ta, tb: tb, format: PK_F32))
      return
    }
    if pk_sgemm(backend.code, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) { return }
    precondition(
      pk_sgemm(PK_OPENBLAS, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), "no backend")
  }

  static func gemv<Weight>(
    _ transpose: Bool, _ rows: Int, _ columns: Int, _ alpha: Float, _ w: UnsafePointer<Weight>,
    _ ld: Int, _ x: UnsafePointer<Float>, _ beta: Float, _ y: UnsafeMutablePointer<Float>,
    _ kernel: (
      UnsafePointer<Weight>, Int, UnsafePointer<Float>, Float, Float, UnsafeMutablePointer<Float>,
      Int, Int
    ) -> Void,
    _ transposedKernel: (
      UnsafePointer<Weight>, Int, UnsafePointer<Float>, Float, Float, UnsafeMutablePointer<Float>,
      Int, Int
    ) -> Void
  ) {
    if transpose {
      let grain = max(64, Parallel.lightGrain / max(rows, 1))
      Parallel.split(columns, grain: grain, multiple: 64) { c in
        let at = c.lowerBound
        transposedKernel(w + at, ld, x, alpha, beta, y + at, rows, c.count)
      }
    } else {
      let grain = max(4, Parallel.lightGrain / max(columns, 1))
      Parallel.split(rows, grain: grain, multiple: 4) { r in
        let at = r.lowerBound
        kernel(w + at * ld, ld, x, alpha, beta, y + at, r.count, columns)
      }
    }
  }

  static func checkMatrix(_ count: Int, rows: Int, columns: Int, stride: Int) {
    precondition(rows >= 0 && columns >= 0, "a negative size")
    guard rows > 0, columns > 0 else { return }
    precondition(stride >= columns, "a row stride is too short")
    precondition(count >= (rows - 1) * stride + columns, "a matrix is too short")
  }
}
