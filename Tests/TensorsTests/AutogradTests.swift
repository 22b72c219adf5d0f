import BLASKernels
import Testing

@testable import Tensors

/// The engine: what is recorded, how gradients add up, recomputation.
struct AutogradTests {
  @Test func nothingIsRecordedWithoutTrainableParameters() {
    let frozen = Parameter(numbers([4]), isTrainable: false)
    let x = numbers([3, 4])
    let y = linear(x, DenseMatrix(numbers([4, 4])), bias: frozen.tensor)
    let z = rmsNorm(Activation.gelu(y) + x, weight: frozen.tensor, epsilon: 1e-6)
    #expect(!z.isTracked && !z.sum().isTracked)
    #expect(!dropout(z, probability: 0.5, key: DropoutKey(seed: 1, stream: 1)).isTracked)
    #expect(!checkpoint([z]) { $0[0] * $0[0] }.isTracked)
    let trainable = parameter([4])
    #expect(!withoutGradients { z.scalingColumns(by: trainable.tensor) }.isTracked)
    #expect(z.scalingColumns(by: trainable.tensor).isTracked)
    #expect(!z.scalingColumns(by: trainable.tensor).detached.isTracked)
    #expect(z.sum().backward().isEmpty)
  }

  @Test func gradientsOfAllUsesAddUp() throws {
    // d/dx of x·x + 3x + x = 2x + 4.
    let p = Parameter(Tensor(shape: [2], scalars: [1, -2]))
    let x = p.tensor
    let gradients = (x * x + x.scaled(by: 3) + x).sum().backward()
    #expect(try #require(gradients[p]).scalars == [6, 0])
    #expect(p.value.scalars == [1, -2])
    // The same tensor twice in one operation.
    let doubled = (p.tensor + p.tensor).sum().backward()
    #expect(try #require(doubled[p]).scalars == [2, 2])
  }

  @Test func onlyParametersThatAreUsedHaveGradients() {
    let (used, unused) = (parameter([2]), parameter([2]))
    let gradients = used.tensor.sum().backward()
    #expect(gradients[used] != nil)
    #expect(gradients[unused] == nil)
    #expect(!gradients.isEmpty)
  }

  @Test func gradientsAccumulateAndScale() throws {
    let p = Parameter(Tensor(shape: [2], scalars: [1, 2]))
    let q = parameter([1])
    var sum = Gradients()
    sum.add((p.tensor * p.tensor).sum().backward())
    let first = try #require(sum[p])
    sum.add(p.tensor.scaled(by: 10).sum().backward())
    sum.add(q.tensor.sum().backward())
    #expect(first.scalars == [2, 4])
    #expect(try #require(sum[p]).scalars == [12, 14])
    sum.scale(by: 0.5)
    #expect(try #require(sum[p]).scalars == [6, 7])
    #expect(try #require(sum[q]).scalars == [0.5])
    sum[q] = nil
    #expect(sum[q] == nil)
  }

  @Test func gradientAccumulationEqualsOneLargeBatch() throws {
    let w = parameter([5, 3], seed: 2)
    let x = numbers([8, 3], seed: 3)
    let labels: [Int32] = [0, 4, 2, -100, 1, 1, 3, 0]
    func loss(_ rows: Range<Int>) throws -> Tensor {
      try crossEntropy(
        linear(x.rowRange(rows), w.tensor), labels: Array(labels[rows]), count: 7)
    }
    let whole = try #require(try loss(0..<8).backward()[w])
    var parts = Gradients()
    for rows in [0..<3, 3..<4, 4..<8] { parts.add(try loss(rows).backward()) }
    #expect(error(try #require(parts[w]), whole.doubles) < 1e-6)
  }

  @Test func deepGraphsDoNotExhaustTheStack() throws {
    let p = Parameter(Tensor(1))
    var x = p.tensor
    for _ in 0..<20_000 { x = x.scaled(by: 1) }
    #expect(try #require(x.backward()[p]).item == 1)
  }

