import Testing

@testable import BLASKernels

/// Expected values: the definition, in double precision, on the widened weights.
extension Kernels {
  @Suite struct HalfGEMMTests {
    static func half(_ x: [Float], _ format: HalfFormat) -> (bits: Slice<UInt16>, wide: [Float]) {
      let bits = MutableSlice<UInt16>(count: x.count)
      Conversion.narrow(Slice(x), to: format, into: bits)
      let wide = MutableSlice<Float>(count: x.count)
      Conversion.widen(bits.readOnly, from: format, into: wide)
      return (bits.readOnly, wide.array)
    }

    @Test(arguments: [
      (1, 33, 70), (2, 5, 3), (7, 64, 130), (33, 700, 515), (128, 300, 896), (40, 130, 2100),
    ])
    func halfWeights(m: Int, n: Int, k: Int) {
      for format in HalfFormat.allCases {
        for transposed in [true, false] {
          let (x, c) = (numbers(m * k, seed: 1), numbers(m * n, seed: 3))
          let (bits, wide) = Self.half(numbers(n * k, seed: 2), format)
          for (alpha, beta) in [(Float(1), Float(0)), (0.5, 1), (1, 2)] {
            let expected = ExpectedProduct(
              .no, transposed ? .yes : .no, m, n, k, Double(alpha), x, k, wide,
              transposed ? k : n, Double(beta), c, n)
            atEveryLevel { level in
              for backend in GEMMBackend.available {
                let result =
                  beta == 0 ? MutableSlice(repeating: .nan, count: m * n) : MutableSlice(c)
                BLAS.gemm(
                  Slice(x), weight: bits, format: format, transposeWeight: transposed, m: m, n: n,
                  k: k, alpha: alpha, beta: beta, into: result, backend: backend)
                #expect(
                  expected.error(result.array) < 3e-6,
                  "\(level), \(backend), \(m)×\(n)×\(k), \(format), \(transposed)")
              }
            }
          }
        }
      }
    }

    /// Inputs rounded to bf16 lose up to 2⁻⁹ each; the sum of many loses less.
    @Test func bfloat16Inputs() {
      let (m, n, k) = (20, 50, 300)
      let x = numbers(m * k, seed: 1)
      let (bits, wide) = Self.half(numbers(n * k, seed: 2), .bfloat16)
      let expected = ExpectedProduct(.no, .yes, m, n, k, 1, x, k, wide, k, 0, [], n)
      let result = MutableSlice<Float>(repeating: .nan, count: m * n)
      for force in [false, true] {
        BLAS.$forcesBF16.withValue(force) {
          BLAS.gemm(
            Slice(x), weight: bits, format: .bfloat16, transposeWeight: true, m: m, n: n, k: k,
            into: result, precision: .bfloat16Inputs)
        }
        #expect(expected.error(result.array) < 5e-3)
      }
    }

    /// Both ways to multiply two bf16 matrices: oneDNN's, which any AVX-512 machine can run, and widening.
    @Test func bfloat16Factors() {
      for force in [true, false] {
        for backend in GEMMBackend.available {
          for (m, n, k) in [(1, 1, 1), (5, 7, 3), (33, 40, 65), (100, 16, 384)] {
            for (ta, tb) in GEMMTests.transposes {
              let (rowsA, lda) = ta == .no ? (m, k + 2) : (k, m + 2)
              let (rowsB, ldb) = tb == .no ? (k, n + 4) : (n, k + 4)
              let ldc = n + 1
              let (a, wideA) = Self.half(numbers(rowsA * lda, seed: 1), .bfloat16)
              let (b, wideB) = Self.half(numbers(rowsB * ldb, seed: 2), .bfloat16)
              let c = numbers(m * ldc, seed: 3)
              for accumulate in [false, true] {
                let expected = ExpectedProduct(
                  ta, tb, m, n, k, 1, wideA, lda, wideB, ldb, accumulate ? 1 : 0, c, ldc)
                let result = MutableSlice(c)
                BLAS.$forcesBF16.withValue(force) {
                  BLAS.gemmBF16(
                    ta, tb, m: m, n: n, k: k, a, lda: lda, b, ldb: ldb, accumulate: accumulate,
                    into: result, ldc: ldc, backend: backend)
                }
                #expect(
                  expected.error(result.array) < 2e-6,
                  "\(force), \(backend), \(m)×\(n)×\(k), \(ta), \(tb), \(accumulate)")
              }
            }
          }
        }
      }
    }
  }
}
