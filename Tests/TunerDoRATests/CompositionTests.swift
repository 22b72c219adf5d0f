import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import Testing
import TunerLoRA

@testable import TunerDoRA

/// Several adapters, other weight formats, dropout and caches. Expected values are formulas in double
/// precision: W_eff = W + Σᵢ ΔWᵢ with ΔWᵢ = gᵢ∘(W + sᵢBᵢAᵢ) − W against the untouched W.
struct CompositionTests {
  /// W + s·B·A of an adapter with its rows scaled to the magnitude, less W, in double precision.
  private func delta(
    _ peft: PeftModel, _ name: String, _ weight: [[Double]], scaling: Double
  ) throws -> [[Double]] {
    let tensors = try peft.tensors(of: name).map { rows($0.parameter.value) }
    let (a, b) = (tensors[0], tensors[1])
    let magnitude: [Double]? = tensors.count > 2 ? tensors[2].flatMap { $0 } : nil
    return weight.indices.map { j in
      var row = weight[j]
      for i in row.indices {
        row[i] += scaling * a.indices.reduce(0) { $0 + b[j][$1] * a[$1][i] }
      }
      let norm = row.reduce(0) { $0 + $1 * $1 }.squareRoot()
      let factor = magnitude.map { $0[j] / norm } ?? 1
      return zip(row, weight[j]).map { factor * $0 - $1 }
    }
  }

  private func rows(_ x: Tensor) -> [[Double]] {
    guard x.shape.count > 1 else { return [x.scalars.map(Double.init)] }
    return (0..<x.rows).map { x.rowRange($0..<$0 + 1).scalars.map(Double.init) }
  }

  private func product(_ x: [[Double]], _ w: [[Double]], _ bias: [Double]) -> [[Double]] {
    x.map { x in w.indices.map { j in bias[j] + zip(x, w[j]).reduce(0) { $0 + $1.0 * $1.1 } } }
  }

  private func error(_ actual: Tensor, _ expected: [[Double]]) -> Double {
    let expected = expected.flatMap { $0 }
    let size = expected.map { abs($0) }.max() ?? 1
    return zip(actual.scalars, expected).map { abs(Double($0) - $1) / size }.max() ?? 0
  }

  private static var registry: TunerRegistry {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    return registry
  }

  private static func config(
    rank: Int = 3, alpha: Double = 5, dropout: Double = 0, dora: Bool = true
  ) -> LoRAConfig {
    var config = LoRAConfig(
      rank: rank, alpha: alpha, dropout: dropout, targets: TargetSelection(.list(["layer"])),
      initialization: .random)
    config.usesDoRA = dora
    return config
  }

  /// A layer 9 → 7 with the given weight format, adapters `d1` and `d2` (DoRA) and `l` (LoRA).
  private struct Fixture {
    let host: Linear
    let peft: PeftModel
    let scaling = ["d1": 5.0 / 3, "d2": 4.0 / 2, "l": 3.0 / 2]

    init(dropout: Double = 0, _ format: (Tensor) -> any WeightMatrix = { DenseMatrix($0) }) throws {
      let weight = Tensor.normal([7, 9], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))
      let bias = Tensor.normal([7], deviation: 0.4, key: DropoutKey(seed: 1, stream: 2))
      host = Linear(
        HostParameters(weight: .matrix(format(weight)), bias: Parameter(bias)), inputFeatures: 9,
        outputFeatures: 7)
      peft = PeftModel(
        SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: registry)
      try peft.add("d1", config(dropout: dropout), seed: 1)
      try peft.add("d2", config(rank: 2, alpha: 4, dropout: dropout), seed: 2)
      try peft.add("l", config(rank: 2, alpha: 3, dropout: dropout, dora: false), seed: 3)
      for name in ["d1", "d2"] {
        try peft.tensors(of: name)[2].parameter.update { value in
          value =
            value
            * Tensor.uniform(
              [7], bound: 0.3, key: DropoutKey(seed: 9, stream: UInt64(name.count))
            ).adding(1)
        }
      }
    }

