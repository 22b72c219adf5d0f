import BLASKernels
import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Synchronization
import Tensors
import Testing
import TunerLoRA

@testable import TunerDoRA

/// How often a layer goes over its frozen weight: what makes DoRA as fast as LoRA.
struct CostTests {
  /// A weight that counts what is asked of it.
  private struct CountingMatrix: WeightMatrix {
    final class Calls: Sendable {
      private let counts = Mutex<[String: Int]>([:])

      func add(_ name: String) { counts.withLock { $0[name, default: 0] += 1 } }

      /// The calls since the last time.
      func take() -> [String: Int] {
        counts.withLock { counts in
          defer { counts = [:] }
          return counts
        }
      }
    }

    let inner: DenseMatrix
    let calls = Calls()

    var rows: Int { inner.rows }
    var columns: Int { inner.columns }
    var format: String { "counting" }
    var byteCount: Int { inner.byteCount }

    func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>) {
      calls.add("x·Wᵀ")
      inner.multiply(x, count: n, beta: beta, into: y)
    }

    func multiplyTransposed(
      _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>
    ) {
      calls.add("y·W")
      inner.multiplyTransposed(y, count: n, beta: beta, into: x)
    }

    func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>) {
      calls.add("rows")
      inner.gatherRows(ids, into: output)
    }

    func dequantized(rows range: Range<Int>) -> Tensor {
      calls.add("dequantised")
      return inner.dequantized(rows: range)
    }

    func squaredRowNorms() -> Tensor {
      calls.add("norms")
      return inner.squaredRowNorms()
    }

    func merging(_ delta: WeightDelta) throws -> any WeightMatrix { try inner.merging(delta) }
  }

  private let weight = CountingMatrix(
    inner: DenseMatrix(.normal([7, 9], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))))
  private let x = Parameter(.normal([6, 9], deviation: 1, key: DropoutKey(seed: 4, stream: 4)))

  private func model(dropout: Double = 0, lora: Bool = false) throws -> (Linear, PeftModel) {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    let host = Linear(
      HostParameters(weight: .matrix(weight), bias: nil), inputFeatures: 9, outputFeatures: 7)
    let peft = PeftModel(
      SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: registry)
    var config = LoRAConfig(
      rank: 2, alpha: 4, dropout: dropout, targets: TargetSelection(.list(["layer"])),
      initialization: .random)
    config.usesDoRA = !lora
    try peft.add("a", config, seed: 1)
    _ = weight.calls.take()
    return (host, peft)
  }

  private func step(_ host: Linear, _ peft: PeftModel, seed: UInt64? = nil) -> [String: Int] {
    var context = ForwardContext(SequenceLayout(lengths: [6]))
    context.dropoutSeed = seed
    let gradients = host.run(.features(x.tensor), context).sum().backward()
    for tensor in peft.trainableTensors {
      tensor.parameter.update { $0 = $0 + gradients[tensor.parameter]!.scaled(by: -0.1) }
    }
    return weight.calls.take()
  }

  @Test func aStepGoesOverTheWeightAsOftenAsLoRA() throws {
    for lora in [true, false] {
      let (host, peft) = try model(lora: lora)
      for _ in 0..<3 { #expect(step(host, peft) == ["x·Wᵀ": 1, "y·W": 1]) }
    }
  }

  /// The base sees x, the direction what dropout leaves of it: one product more each way.
  @Test func dropoutNeedsASecondProduct() throws {
    let (host, peft) = try model(dropout: 0.5)
    for seed in 0..<3 { #expect(step(host, peft, seed: UInt64(seed)) == ["x·Wᵀ": 2, "y·W": 2]) }
    // Not at inference.
    func output() -> [String: Int] {
      _ = withoutGradients {
        host.run(.features(x.value), ForwardContext(SequenceLayout(lengths: [6])))
      }
      return weight.calls.take()
    }
    for _ in 0..<3 { #expect(output() == ["x·Wᵀ": 1]) }
  }

  /// Whatever of the adapter changed, one product gives the output and what the scale is made of.
  @Test func inferenceIsOneProduct() throws {
    let (host, peft) = try model()
    func output() -> [String: Int] {
      _ = withoutGradients {
        host.run(.features(x.value), ForwardContext(SequenceLayout(lengths: [6])))
      }
      return weight.calls.take()
    }
    for _ in 0..<3 { #expect(output() == ["x·Wᵀ": 1]) }
    for tensor in try peft.tensors(of: "a") {
      tensor.parameter.update { $0 = $0.scaled(by: 1.5) }
      for _ in 0..<2 { #expect(output() == ["x·Wᵀ": 1]) }
    }
  }
}