  /// A block with dropout, a residual sum, two parameters and an input that needs a gradient.
  private func block(_ x: Tensor, _ w: Parameter, _ b: Parameter) -> Tensor {
    let y = dropout(
      linear(x, w.tensor, bias: b.tensor), probability: 0.3, key: DropoutKey(seed: 4, stream: 2))
    return x + Activation.gelu(y)
  }

  @Test func recomputationGivesEqualGradientsToTheBit() throws {
    let (w, b, p) = (
      parameter([6, 6], seed: 5), parameter([6], seed: 6), parameter([9, 6], seed: 7)
    )
    func run(_ recomputing: Bool) -> (Tensor, Gradients) {
      var x = p.tensor
      for _ in 0..<3 {
        x = recomputing ? checkpoint([x]) { self.block($0[0], w, b) } : block(x, w, b)
      }
      return (x.detached, (x * x).sum().backward())
    }
    let (kept, recomputed) = (run(false), run(true))
    #expect(kept.0.scalars == recomputed.0.scalars)
    for parameter in [w, b, p] {
      #expect(
        try #require(kept.1[parameter]).scalars == #require(recomputed.1[parameter]).scalars)
    }
    // The graph may be walked where nothing else is recorded.
    let x = checkpoint([p.tensor]) { self.block($0[0], w, b) }
    let elsewhere = withoutGradients { x.sum().backward() }
    #expect(elsewhere.isEmpty)
    let loss = checkpoint([p.tensor]) { self.block($0[0], w, b) }.sum()
    let gradients = withoutGradients { loss.backward() }
    #expect(gradients[w] != nil && gradients[p] != nil)
  }

  @Test func recomputationFindsParametersWithoutTrackedInputs() throws {
    let (w, b) = (parameter([6, 6], seed: 5), parameter([6], seed: 6))
    let x = numbers([4, 6])
    let expected = block(x, w, b).sum().backward()
    for inputs in [[x], []] {
      let gradients = checkpoint(inputs) { self.block($0.first ?? x, w, b) }.sum().backward()
      #expect(try #require(gradients[w]).scalars == #require(expected[w]).scalars)
      #expect(try #require(gradients[b]).scalars == #require(expected[b]).scalars)
    }
  }

  @Test func checkpointsNest() throws {
    let (w, b, p) = (parameter([6, 6], seed: 5), parameter([6], seed: 6), parameter([4, 6]))
    let expected = block(block(p.tensor, w, b), w, b).sum().backward()
    let nested = checkpoint([p.tensor]) { outer in
      checkpoint([checkpoint(outer) { self.block($0[0], w, b) }]) { self.block($0[0], w, b) }
    }.sum().backward()
    for parameter in [w, b, p] {
      #expect(try #require(nested[parameter]).scalars == #require(expected[parameter]).scalars)
    }
  }

  /// A third party's primitive: x³ with the derivative 3x².
  @Test func primitivesCanBeAdded() throws {
    func cube(_ x: Tensor) -> Tensor {
      let value = x.detached
      return (value * value * value).recorded(from: [x]) { gradient, sink in
        sink.add((value * value).scaled(by: 3) * gradient, to: 0)
      }
    }
    let p = Parameter(Tensor(shape: [2], scalars: [2, -1]))
    #expect(try #require(cube(p.tensor).sum().backward()[p]).scalars == [12, 3])
    #expect(GradientCheck([p]) { cube(p.tensor) }.maximumError < 1e-3)
  }

  @Test func gradientCheckFindsAWrongDerivative() {
    let p = parameter([5])
    let check = GradientCheck([p]) {
      let value = p.value
      return value.recorded(from: [p.tensor]) { gradient, sink in
        sink.add(gradient.scaled(by: 1.1), to: 0)
      }
    }
    #expect(abs(check.maximumError - 0.1) < 0.01)
    let nan = GradientCheck([p]) {
      p.value.recorded(from: [p.tensor]) { gradient, sink in
        sink.add(gradient.scaled(by: .nan), to: 0)
      }
    }
    #expect(nan.maximumError.isNaN)
    #expect(p.value.scalars == numbers([5]).scalars)
  }
}
