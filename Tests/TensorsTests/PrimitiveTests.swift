import Testing

@testable import Tensors

/// Values of the primitives against naive formulas in double precision, and gradients against
/// central differences, over shapes that are no multiples of a vector's width.
struct PrimitiveTests {
  static let shapes = [(1, 1), (3, 7), (5, 17), (2, 64), (33, 19)]

  @Test(arguments: shapes)
  func elementwise(_ n: Int, _ m: Int) {
    let (p, q, v) = (parameter([n, m]), parameter([n, m], seed: 2), parameter([m], seed: 3))
    let (a, b, s) = (p.value.doubles, q.value.doubles, v.value.doubles)
    #expect(error(p.value + q.value, zip(a, b).map(+)) < 1e-6)
    #expect(error(p.value * q.value, zip(a, b).map(*)) < 1e-6)
    #expect(error(p.value.scaled(by: -1.5), a.map { -1.5 * $0 }) < 1e-6)
    #expect(
      error(
        p.value.scalingColumns(by: v.value), a.indices.map { a[$0] * s[$0 % m] }) < 1e-6)
    #expect(abs(Double(p.value.sum().item) - a.reduce(0, +)) < 1e-5)
    let check = GradientCheck([p, q, v]) {
      ((p.tensor + q.tensor) * p.tensor.scaled(by: 2)).scalingColumns(by: v.tensor)
        .reshaped([m, n])
    }
    #expect(check.maximumError < 2e-3)
    #expect(GradientCheck([p]) { p.tensor.sum() }.maximumError < 2e-3)
  }

  @Test(arguments: [(1, 1, 1), (3, 5, 7), (17, 4, 33), (2, 31, 16)], [false, true])
  func linearMaps(_ shape: (n: Int, m: Int, k: Int), _ hasBias: Bool) {
    let (n, m, k) = shape
    let (x, w, b) = (parameter([n, k]), parameter([m, k], seed: 2), parameter([m], seed: 3))
    let bias: Parameter? = hasBias ? b : nil
    var expected = product(x.value.doubles, w.value.doubles, n: n, m: m, k: k)
    if hasBias { for i in expected.indices { expected[i] += b.value.doubles[i % m] } }
    let frozen = DenseMatrix(w.value)
    #expect(error(linear(x.value, w.value, bias: bias?.value), expected) < 1e-5)
    #expect(error(linear(x.value, frozen, bias: bias?.value), expected) < 1e-5)
    let trainable = GradientCheck([x, w] + (hasBias ? [b] : [])) {
      linear(x.tensor, w.tensor, bias: bias?.tensor)
    }
    #expect(trainable.maximumError < 2e-3)
    let fixed = GradientCheck([x] + (hasBias ? [b] : [])) {
      linear(x.tensor, frozen, bias: bias?.tensor)
    }
    #expect(fixed.maximumError < 2e-3)
  }

  @Test func linearKeepsLeadingDimensions() {
    let (x, w) = (numbers([2, 3, 4]), numbers([5, 4], seed: 2))
    #expect(linear(x, w).shape == [2, 3, 5])
    #expect(linear(x, DenseMatrix(w)).shape == [2, 3, 5])
    #expect(linear(Tensor.zeros([0, 4]), w).shape == [0, 5])
  }

  /// y + s·x·Wᵀ in place, with the gradient of each of the three.
  @Test func productsAreAddedInPlace() {
    let (y, x, w) = (parameter([5, 3]), parameter([5, 7], seed: 2), parameter([3, 7], seed: 3))
    var sum = y.value
    sum.addProduct(x.value, w.value, scale: 0.5)
    let xw = product(x.value.doubles, w.value.doubles, n: 5, m: 3, k: 7)
    #expect(error(sum, zip(y.value.doubles, xw).map { $0 + 0.5 * $1 }) < 1e-6)
    let check = GradientCheck([y, x, w]) {
      var sum = y.tensor
      sum.addProduct(x.tensor, w.tensor, scale: 0.5)
      return sum * sum
    }
    #expect(check.maximumError < 2e-3)
    // With one trainable factor only.
    for trainable in [y, x, w] {
      for other in [y, x, w] { other.isTrainable = other === trainable }
      let single = GradientCheck([trainable]) {
        var sum = y.tensor
        sum.addProduct(x.tensor, w.tensor, scale: 0.5)
        return sum
      }
      #expect(single.maximumError < 2e-3)
    }
  }

  @Test(arguments: [(1, 5), (3, 17), (7, 64), (2, 100)], [false, true])
  func layerNormalisation(_ shape: (n: Int, m: Int), _ hasResidual: Bool) {
    let (n, m) = shape
    let (x, r) = (parameter([n, m]), parameter([n, m], seed: 2))
    let (w, b) = (parameter([m], seed: 3), parameter([m], seed: 4))
    let residual: Parameter? = hasResidual ? r : nil
    func run(_ x: Tensor, _ r: Tensor?, _ w: Tensor, _ b: Tensor) -> Tensor {
      layerNorm(x, residual: r, weight: w, bias: b, epsilon: 1e-3)
    }
    var rows = x.value.doubles
    if hasResidual { rows = zip(rows, r.value.doubles).map(+) }
    var expected: [Double] = []
    for row in 0..<n {
      let values = rows[row * m..<(row + 1) * m]
      let mean = values.reduce(0, +) / Double(m)
      let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(m)
      for (column, value) in values.enumerated() {
        expected.append(
          (value - mean) / (variance + 1e-3).squareRoot() * w.value.doubles[column]
            + b.value.doubles[column])
      }
    }
    #expect(error(run(x.value, residual?.value, w.value, b.value), expected) < 1e-5)
    let tracked = run(x.tensor, residual?.tensor, w.tensor, b.tensor)
    #expect(error(tracked, expected) < 1e-5)
    let all = [x, w, b] + (hasResidual ? [r] : [])
    let check = GradientCheck(all, step: 3e-3) {
      run(x.tensor, residual?.tensor, w.tensor, b.tensor)
    }
    #expect(check.maximumError < 1e-2)
    for trainable in all {
      for other in all { other.isTrainable = other === trainable }
      let single = GradientCheck([trainable], step: 3e-3) {
        run(x.tensor, residual?.tensor, w.tensor, b.tensor)
      }
      #expect(single.maximumError < 1e-2)
    }
  }

  /// The same tensor as input and residual: its two gradients add up.
  @Test func layerNormOfATensorWithItself() {
    let (x, w, b) = (parameter([2, 9]), numbers([9], seed: 3), numbers([9], seed: 4))
    let check = GradientCheck([x], step: 3e-3) {
      layerNorm(x.tensor, residual: x.tensor, weight: w, bias: b, epsilon: 1e-3)
    }
    #expect(check.maximumError < 1e-2)
  }

  @Test(arguments: [(1, 5), (3, 17), (7, 64), (2, 100)])
  func rootMeanSquareNormalisation(_ n: Int, _ m: Int) {
    let (x, w) = (parameter([n, m]), parameter([m], seed: 3))
    let rows = x.value.doubles
    let expected = rows.indices.map { index in
      let row = rows[index / m * m..<(index / m + 1) * m]
      let mean = row.reduce(0) { $0 + $1 * $1 } / Double(m)
      return rows[index] / (mean + 1e-3).squareRoot() * w.value.doubles[index % m]
    }
    #expect(error(rmsNorm(x.value, weight: w.value, epsilon: 1e-3), expected) < 1e-5)
    for trainable in [[x, w], [x], [w]] {
      for p in [x, w] { p.isTrainable = trainable.contains { $0 === p } }
      let check = GradientCheck(trainable, step: 3e-3) {
        rmsNorm(x.tensor, weight: w.tensor, epsilon: 1e-3)
      }
      #expect(check.maximumError < 1e-2)
    }
  }

  @Test(arguments: shapes)
  func gatedActivation(_ n: Int, _ m: Int) {
    let (gate, up) = (parameter([n, m]), parameter([n, m], seed: 2))
    let expected = zip(gate.value.doubles, up.value.doubles).map {
      $0 / (1 + exponential(-$0)) * $1
    }
    #expect(error(swiGLU(gate: gate.value, up: up.value), expected) < 1e-5)
    #expect(
      GradientCheck([gate, up]) { swiGLU(gate: gate.tensor, up: up.tensor) }.maximumError < 2e-3)
  }

  /// e^x by its series, to depend on no other implementation.
  private func exponential(_ x: Double) -> Double {
    var (term, sum) = (1.0, 1.0)
    for k in 1..<40 {
      term *= x / Double(k)
      sum += term
    }
    return sum
  }

  @Test func gatheringRows() throws {
    let table = parameter([5, 3])
    let ids: [Int32] = [4, 0, 4, 2]
    let expected = ids.flatMap { id in (0..<3).map { table.value.doubles[Int(id) * 3 + $0] } }
    #expect(error(gather(table.value, rows: ids), expected) == 0)
    #expect(error(gather(DenseMatrix(table.value), rows: ids), expected) == 0)
    let gradient = try #require(gather(table.tensor, rows: ids).sum().backward()[table])
    #expect(gradient.scalars == [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 2, 2, 2])
    #expect(
      GradientCheck([table]) {
        let rows = gather(table.tensor, rows: ids)
        return rows * rows + gather(table.tensor, rows: [1, 2, 3, 4])
      }.maximumError < 2e-3)
    #expect(gather(table.value, rows: []).shape == [0, 3])
  }

  @Test func selectingColumns() {
    let matrix = parameter([3, 5])
    let ids: [Int32] = [4, 0, 4]
    let expected = ids.flatMap { id in (0..<3).map { matrix.value.doubles[$0 * 5 + Int(id)] } }
    #expect(error(selectColumns(matrix.value, ids), expected) == 0)
    #expect(
      GradientCheck([matrix]) {
        let rows = selectColumns(matrix.tensor, ids)
        return rows * rows + selectColumns(matrix.tensor, [1, 2, 3])
      }.maximumError < 2e-3)
  }

  @Test func replacingRowsSplitsTheGradient() {
    let (x, y) = (parameter([4, 3]), parameter([2, 3], seed: 2))
    let check = GradientCheck([x, y]) {
      var rows = x.tensor
      rows.replaceRows([3, 1], with: y.tensor)
      return rows * rows
    }
    #expect(check.maximumError < 2e-3)
  }

  @Test func crossEntropyFollowsItsFormula() throws {
    let logits = parameter([4, 7])
    let labels: [Int32] = [6, -100, 0, 3]
    let values = logits.value.doubles.map { $0 * 3 }
    var sum = 0.0
    for (row, label) in labels.enumerated() where label != ignoredLabel {
      let own = values[row * 7..<(row + 1) * 7]
      let total = own.reduce(0) { $0 + exponential($1) }
      sum += logarithm(total) - own[row * 7 + Int(label)]
    }
    let scaled = logits.value.scaled(by: 3)
    #expect(abs(Double(try crossEntropy(scaled, labels: labels).item) - sum / 3) < 1e-5)
    #expect(abs(Double(try crossEntropy(scaled, labels: labels, count: 10).item) - sum / 10) < 1e-5)
    let check = try GradientCheck([logits]) {
      try crossEntropy(logits.tensor.scaled(by: 3), labels: labels)
    }
    #expect(check.maximumError < 2e-3)
    // Where someone still holds the logits, their values stay.
    let held = logits.tensor.scaled(by: 3)
    let before = held.scalars
    _ = try crossEntropy(held, labels: labels).backward()
    #expect(held.scalars == before)
    // Far beyond what exp can take.
    let large = Tensor(shape: [1, 2], scalars: [1000, -1000])
    #expect(try crossEntropy(large, labels: [1]).item == 2000)
    #expect(try crossEntropy(large, labels: [-100]).item.isNaN)
    let error = #expect(throws: (any Error).self) { try crossEntropy(large, labels: [2]) }
    #expect("\(try #require(error))".contains("the label 2 in row 0 is not a class in 0..<2"))
  }

  /// ln x by Newton's method on the series of e^x.
  private func logarithm(_ x: Double) -> Double {
    var y = 1.0
    for _ in 0..<60 { y += x / exponential(y) - 1 }
    return y
  }

  @Test func meanSquaredErrorFollowsItsFormula() {
    let p = parameter([5, 1])
    let targets: [Float] = [1, 0, -1, 0.5, 2]
    let expected = zip(p.value.doubles, targets).reduce(0.0) {
      $0 + ($1.0 - Double($1.1)) * ($1.0 - Double($1.1)) / 5
    }
    #expect(abs(Double(meanSquaredError(p.value, targets: targets).item) - expected) < 1e-6)
    #expect(
      GradientCheck([p]) { meanSquaredError(p.tensor, targets: targets) }.maximumError < 2e-3)
  }

  @Test func dropoutZeroesAndScales() throws {
    let x = Parameter(Tensor(repeating: 1, shape: [100, 100]))
    let key = DropoutKey(seed: 9, stream: 1)
    let y = dropout(x.tensor, probability: 0.25, key: key)
    let zeros = y.scalars.count { $0 == 0 }
    #expect(y.scalars.allSatisfy { $0 == 0 || abs($0 - 4 / 3) < 1e-6 })
    // Binomial: a standard error is √(10⁴·¼·¾) ≈ 43; five are allowed.
    #expect(abs(zeros - 2500) < 217)
    #expect(try #require(y.sum().backward()[x]).scalars == y.scalars)
    #expect(x.value.scalars.allSatisfy { $0 == 1 })
    #expect(dropout(x.value, probability: 0.25, key: key).scalars == y.scalars)
    let other = DropoutKey(seed: 9, stream: 2)
    #expect(dropout(x.value, probability: 0.25, key: other).scalars != y.scalars)
    #expect(dropout(x.value, probability: 0, key: key).scalars == x.value.scalars)
  }
}
