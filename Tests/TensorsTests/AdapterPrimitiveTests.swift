import BLASKernels
import Tensors
import Testing

/// The primitives that adapters of fused, grouped and transposed layers need, against formulas in
/// double precision and differences.
struct AdapterPrimitiveTests {
  /// Each group maps its columns of x to its place in the sum; one group, and gaps between them.
  @Test(arguments: [(1, [2]), (2, [4, 0]), (3, [0, 2, 4])])
  func groupedProductsMapTheirColumns(_ groups: Int, _ starts: [Int]) {
    let (n, k, m, outputs) = (4, 3, 2, 7)
    let x = parameter([n, groups * k], seed: 1)
    let w = parameter([groups * m, k], seed: 2)
    let sum = parameter([n, outputs], seed: 3)
    var expected = sum.value.doubles
    for (group, start) in starts.enumerated() {
      for i in 0..<n {
        for j in 0..<m {
          for c in 0..<k {
            expected[i * outputs + start + j] +=
              1.5 * x.value.doubles[i * groups * k + group * k + c]
              * w.value.doubles[(group * m + j) * k + c]
          }
        }
      }
    }
    func actual() -> Tensor {
      var result = sum.tensor
      result.addProduct(x.tensor, w.tensor, groups: groups, starts: starts, scale: 1.5)
      return result
    }
    #expect(error(actual(), expected) < 1e-6)
    #expect(GradientCheck([x, w, sum]) { actual() }.maximumError < 5e-3)
  }

  @Test func vectorsAreAddedToRows() {
    let (x, b) = (parameter([3, 4], seed: 1), parameter([4], seed: 2))
    func actual() -> Tensor {
      var result = x.tensor
      result.addToRows(b.tensor, scale: 0.5)
      return result
    }
    let expected = x.value.doubles.enumerated().map { $1 + 0.5 * b.value.doubles[$0 % 4] }
    #expect(error(actual(), expected) < 1e-6)
    #expect(GradientCheck([x, b]) { actual() }.maximumError < 5e-3)
  }

  @Test func columnRangesAndTransposesHaveGradients() {
    let x = parameter([3, 5], seed: 1)
    let part = x.value.columnRange(1..<3)
    let v = x.value.scalars
    #expect(part.scalars == [v[1], v[2], v[6], v[7], v[11], v[12]])
    let check = GradientCheck([x]) { x.tensor.columnRange(1..<4) * x.tensor.columnRange(2..<5) }
    #expect(check.maximumError < 5e-3)
    let transposed = x.value.transposed()
    #expect(transposed.shape == [5, 3] && transposed.scalars[1] == x.value.scalars[5])
    #expect(
      GradientCheck([x]) { linear(x.tensor, x.tensor.transposed().transposed()) }
        .maximumError < 5e-3)
  }

  /// The column or row of padding is a constant: no gradient, also where its values are used.
  @Test func paddingGetsNoGradient() {
    let table = parameter([4, 3], seed: 1)
    let ids: [Int32] = [2, 1, 2, 0]
    let rows = gather(table.tensor, rows: ids, constant: 2).sum().backward()[table]
    #expect(rows?.scalars == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    let factor = parameter([2, 3], seed: 2)
    let columns = selectColumns(factor.tensor, ids, constant: 2).sum().backward()[factor]
    #expect(columns?.scalars == [1, 1, 0, 1, 1, 0])
  }

  /// Without a bias it is the attention without a score matrix; with one, softmax in doubles.
  @Test func biasedAttentionFollowsItsFormula() {
    let (heads, d, n, l, s) = (2, 3, 2, 4, 5)
    let q = parameter([n * l, heads * d], seed: 1)
    let k = parameter([n * s, heads * d], seed: 2)
    let v = parameter([n * s, heads * d], seed: 3)
    let mask: [UInt8] = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    let plain = BiasedAttention(
      heads: heads, sequences: n, queries: l, keys: s, bias: .zeros([l, s]), keyMask: mask)
    let problem = Attention(
      heads: heads, headDim: d, queryOffsets: [0, 4, 8], keyOffsets: [0, 5, 10], isCausal: false)
    let expected = attention(q.value, k.value, v.value, problem, keyMask: mask)
    #expect(error(plain(q.value, k.value, v.value), expected.doubles) < 1e-5)
    for shape in [[l, s], [n * heads, l, s]] {
      let biased = BiasedAttention(
        heads: heads, sequences: n, queries: l, keys: s, bias: numbers(shape, seed: 4),
        keyMask: mask)
      #expect(
        error(biased(q.value, k.value, v.value), reference(biased, q.value, k.value, v.value))
          < 1e-5)
      let check = GradientCheck([q, k, v]) { biased(q.tensor, k.tensor, v.tensor) }
      #expect(check.maximumError < 5e-3)
    }
    var dropping = plain
    dropping.dropout = (0.5, DropoutKey(seed: 1, stream: 2))
    #expect(
      dropping(q.value, k.value, v.value).scalars != plain(q.value, k.value, v.value).scalars)
    #expect(
      GradientCheck([q, k, v]) { dropping(q.tensor, k.tensor, v.tensor) }.maximumError < 5e-3)
  }

  private func reference(
    _ problem: BiasedAttention, _ q: Tensor, _ k: Tensor, _ v: Tensor
  ) -> [Double] {
    let (heads, l, s, width) = (problem.heads, problem.queries, problem.keys, q.columns)
    let d = width / heads
    let bias = problem.bias.doubles
    let (q, k, v) = (q.doubles, k.doubles, v.doubles)
    var result = [Double](repeating: 0, count: q.count)
    for n in 0..<problem.sequences {
      for h in 0..<heads {
        for i in 0..<l {
          let scores = (0..<s).map { j -> Double in
            if problem.keyMask?[n * s + j] == 0 { return -.infinity }
            let dot = (0..<d).reduce(0.0) {
              $0 + q[(n * l + i) * width + h * d + $1] * k[(n * s + j) * width + h * d + $1]
            }
            let place = bias.count == l * s ? i * s + j : ((n * heads + h) * l + i) * s + j
            return dot / Double(d).squareRoot() + bias[place]
          }
          let weights = scores.map { exponential($0) }
          let total = weights.reduce(0, +)
          for j in 0..<s {
            for c in 0..<d {
              result[(n * l + i) * width + h * d + c] +=
                weights[j] / total * v[(n * s + j) * width + h * d + c]
            }
          }
        }
      }
    }
    return result
  }

  /// eˣ for arguments of a few units, by its series; 0 at −∞.
  private func exponential(_ x: Double) -> Double {
    guard x.isFinite else { return 0 }
    var (sum, term) = (1.0, 1.0)
    for n in 1..<60 {
      term *= x / Double(n)
      sum += term
    }
    return sum
  }
}

