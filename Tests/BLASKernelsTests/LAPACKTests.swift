import PEFTSupport
import Testing

@testable import BLASKernels

/// Expected values: a decomposition multiplies back to its matrix and its factors are orthonormal; singular
/// values of a matrix built from known ones.
extension Kernels {
  @Suite struct LAPACKTests {
    /// X Y for X `[m, k]` and Y `[k, n]`, by the definition.
    static func product(_ m: Int, _ n: Int, _ k: Int, _ x: [Float], _ y: [Float]) -> [Double] {
      (0..<m * n).map { index in
        (0..<k).reduce(0.0) { $0 + Double(x[index / n * k + $1]) * Double(y[$1 * n + index % n]) }
      }
    }

    /// The largest |XᵀX − 1| for columns, or |XXᵀ − 1| for rows.
    static func deviation(_ x: [Float], rows: Int, columns: Int, ofRows: Bool) -> Double {
      let transposed = (0..<x.count).map { x[$0 % rows * columns + $0 / rows] }
      let k = ofRows ? rows : columns
      let gram =
        ofRows
        ? product(k, k, columns, x, transposed) : product(k, k, rows, transposed, x)
      return gram.indices.reduce(0) { max($0, abs(gram[$1] - ($1 / k == $1 % k ? 1 : 0))) }
    }

    @Test(arguments: [(1, 1), (5, 3), (3, 5), (40, 40), (130, 50), (50, 130)])
    func singularValues(m: Int, n: Int) throws {
      let x = numbers(m * n, seed: 1)
      let k = min(m, n)
      let result = try LAPACK.svd(Slice(x), m: m, n: n)
      let (u, s, vt) = (result.u.array, result.s.array, result.vt.array)
      #expect(result.rank == k && zip(s, s.dropFirst()).allSatisfy { $0 >= $1 } && s.last! >= 0)
      #expect(Self.deviation(u, rows: m, columns: k, ofRows: false) < 1e-5)
      #expect(Self.deviation(vt, rows: k, columns: n, ofRows: true) < 1e-5)
      let scaled = u.indices.map { u[$0] * s[$0 % k] }
      #expect(errorOfLargest(x, Self.product(m, n, k, scaled, vt)) < 1e-5)
      for i in 0..<k {
        let column = (0..<m).map { u[$0 * k + i] }
        #expect(column.max { abs($0) < abs($1) }! > 0)
      }
    }

    @Test(arguments: [(1, 1), (5, 3), (3, 5), (40, 40), (130, 50), (50, 130)])
    func preciseSingularValues(m: Int, n: Int) throws {
      let x = numbers(m * n, seed: 3)
      let k = min(m, n)
      let result = try LAPACK.preciseSVD(Slice(x), m: m, n: n)
      let (u, s, vt) = (result.u.array, result.s.array, result.vt.array)
      #expect(result.rank == k && zip(s, s.dropFirst()).allSatisfy { $0 >= $1 } && s.last! >= 0)
      // The rounding of the results to floats is all that is lost.
      #expect(Self.deviation(u, rows: m, columns: k, ofRows: false) < 5e-7)
      #expect(Self.deviation(vt, rows: k, columns: n, ofRows: true) < 5e-7)
      let scaled = u.indices.map { u[$0] * s[$0 % k] }
      #expect(errorOfLargest(x, Self.product(m, n, k, scaled, vt)) < 1e-6)
    }

    /// Also where a factor has more columns than rows.
    @Test(arguments: [
      (1, 1, 1), (9, 3, 7), (7, 3, 9), (120, 8, 50), (4, 6, 9), (9, 6, 4), (3, 8, 2),
    ])
    func singularValuesOfAProduct(m: Int, r: Int, n: Int) throws {
      let (b, a) = (numbers(m * r, seed: 4), numbers(r * n, seed: 5))
      let x = Self.product(m, n, r, b, a)
      let k = min(m, r, n)
      let result = try LAPACK.svd(Slice(b), times: Slice(a), m: m, r: r, n: n)
      let (u, s, vt) = (result.u.array, result.s.array, result.vt.array)
      #expect(result.rank == k && u.count == m * k && vt.count == k * n)
      #expect(zip(s, s.dropFirst()).allSatisfy { $0 >= $1 })
      #expect(Self.deviation(u, rows: m, columns: k, ofRows: false) < 5e-7)
      #expect(Self.deviation(vt, rows: k, columns: n, ofRows: true) < 5e-7)
      let scaled = u.indices.map { u[$0] * s[$0 % k] }
      #expect(errorOfLargest(x.map { Float($0) }, Self.product(m, n, k, scaled, vt)) < 1e-6)
      for i in 0..<k {
        let column = (0..<m).map { u[$0 * k + i] }
        #expect(column.max { abs($0) < abs($1) }! > 0)
      }
    }

