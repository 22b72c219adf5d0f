import BLASKernels
import Tensors
import Testing

/// The pieces of weight-decomposed adapters, against formulas in double precision and differences.
struct WeightDecompositionTests {
  /// y = b + m/n·(x·Wᵀ + s·low·Bᵀ), and dm = Σ V·x/n for the sum of y.
  ///
  /// An almost dead row has a bias far above its magnitude: nothing is left of V·x in y. The rows
  /// with b = ±1 are within and beyond what is told apart.
  @Test(arguments: [nil, 1e-7, 1 / 300, 1 / 200, 0, -1e-7] as [Float?], [false, true])
  func magnitudesHaveGradients(_ dead: Float?, _ trainsLow: Bool) {
    let (n, columns, rows, rank) = (5, 6, 4, 2)
    let weight = DenseMatrix(numbers([rows, columns], seed: 1))
    let x = numbers([n, columns], seed: 2)
    let (low, b) = (parameter([n, rank], seed: 3), parameter([rows, rank], seed: 4))
    let bias = Tensor(shape: [rows], scalars: [0.5, -1, 0.25, 1])
    var magnitudes: [Float] = [0.75, 1.5, -0.5, 2]
    if let dead { magnitudes[1] = dead }
    let m = Parameter(Tensor(shape: [rows], scalars: magnitudes))
    let norms = Tensor(shape: [rows], scalars: [1.5, 2, 1.25, 1])
    func output() -> Tensor {
      decomposedLinear(
        x, product: weight.multiply(x), weight: weight, bias: bias,
        low: trainsLow ? low.tensor : low.value, b: b.tensor, scaling: 1.5,
        scale: ColumnScale(magnitude: m.value, norms: norms).tracking(m.tensor))
    }
    let main = product(x.doubles, weight.values.doubles, n: n, m: rows, k: columns)
    let added = product(low.value.doubles, b.value.doubles, n: n, m: rows, k: rank)
    let v = zip(main, added).map { ($0 + 1.5 * $1) }
    let expected = v.indices.map {
      let row = $0 % rows
      return bias.doubles[row] + m.value.doubles[row] / norms.doubles[row] * v[$0]
    }
    #expect(error(output(), expected) < 1e-6)
    let slope = output().sum().backward()[m]
    let dm = (0..<rows).map { row in
      (0..<n).reduce(0) { $0 + v[$1 * rows + row] / norms.doubles[row] }
    }
    // With |b| = 200 |m| eight bits of 24 are lost.
    #expect(slope.map { error($0, dm) } ?? .infinity < 1e-4)
    let trained = trainsLow ? [m, b, low] : [m, b]
    #expect(GradientCheck(trained) { output() }.maximumError < 5e-3)
  }
}