/// A transposed view against the transposed matrix itself.
struct TransposedMatrixTests {
  private let stored = numbers([5, 7], seed: 1)

  @Test func behavesAsTheTranspose() throws {
    let plain = DenseMatrix(stored.transposed())
    for matrix in [
      TransposedMatrix(DenseMatrix(stored)), TransposedMatrix(TransposedMatrix(plain)),
    ] {
      #expect(matrix.rows == 7 && matrix.columns == 5)
      #expect(matrix.format == "float32" && matrix.byteCount == 140)
      #expect(matrix.dequantized().scalars == plain.dequantized().scalars)
      #expect(matrix.dequantized(rows: 2..<4).scalars == plain.dequantized(rows: 2..<4).scalars)
      let x = numbers([3, 5], seed: 2)
      #expect(error(matrix.multiply(x), plain.multiply(x).doubles) < 1e-6)
      let y = numbers([3, 7], seed: 3)
      func back(_ matrix: any WeightMatrix) -> Tensor {
        Tensor.filled([3, 5]) {
          matrix.multiplyTransposed(y.slice, count: 3, beta: 0, into: $0)
        }
      }
      #expect(error(back(matrix), back(plain).doubles) < 1e-6)
      #expect(error(matrix.squaredRowNorms(), plain.squaredRowNorms().doubles) < 1e-6)
      let rows = Tensor.filled([2, 5]) { matrix.gatherRows([6, 0], into: $0) }
      #expect(rows.scalars == plain.values.selectRows([6, 0]).scalars)
    }
  }

  /// Rows that a delta is asked for are outputs; the result is in the stored form again.
  @Test(arguments: [HalfFormat?.none, .bfloat16])
  func mergesInItsOwnOrientation(_ format: HalfFormat?) throws {
    let inner: any WeightMatrix =
      format.map { HalfMatrix(rounding: stored, to: $0) } ?? DenseMatrix(stored)
    let delta = numbers([7, 5], seed: 4)
    let add: WeightDelta = { rows, block in
      let own = delta.rowRange(rows).scalars
      block.withMutableSlice { for (i, value) in own.enumerated() { $0[i] += value } }
    }
    let merged = try TransposedMatrix(inner).merging(add)
    let transposedDelta = delta.transposed()
    let expected = try inner.merging { rows, block in
      let own = transposedDelta.rowRange(rows).scalars
      block.withMutableSlice { for (i, value) in own.enumerated() { $0[i] += value } }
    }
    let view = try #require(merged as? TransposedMatrix)
    #expect(view.stored.format == inner.format)
    #expect(view.stored.dequantized().scalars == expected.dequantized().scalars)
  }
}
