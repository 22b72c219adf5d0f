import CKernels

/// How a product with 16-bit weights treats its f32 input.
public enum HalfPrecision: Sendable {
  /// Weights are widened, the product is f32.
  case exact
  /// Inputs are rounded to bf16 where the processor multiplies that in hardware; elsewhere like `exact`.
  case bfloat16Inputs
}

extension BLAS {
  /// C = alpha x op(W) + beta C, with W in bf16 or f16.
  ///
  /// - Parameters:
  ///   - x: `[m, k]`.
  ///   - weight: `[n, k]` if transposed, else `[k, n]`.
  ///   - format: The weight's format.
  ///   - transposeWeight: Whether the product is x Wᵀ.
  ///   - m: Rows of x and C; 1 goes to `gemv`.
  ///   - n: Columns of C.
  ///   - k: The summed extent.
  ///   - alpha: Scales the product.
  ///   - beta: Scales C; C is not read when it is 0.
  ///   - c: `[m, n]`.
  ///   - precision: Whether x may be rounded to bf16; only for bf16 weights, alpha 1 and beta 0 or 1.
  ///   - backend: `oneDNN` for the product of bf16 inputs; exact products use the own kernels.
  public static func gemm(
    _ x: Slice<Float>, weight: Slice<UInt16>, format: HalfFormat, transposeWeight: Bool,
    m: Int, n: Int, k: Int, alpha: Float = 1, beta: Float = 0, into c: MutableSlice<Float>,
    precision: HalfPrecision = .exact, backend: GEMMBackend = .standard
  ) {
    checkMatrix(x.count, rows: m, columns: k, stride: k)
    checkMatrix(weight.count, rows: n, columns: k, stride: k)
    checkMatrix(c.count, rows: m, columns: n, stride: n)
    guard m > 0, n > 0 else { return }
    if m == 1 {
      gemv(
        transpose: transposeWeight ? .no : .yes, rows: transposeWeight ? n : k,
        columns: transposeWeight ? k : n, alpha: alpha, weight, format: format, x, beta: beta,
        into: c)
      return
    }
    if precision == .bfloat16Inputs, format == .bfloat16, InstructionSet.hasBFloat16,
      backend == .oneDNN, alpha == 1, beta == 0 || beta == 1, k > 0
    {
      let narrow = MutableSlice<UInt16>(count: m * k)
      Conversion.narrow(x[0..<m * k], to: .bfloat16, into: narrow)
      if pk_gemm_bf16(
        false, transposeWeight, m, n, k, narrow.pointer, k, weight.pointer,
        transposeWeight ? k : n, beta == 1, c.pointer, n)
      {
        return
      }
    }
    guard k > 0, alpha != 0 else {
      gemm(.no, .no, m: m, n: n, k: 0, x, x, beta: beta, into: c, backend: backend)
      return
    }
    // The own kernels widen weights while they pack them.
    OwnGEMM.run(
      pk_gemm_task(
        a: x.pointer, b: weight.pointer, c: c.pointer, m: m, n: n, k: k, lda: k,
        ldb: transposeWeight ? k : n, ldc: n, alpha: alpha, beta: beta, ta: false,
        tb: transposeWeight, format: format == .bfloat16 ? PK_BF16 : PK_F16))
  }

  /// C = op(A) op(B) + beta C of two bf16 matrices, accumulated in f32.
  ///
  /// oneDNN multiplies bf16 directly where the processor does; elsewhere both factors are widened.
  /// Parameters are those of the f32 `gemm`; beta is 0 or 1.
  public static func gemmBF16(
    _ ta: Transpose, _ tb: Transpose, m: Int, n: Int, k: Int, _ a: Slice<UInt16>,
    lda: Int? = nil, _ b: Slice<UInt16>, ldb: Int? = nil, accumulate: Bool = false,
    into c: MutableSlice<Float>, ldc: Int? = nil, backend: GEMMBackend = .standard
  ) {
    let (rowsA, columnsA) = ta == .no ? (m, k) : (k, m)
    let (rowsB, columnsB) = tb == .no ? (k, n) : (n, k)
    let (lda, ldb, ldc) = (lda ?? columnsA, ldb ?? columnsB, ldc ?? n)
    checkMatrix(a.count, rows: rowsA, columns: columnsA, stride: lda)
    checkMatrix(b.count, rows: rowsB, columns: columnsB, stride: ldb)
    checkMatrix(c.count, rows: m, columns: n, stride: ldc)
    guard m > 0, n > 0 else { return }
    if k > 0, backend == .oneDNN, InstructionSet.hasBFloat16 || forcesBF16,
      pk_gemm_bf16(
        ta == .yes, tb == .yes, m, n, k, a.pointer, lda, b.pointer, ldb, accumulate, c.pointer, ldc)
    {
      return
    }
    let wideA = widened(a, rows: rowsA, columns: columnsA, stride: lda)
    let wideB = widened(b, rows: rowsB, columns: columnsB, stride: ldb)
    gemm(
      ta, tb, m: m, n: n, k: k, wideA, wideB, beta: accumulate ? 1 : 0, into: c, ldc: ldc,
      backend: backend)
  }

  /// Makes `gemmBF16` use oneDNN's bf16 product on processors without bf16 too, where it is slow; for tests.
  @TaskLocal package static var forcesBF16 = false

  private static func widened(
    _ x: Slice<UInt16>, rows: Int, columns: Int, stride: Int
  ) -> Slice<Float> {
    let y = MutableSlice<Float>(count: rows * columns)
    if stride == columns {
      Conversion.widen(x[0..<rows * columns], from: .bfloat16, into: y)
    } else {
      Rows.split(rows, columns) { r in
        for row in r {
          pk_bf16_to_f32(x.pointer + row * stride, y.pointer + row * columns, columns)
        }
      }
    }
    return y.readOnly
  }
}
