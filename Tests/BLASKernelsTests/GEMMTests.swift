import Testing

@testable import BLASKernels

/// Expected values: the definition, in double precision.
extension Kernels {
  @Suite struct GEMMTests {
    // Tiny, odd, narrow in n, narrow in k, narrow in m, some that are cut into blocks and over
    // threads, and some with a B that is large beside A.
    static let shapes = [
      (1, 1, 1), (2, 3, 4), (5, 7, 3), (16, 16, 32), (17, 19, 23), (1, 40, 33), (40, 1, 33),
      (33, 8, 100), (450, 8, 384), (130, 16, 515), (131, 24, 96), (67, 64, 200), (129, 48, 77),
      (450, 96, 8), (133, 200, 16), (64, 515, 8), (200, 131, 64), (8, 384, 450), (384, 8, 130),
      (16, 300, 99), (100, 64, 1000), (65, 70, 600), (31, 33, 1025), (3, 1000, 5), (200, 150, 100),
      (300, 100, 1024), (7, 50, 64),
      (49, 999, 701), (130, 600, 1024), (67, 1024, 611), (12, 9, 513), (600, 40, 30),
      (30, 200, 1100), (530, 70, 700), (200, 1030, 100), (72, 650, 1000), (260, 2000, 8),
      (140, 900, 128),
    ]
    static let transposes: [(Transpose, Transpose)] = [
      (.no, .no), (.no, .yes), (.yes, .no), (.yes, .yes),
    ]

    static let routes: [(GEMMBackend, GEMMRoute)] =
      GEMMBackend.available.flatMap { backend in
        [(backend, .automatic), (backend, .library)]
      } + [(.standard, .own)]

    @Test(arguments: shapes) func matchesTheDefinition(m: Int, n: Int, k: Int) {
      for (ta, tb) in Self.transposes {
        for (alpha, beta) in [(Float(1), Float(0)), (0.5, 1), (2, -0.5)] {
          let (a, b, c) = (
            numbers(m * k, seed: 1), numbers(k * n, seed: 2), numbers(m * n, seed: 3)
          )
          let expected = ExpectedProduct(
            ta, tb, m, n, k, Double(alpha), a, ta == .no ? k : m, b, tb == .no ? n : k,
            Double(beta), c, n)
          atEveryLevel { level in
            for (backend, route) in Self.routes {
              // With beta = 0 whatever is in C must not matter.
              let result =
                beta == 0 ? MutableSlice(repeating: .nan, count: m * n) : MutableSlice(c)
              BLAS.gemm(
                ta, tb, m: m, n: n, k: k, alpha: alpha, Slice(a), Slice(b), beta: beta,
                into: result, backend: backend, route: route)
              #expect(
                expected.error(result.array) < 2e-6,
                "\(level), \(backend), \(route), \(m)×\(n)×\(k), \(ta), \(tb), \(beta)")
            }
          }
        }
      }
    }