    @Test func preciseDecompositionsCheckTheirInput() {
      #expect(throws: PEFTError.self) {
        try LAPACK.preciseSVD(Slice([1, .nan, 3, 4]), m: 2, n: 2)
      }
      #expect(throws: PEFTError.self) {
        try LAPACK.svd(Slice([1, 2]), times: Slice([.infinity, 4]), m: 2, r: 1, n: 2)
      }
    }

    @Test(arguments: [(1, 1), (5, 3), (3, 5), (40, 40), (130, 50), (50, 130)])
    func orthogonalTriangular(m: Int, n: Int) throws {
      let x = numbers(m * n, seed: 2)
      let k = min(m, n)
      let (q, r) = try LAPACK.qr(Slice(x), m: m, n: n)
      #expect(Self.deviation(q.array, rows: m, columns: k, ofRows: false) < 1e-5)
      #expect(errorOfLargest(x, Self.product(m, n, k, q.array, r.array)) < 1e-5)
      let upper = r.array
      #expect(upper.indices.allSatisfy { $0 % n >= $0 / n || upper[$0] == 0 })
    }

    @Test func leadingSingularValues() throws {
      let (m, n, rank) = (150, 90, 8)
      // Orthonormal factors and values 2⁻ⁱ, so that the leading ones stand out.
      let u = try LAPACK.qr(Slice(numbers(m * n, seed: 3)), m: m, n: n).q
      let v = try LAPACK.qr(Slice(numbers(n * n, seed: 4)), m: n, n: n).q
      let s = (0..<n).map { Float(sign: .plus, exponent: -$0, significand: 1) }
      let scaled = MutableSlice<Float>(count: m * n)
      Rows.scaleColumns(rows: m, columns: n, u.readOnly, by: Slice(s), into: scaled)
      let x = MutableSlice<Float>(count: m * n)
      BLAS.gemm(.no, .yes, m: m, n: n, k: n, scaled.readOnly, v.readOnly, into: x)
      let full = try LAPACK.svd(x.readOnly, m: m, n: n)
      let result = try LAPACK.truncatedSVD(x.readOnly, m: m, n: n, rank: rank, seed: 5)
      #expect(result.rank == rank)
      for i in 0..<rank {
        #expect(abs(result.s[i] - s[i]) < 2e-6)
        for row in 0..<m { #expect(abs(result.u[row * rank + i] - full.u[row * n + i]) < 1e-3) }
        for column in 0..<n {
          #expect(abs(result.vt[i * n + column] - full.vt[i * n + column]) < 1e-3)
        }
      }
      let again = try LAPACK.truncatedSVD(x.readOnly, m: m, n: n, rank: rank, seed: 5)
      #expect(again.u.array == result.u.array && again.s.array == result.s.array)
    }

    /// The leading part of the whole decomposition, for tall and wide, and where the matrix has a lower
    /// rank than is wanted.
    @Test(arguments: [(300, 120), (120, 300), (200, 200), (20, 9)])
    func leadingPart(m: Int, n: Int) throws {
      let x = numbers(m * n, seed: 7)
      let k = min(m, n)
      let rank = 5
      let full = try LAPACK.svd(Slice(x), m: m, n: n)
      let part = try LAPACK.leadingSVD(Slice(x), m: m, n: n, rank: rank)
      #expect(part.rank == rank)
      for i in 0..<rank {
        #expect(abs(part.s[i] - full.s[i]) < 2e-6 * full.s[0])
        // Vectors of neighbouring values mix by the rounding error over their distance.
        let gap = min(
          i == 0 ? .infinity : full.s[i - 1] - full.s[i], full.s[i] - full.s[i + 1])
        let tolerance = 1e-5 * full.s[0] / gap
        for row in 0..<m { #expect(abs(part.u[row * rank + i] - full.u[row * k + i]) < tolerance) }
        for column in 0..<n {
          #expect(abs(part.vt[i * n + column] - full.vt[i * n + column]) < tolerance)
        }
      }
      // Rank 2, of which five are wanted: the others are zero, and the vectors are finite.
      let (a, b) = (numbers(m * 2, seed: 8), numbers(2 * n, seed: 9))
      let low = MutableSlice<Float>(count: m * n)
      BLAS.gemm(.no, .no, m: m, n: n, k: 2, Slice(a), Slice(b), into: low)
      let few = try LAPACK.leadingSVD(low.readOnly, m: m, n: n, rank: rank)
      #expect(few.s[2] < 1e-4 * few.s[0] && VectorMath.allFinite(few.u.readOnly))
      let rest = try LAPACK.svd(low.readOnly, m: m, n: n)
      #expect(abs(few.s[1] - rest.s[1]) < 1e-5 * few.s[0])
    }

    @Test(arguments: [1, 7, 130])
    func inverse(n: Int) throws {
      // XᵀX of many rows is positive definite.
      let rows = 3 * n + 5
      let x = numbers(rows * n, seed: 10)
      let gram = MutableSlice<Float>(count: n * n)
      BLAS.gemm(.yes, .no, m: n, n: n, k: rows, Slice(x), Slice(x), into: gram)
      let inverse = try #require(LAPACK.inverseOfPositiveDefinite(gram.readOnly, n: n))
      let product = Self.product(n, n, n, gram.array, inverse.array)
      for i in product.indices {
        #expect(abs(product[i] - (i / n == i % n ? 1 : 0)) < 1e-3)
      }
      gram[0] = -1
      #expect(LAPACK.inverseOfPositiveDefinite(gram.readOnly, n: n) == nil)
    }

    @Test func rankBeyondTheMatrix() throws {
      let x = Slice(numbers(6 * 4, seed: 6))
      let result = try LAPACK.truncatedSVD(x, m: 6, n: 4, rank: 10)
      #expect(result.rank == 4)
      let full = try LAPACK.svd(x, m: 6, n: 4)
      #expect(errorOfLargest(result.s.array, doubles(full.s.array)) < 1e-5)
    }

    @Test func refusesWhatIsNotFinite() {
      let bad = Slice<Float>([1, .nan, 3, 4])
      for body in [
        { _ = try LAPACK.svd(bad, m: 2, n: 2) }, { _ = try LAPACK.qr(bad, m: 2, n: 2) },
        { _ = try LAPACK.truncatedSVD(bad, m: 2, n: 2, rank: 1) },
      ] as [() throws -> Void] {
        #expect {
          try body()
        } throws: { error in
          (error as? PEFTError)?.code == .numericalFailure
        }
      }
    }
  }
}