    func output(_ x: Tensor, _ change: (inout ForwardContext) -> Void = { _ in }) -> Tensor {
      var context = ForwardContext(SequenceLayout(lengths: [x.rows]))
      change(&context)
      return withoutGradients { host.run(.features(x), context) }
    }
  }

  private let x = Tensor.normal([6, 9], deviation: 1, key: DropoutKey(seed: 4, stream: 4))

  /// peft's own results of `dora/two` depend on the order: Tests/Goldens/dora/two.
  @Test func orderDoesNotMatterUnlikeInPeft() throws {
    let golden = try GoldenTests.golden("two")
    let right = try golden.expected.tensor("right.output.two")
    let (one, other) = (
      try golden.expected.tensor("output.two"), try golden.expected.tensor("output.two_reversed")
    )
    #expect(relativeError(one, other) > 0.01, "peft's two orders differ")
    #expect(relativeError(one, right) > 0.01 && relativeError(other, right) > 0.01)
    for order in [["a", "b"], ["b", "a"]] {
      let (host, peft) = try golden.model([("adapter", "a"), ("adapter_b", "b")])
      try peft.setActive(order)
      let input = try golden.makeInput().input
      func check(_ what: Comment) {
        let output = withoutGradients { host.run(input, golden.context(input)) }
        #expect(relativeError(output, right) < 1e-5, what)
      }
      check("evaluation")
      let recorded = host.run(input, golden.context(input))
      #expect(relativeError(recorded.detached, right) < 1e-5, "training")
      try peft.merge()
      check("merged")
      #expect(
        relativeError(
          host.parameters.matrix.dequantized(), try golden.expected.tensor("right.merged.two"))
          < 1e-6)
      peft.unmerge()
      try peft.merge([order[0]])
      check("one merged, one not")
      peft.unmerge()
    }
  }

  @Test func changesOfSeveralMethodsAddUp() throws {
    let fixture = try Fixture()
    let weight = rows(fixture.host.parameters.matrix.dequantized())
    let bias = rows(fixture.host.parameters.bias!.value)[0]
    for names in [["d1"], ["d1", "d2"], ["d2", "l", "d1"], ["l", "d2"], []] {
      var effective = weight
      for name in names {
        let change = try delta(fixture.peft, name, weight, scaling: fixture.scaling[name]!)
        for j in effective.indices { effective[j] = zip(effective[j], change[j]).map(+) }
      }
      let expected = product(rows(x), effective, bias)
      try fixture.peft.setActive(names)
      #expect(error(fixture.output(x), expected) < 1e-5, "\(names)")
      try fixture.peft.merge()
      #expect(error(fixture.output(x), expected) < 1e-5, "\(names), merged")
      #expect(error(fixture.host.parameters.matrix.dequantized(), effective) < 1e-6, "\(names)")
      fixture.peft.unmerge()
      try fixture.peft.merge(Array(names.prefix(1)))
      #expect(error(fixture.output(x), expected) < 1e-5, "\(names), the first merged")
      fixture.peft.unmerge()
    }
  }

  /// Rows of a batch with adapters of their own; peft refuses DoRA there.
  @Test func rowsUseTheirOwnAdapters() throws {
    let fixture = try Fixture()
    let names = ["d2", "__base__", "d1", "l", "d1", "d2"]
    let assigned = try fixture.peft.sequenceAdapters(names)
    let output = fixture.output(x) { context in
      context.sequences = SequenceLayout(lengths: names.map { _ in 1 })
      context.sequenceAdapters = assigned
    }
    for (row, name) in names.enumerated() {
      try fixture.peft.setActive(name == "__base__" ? [] : [name])
      let expected = fixture.output(x.rowRange(row..<row + 1))
      #expect(relativeError(output.rowRange(row..<row + 1), expected) < 1e-5, "row \(row)")
    }
  }

  /// On weights of lower precision: the same as on the dequantised weights in 32 bits, gradients too.
  @Test(arguments: ["bfloat16", "float16", "lossy4"])
  func weightFormatsDoNotMatter(_ format: String) throws {
    func make(_ tensor: Tensor) -> any WeightMatrix {
      switch format {
      case "lossy4": LossyMatrix(rounding: tensor)
      default:
        HalfMatrix(rounding: tensor, to: format == "bfloat16" ? .bfloat16 : .float16)
      }
    }
    let (low, wide) = (
      try Fixture { make($0) }, try Fixture { DenseMatrix(make($0).dequantized()) }
    )
    #expect(low.host.parameters.matrix.format == format)
    for names in [["d1"], ["d1", "d2"], ["d2", "l"]] {
      try low.peft.setActive(names)
      try wide.peft.setActive(names)
      #expect(relativeError(low.output(x), wide.output(x)) < 1e-5)
      let context = ForwardContext(SequenceLayout(lengths: [6]))
      let input = Parameter(x)
      let upstream = Tensor.normal([6, 7], deviation: 1, key: DropoutKey(seed: 5, stream: 5))
      let gradients = [low, wide].map { fixture in
        contracted(fixture.host.run(.features(input.tensor), context), upstream).backward()
      }
      let pairs = zip(low.peft.trainableTensors, wide.peft.trainableTensors)
        .map { ($0.parameter, $1.parameter) }
      for (one, other) in pairs + [(input, input)] {
        let (a, b) = (try #require(gradients[0][one]), try #require(gradients[1][other]))
        #expect(relativeError(a, b) < 1e-4)
      }
      try low.peft.merge()
      try wide.peft.merge()
      let merged = low.host.parameters.matrix
      #expect(merged.format == format)
      let exact = wide.host.parameters.matrix.dequantized()
      // Rounded once: to the format's step around the exact value.
      #expect(
        relativeError(merged.dequantized(), make(exact).dequantized())
          < (format == "lossy4" ? 0.15 : 1e-2))
      low.peft.unmerge()
      wide.peft.unmerge()
    }
  }

  /// y = b + x·Wᵀ + x̃·ΔWᵀ, the base being given the input itself.
  @Test(arguments: [["d1"], ["d2", "d1"]])
  func dropoutActsOnTheChangeAlone(_ names: [String]) throws {
    let fixture = try Fixture(dropout: 0.4)
    try fixture.peft.setActive(names)
    let weight = rows(fixture.host.parameters.matrix.dequantized())
    var expected = product(rows(x), weight, rows(fixture.host.parameters.bias!.value)[0])
    var context = ForwardContext(SequenceLayout(lengths: [6]))
    context.dropoutSeed = 7
    let ones = Tensor(repeating: 1, shape: [6, 9])
    for name in names {
      let mask = Dropout(0.4, path: "layer.lora_dropout.\(name)")(ones, context)
      #expect(mask.scalars.contains(0))
      let change = product(
        rows(x * mask),
        try delta(fixture.peft, name, weight, scaling: fixture.scaling[name]!),
        Array(repeating: 0, count: 7))
      for row in expected.indices { expected[row] = zip(expected[row], change[row]).map(+) }
    }
    #expect(error(fixture.output(x) { $0.dropoutSeed = 7 }, expected) < 1e-5)
    #expect(error(fixture.output(x), expected) > 1e-2)
  }

  /// Gradients with dropout, by the formulas of the detached norm; the golden `linear-dropout` has
  /// peft's for a given mask, which the same formulas give.
  @Test func dropoutGradientsFollowTheFormulas() throws {
    // dB = s·Dᵀ(x̃Aᵀ), dA = s·(D·B)ᵀx̃, dm = Σ dY∘(x̃Vᵀ)/n, with D = dY∘g.
    func gradients(
      _ a: [[Double]], _ b: [[Double]], _ m: [Double], _ weight: [[Double]], scaling: Double,
      _ dropped: [[Double]], _ upstream: [[Double]]
    ) -> [[[Double]]] {
      let (rank, outputs, inputs) = (a.count, b.count, weight[0].count)
      let direction = weight.indices.map { j in
        weight[j].indices.map { i in
          weight[j][i] + scaling * (0..<rank).reduce(0) { $0 + b[j][$1] * a[$1][i] }
        }
      }
      let norms = direction.map { $0.reduce(0) { $0 + $1 * $1 }.squareRoot() }
      let low = product(dropped, a, Array(repeating: 0, count: rank))
      let full = product(dropped, direction, Array(repeating: 0, count: outputs))
      let d = upstream.map { row in row.indices.map { row[$0] * m[$0] / norms[$0] } }
      let tokens = dropped.indices
      let db = (0..<outputs).map { j in
        (0..<rank).map { k in scaling * tokens.reduce(0) { $0 + d[$1][j] * low[$1][k] } }
      }
      let h = d.map { d in
        (0..<rank).map { k in (0..<outputs).reduce(0) { $0 + d[$1] * b[$1][k] } }
      }
      let da = (0..<rank).map { k in
        (0..<inputs).map { i in scaling * tokens.reduce(0) { $0 + h[$1][k] * dropped[$1][i] } }
      }
      let dm = (0..<outputs).map { j in
        tokens.reduce(0) { $0 + upstream[$1][j] * full[$1][j] } / norms[j]
      }
      return [da, db, [dm]]
    }
    // The formulas against peft's.
    let golden = try GoldenTests.golden("linear-dropout")
    let (host, peft) = try golden.model()
    let tensors = try peft.tensors(of: "default")
    let values = tensors.map { rows($0.parameter.value) }
    let mask = try golden.input.tensor("dropout")
    let expected = gradients(
      values[0], values[1], values[2][0], rows(host.parameters.matrix.dequantized()),
      scaling: golden.record["scaling"]?.double ?? .nan,
      rows(try golden.input.tensor("x") * mask), rows(try golden.input.tensor("upstream")))
    for (tensor, formula) in zip(tensors, expected) {
      #expect(error(try golden.expected.tensor("dropout.grad.\(tensor.key)"), formula) < 1e-5)
    }
    // Ours against the formulas.
    let fixture = try Fixture(dropout: 0.4)
    var context = ForwardContext(SequenceLayout(lengths: [6]))
    context.dropoutSeed = 3
    let own = Dropout(0.4, path: "layer.lora_dropout.d1")(
      Tensor(repeating: 1, shape: [6, 9]), context)
    let upstream = Tensor.normal([6, 7], deviation: 1, key: DropoutKey(seed: 5, stream: 5))
    let actual = contracted(fixture.host.run(.features(x), context), upstream).backward()
    let ownTensors = try fixture.peft.tensors(of: "d1")
    let ownValues = ownTensors.map { rows($0.parameter.value) }
    let wanted = gradients(
      ownValues[0], ownValues[1], ownValues[2][0],
      rows(fixture.host.parameters.matrix.dequantized()), scaling: 5.0 / 3, rows(x * own),
      rows(upstream))
    for (tensor, formula) in zip(ownTensors, wanted) {
      #expect(error(try #require(actual[tensor.parameter]), formula) < 1e-5, "\(tensor.key)")
    }
  }

  /// With the norm taken through, all derivatives are those of the function; else only m's.
  @Test(arguments: [1, 2])
  func normsGradientIsAnOption(_ count: Int) throws {
    let fixture = try Fixture()
    let context = ForwardContext(SequenceLayout(lengths: [6]))
    var config = Self.config()
    config.detachesNorm = false
    #expect(config.object["dora_detach_norm"] == false)
    #expect(try LoRAConfig(config.object) == config)
    try fixture.peft.add("n", config, seed: 6)
    for (name, isExact) in [("n", true), ("d1", false)] {
      try fixture.peft.setActive(Array([name, "l"].prefix(count)))
      let tensors = try fixture.peft.tensors(of: name).map(\.parameter)
      let check = GradientCheck(tensors) { fixture.host.run(.features(x), context) }
      #expect((check.maximumError < 5e-3) == isExact, "\(name): \(check.maximumError)")
      let magnitude = GradientCheck([tensors[2]]) { fixture.host.run(.features(x), context) }
      #expect(magnitude.maximumError < 5e-3)
    }
  }

  /// A magnitude of zero has a gradient all the same, and a row without direction stays zero.
  @Test func degenerateRowsAreFinite() throws {
    let fixture = try Fixture { weight in
      var weight = weight
      weight.withMutableSlice { $0[9..<18].fill(0) }
      return DenseMatrix(weight)
    }
    let tensors = try fixture.peft.tensors(of: "d1").map(\.parameter)
    tensors[2].update { $0.withMutableSlice { $0[3] = 0 } }
    tensors[1].update { $0.withMutableSlice { $0[3..<6].fill(0) } }
    let context = ForwardContext(SequenceLayout(lengths: [6]))
    #expect(fixture.output(x).allFinite)
    let gradients = fixture.host.run(.features(x), context).sum().backward()
    for parameter in tensors { #expect(try #require(gradients[parameter]).allFinite) }
    #expect(try #require(gradients[tensors[2]]).scalars[3] != 0)
    let check = GradientCheck([tensors[2]]) { fixture.host.run(.features(x), context) }
    #expect(check.maximumError < 5e-3)
    try fixture.peft.merge(safe: true)
  }

  /// What is cached follows every change of what it was made of.
  @Test func cachesFollowChanges() throws {
    let fixture = try Fixture()
    let tensors = try fixture.peft.tensors(of: "d1").map(\.parameter)
    for parameter in tensors {
      let before = fixture.output(x)
      #expect(fixture.output(x).scalars == before.scalars)
      parameter.update { value in value = value.scaled(by: 1.25) }
      let weight = rows(fixture.host.parameters.matrix.dequantized())
      var effective = weight
      let change = try delta(fixture.peft, "d1", weight, scaling: 5.0 / 3)
      for j in effective.indices { effective[j] = zip(effective[j], change[j]).map(+) }
      let expected = product(
        rows(x), effective, rows(fixture.host.parameters.bias!.value)[0])
      #expect(error(fixture.output(x), expected) < 1e-5)
    }
    // Another base weight.
    let other = Tensor.normal([7, 9], deviation: 0.8, key: DropoutKey(seed: 8, stream: 8))
    fixture.host.parameters.weight = .matrix(DenseMatrix(other))
    var effective = rows(other)
    let change = try delta(fixture.peft, "d1", effective, scaling: 5.0 / 3)
    for j in effective.indices { effective[j] = zip(effective[j], change[j]).map(+) }
    let expected = product(rows(x), effective, rows(fixture.host.parameters.bias!.value)[0])
    #expect(error(fixture.output(x), expected) < 1e-5)
  }
}

extension Tensor {
  /// Every element plus a number.
  func adding(_ number: Float) -> Tensor {
    Tensor(shape: shape, scalars: scalars.map { $0 + number })
  }
}