    /// More rows than are taken at a time, and sums that are cut into parts or packed in pieces.
    @Test(arguments: [(270, 640, 1000), (49, 65, 16_500), (270, 65, 16_500)])
    func largeWeights(m: Int, n: Int, k: Int) {
      for tb in [Transpose.no, .yes] {
        for (alpha, beta) in [(Float(1), Float(0)), (0.5, 1), (2, -0.5)] {
          let (a, b, c) = (
            numbers(m * k, seed: 1), numbers(k * n, seed: 2), numbers(m * n, seed: 3)
          )
          let expected = ExpectedProduct(
            .no, tb, m, n, k, Double(alpha), a, k, b, tb == .no ? n : k, Double(beta), c, n)
          for threads in [1, 2] {
            withThreads(threads) {
              atEveryLevel { level in
                let result =
                  beta == 0 ? MutableSlice(repeating: .nan, count: m * n) : MutableSlice(c)
                BLAS.gemm(
                  .no, tb, m: m, n: n, k: k, alpha: alpha, Slice(a), Slice(b), beta: beta,
                  into: result, route: .own)
                #expect(
                  expected.error(result.array) < 2e-6,
                  "\(level), \(threads) threads, \(m)×\(n)×\(k), \(tb), \(beta)")
              }
            }
          }
        }
      }
    }

    @Test func rowStrides() {
      for (m, n, k) in [(5, 7, 3), (70, 8, 130), (70, 130, 8), (40, 50, 60), (12, 16, 200)] {
        for (ta, tb) in Self.transposes {
          let (rowsA, lda) = ta == .no ? (m, k + 5) : (k, m + 5)
          let (rowsB, ldb) = tb == .no ? (k, n + 3) : (n, k + 3)
          let ldc = n + 9
          let (a, b, c) = (
            numbers(rowsA * lda, seed: 1), numbers(rowsB * ldb, seed: 2),
            numbers(m * ldc, seed: 3)
          )
          for beta: Float in [0, 1] {
            let expected = ExpectedProduct(
              ta, tb, m, n, k, 1, a, lda, b, ldb, Double(beta), c, ldc)
            atEveryLevel { level in
              for (backend, route) in Self.routes {
                let result = MutableSlice(c)
                BLAS.gemm(
                  ta, tb, m: m, n: n, k: k, Slice(a), lda: lda, Slice(b), ldb: ldb, beta: beta,
                  into: result, ldc: ldc, backend: backend, route: route)
                #expect(
                  expected.error(result.array) < 2e-6,
                  "\(level), \(backend), \(m)×\(n)×\(k), \(ta), \(tb), \(beta)")
              }
            }
          }
        }
      }
    }

    @Test func emptyExtents() {
      for backend in GEMMBackend.available {
        let c = MutableSlice<Float>([1, 2, 3, 4])
        let empty = MutableSlice<Float>(count: 0).readOnly
        BLAS.gemm(.no, .no, m: 2, n: 2, k: 0, empty, empty, beta: 0.5, into: c, backend: backend)
        #expect(c.array == [0.5, 1, 1.5, 2])
        BLAS.gemm(.no, .no, m: 2, n: 2, k: 0, empty, empty, into: c, backend: backend)
        #expect(c.array == [0, 0, 0, 0])
        c.fill(9)
        BLAS.gemm(.no, .no, m: 0, n: 2, k: 2, empty, c.readOnly, into: c, backend: backend)
        BLAS.gemm(.no, .no, m: 2, n: 0, k: 2, c.readOnly, empty, into: c, backend: backend)
        #expect(c.array == [9, 9, 9, 9])
      }
    }

    @Test func batches() {
      atEveryLevel { level in
        for backend in GEMMBackend.available {
          for (count, m, n, k) in [(1, 5, 6, 7), (12, 20, 20, 32), (3, 16, 8, 130)] {
            let a = numbers(count * m * k, seed: 1)
            let b = numbers(n * k, seed: 2)
            let c = MutableSlice<Float>(repeating: .nan, count: count * m * n)
            // B is shared: its stride is 0.
            BLAS.batchedGEMM(
              .no, .yes, count: count, m: m, n: n, k: k, Slice(a), strideA: m * k, Slice(b),
              strideB: 0, into: c, strideC: m * n, backend: backend)
            for i in 0..<count {
              let expected = ExpectedProduct(
                .no, .yes, m, n, k, 1, Array(a[i * m * k..<(i + 1) * m * k]), k, b, k, 0, [], n)
              let part = c.readOnly[i * m * n..<(i + 1) * m * n].array
              #expect(expected.error(part) < 2e-6, "\(level), \(backend)")
            }
          }
        }
      }
    }

    /// Products that go to a library, several at a time: they must not share its scratch memory.
    @Test func libraryProductsAtOnce() {
      let (count, m, n, k) = (8, 256, 64, 256)
      let (a, b) = (numbers(count * k * m, seed: 1), numbers(count * k * n, seed: 2))
      let expected = (0..<count).map { i in
        ExpectedProduct(
          .yes, .no, m, n, k, 1, Array(a[i * k * m..<(i + 1) * k * m]), m,
          Array(b[i * k * n..<(i + 1) * k * n]), n, 0, [], n)
      }
      withThreads(4) {
        for backend in GEMMBackend.available {
          for _ in 0..<10 {
            let c = MutableSlice<Float>(repeating: .nan, count: count * m * n)
            BLAS.batchedGEMM(
              .yes, .no, count: count, m: m, n: n, k: k, Slice(a), strideA: k * m, Slice(b),
              strideB: k * n, into: c, strideC: m * n, backend: backend)
            for i in 0..<count {
              let part = c.readOnly[i * m * n..<(i + 1) * m * n].array
              #expect(expected[i].error(part) < 2e-6, "\(backend), product \(i)")
            }
          }
        }
      }
    }

    @Test func sameBitsInEveryRun() {
      let (m, n, k) = (450, 8, 384)
      let (a, b) = (Slice(numbers(m * k, seed: 1)), Slice(numbers(n * k, seed: 2)))
      func run() -> [Float] {
        let c = MutableSlice<Float>(count: m * n)
        BLAS.gemm(.no, .yes, m: m, n: n, k: k, a, b, into: c)
        return c.array
      }
      let first = run()
      for _ in 0..<10 { #expect(run() == first) }
    }

    @Test func matrixTimesVector() {
      atEveryLevel { level in
        for (rows, columns) in [(1, 1), (3, 5), (4, 16), (7, 33), (130, 96), (600, 515), (2, 3000)]
        {
          for transpose in [Transpose.no, .yes] {
            let (xCount, yCount) = transpose == .no ? (columns, rows) : (rows, columns)
            let ld = columns + 3
            let x = numbers(xCount, seed: 2)
            let y = numbers(yCount, seed: 3)
            let w = numbers(rows * ld, seed: 1)
            func expected(_ w: [Float], _ beta: Double) -> [Double] {
              (0..<yCount).map { i in
                let sum = (0..<xCount).reduce(0.0) { sum, j in
                  sum + Double(transpose == .no ? w[i * ld + j] : w[j * ld + i]) * Double(x[j])
                }
                return 0.5 * sum + beta * Double(y[i])
              }
            }
            let comment = Comment("\(level), \(rows)×\(columns), \(transpose)")
            let result = MutableSlice<Float>(repeating: .nan, count: yCount)
            BLAS.gemv(
              transpose: transpose, rows: rows, columns: columns, alpha: 0.5, Slice(w), ldw: ld,
              Slice(x), into: result)
            #expect(errorOfLargest(result.array, expected(w, 0)) < 5e-6, comment)
            result.copy(from: y)
            BLAS.gemv(
              transpose: transpose, rows: rows, columns: columns, alpha: 0.5, Slice(w), ldw: ld,
              Slice(x), beta: 2, into: result)
            #expect(errorOfLargest(result.array, expected(w, 2)) < 5e-6, comment)
            for format in HalfFormat.allCases {
              let half = MutableSlice<UInt16>(count: w.count)
              Conversion.narrow(Slice(w), to: format, into: half)
              let wide = MutableSlice<Float>(count: w.count)
              Conversion.widen(half.readOnly, from: format, into: wide)
              result.fill(.nan)
              BLAS.gemv(
                transpose: transpose, rows: rows, columns: columns, alpha: 0.5, half.readOnly,
                format: format, ldw: ld, Slice(x), into: result)
              #expect(errorOfLargest(result.array, expected(wide.array, 0)) < 5e-6, comment)
            }
          }
        }
      }
    }
  }
}
