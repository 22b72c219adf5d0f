import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import PEFTCore
@testable import TunerLoRA

/// What a new adapter begins with, and what is taken out of the base for it, against peft
/// (Tests/Goldens/inits; its README says what compares with what).
struct InitializationTests {
  static let deterministic = [
    "pissa-tall", "pissa-wide", "pissa-rslora", "pissa-bf16", "pissa-gpt2", "olora-tall",
    "olora-wide", "olora-rslora", "olora-bf16", "olora-gpt2", "olora-square", "corda-ipm",
    "corda-kpm", "corda-ipm-gpt2", "corda-kpm-gpt2",
  ]
  static let ofGradients = [
    "lora-ga-ArB2r-stable", "lora-ga-ArB2r-unit", "lora-ga-ArB2r-gd-scale",
    "lora-ga-ArB2r-weight-svd", "lora-ga-ArBr-stable", "lora-ga-ArBr-unit", "lora-ga-A2rBr-stable",
    "lora-ga-A2rBr-unit", "lora-ga-gpt2",
  ]

  /// Every folder of the goldens is in a list here.
  @Test func everyCaseIsRun() throws {
    let eva = EVATests.cases + ["eva-llama"]
    let listed =
      Self.deterministic + Self.ofGradients + eva + ["pissa-niter", "orthogonal", "loftq"]
    #expect(try FileSystem.list(TestData.golden("inits")).sorted() == listed.sorted())
  }

  @Test(arguments: deterministic + ofGradients + ["pissa-niter", "orthogonal"])
  func initialAdapterEqualsPeft(_ name: String) throws {
    let golden = try InitGolden(name)
    let toy = try golden.makeToy()
    let x = try golden.input.tensor("x")
    let before = withoutGradients { toy(x) }
    let peft = try golden.adapted(toy)
    let layer = peft.lora("layer")
    #expect(abs(layer.scaling - golden.json["scaling"]!.double!) < 1e-12)
    let isHalf = name.hasSuffix("bf16")
    // peft rounds A and B to bf16 there, and computes in it.
    let tolerance: Float = isHalf ? 1e-2 : name.hasPrefix("corda-kpm") ? 1e-4 : 1e-5

    // A new adapter leaves the output as it is, and so does none.
    #expect(relativeError(withoutGradients { toy(x) }, before) < 1e-5)
    if !isHalf {
      #expect(relativeError(before, try golden.expected.tensor("output.base")) < 1e-5)
    }
    peft.disable()
    #expect(withoutGradients { toy(x) }.scalars == before.scalars)
    peft.enable()

    if Self.ofGradients.contains(name) {
      try expectColumns(layer, golden)
    } else if Self.deterministic.contains(name) {
      let right = golden.expected["right.product"] == nil ? "" : "right."
      let product = try golden.expected.tensor("\(right)product")
      #expect(relativeError(layer.product, product) < tolerance)
      let stored = toy.layer.parameters
      let residual = try #require(layer.reference).residual(of: stored.matrix)
      #expect(residual.format == stored.matrix.format)
      var weight = try golden.expected.tensor("\(right)layer.weight")
      if stored.form == .transposed { weight = weight.transposed() }
      #expect(relativeError(residual.dequantized(), weight) < (isHalf ? 1e-2 : tolerance))
    }
    // Merged, the base is what it was; deleted, to the bit.
    try peft.merge()
    #expect(relativeError(withoutGradients { toy(x) }, before) < (isHalf ? 2e-2 : 1e-5))
    peft.unmerge()
    try peft.delete("default")
    #expect(withoutGradients { toy(x) }.scalars == before.scalars)
  }

  /// A and B of LoRA-GA take different singular vectors: each sign is free.
  private func expectColumns(_ layer: LoRALayer, _ golden: InitGolden) throws {
    let (a, b) = (try golden.expected.tensor("A"), try golden.expected.tensor("B"))
    #expect(layer.a.shape == a.shape && layer.b.shape == b.shape)
    for row in 0..<a.rows {
      let expected = a.rowRange(row..<row + 1)
      let actual = layer.a.value.rowRange(row..<row + 1)
      let error = min(
        relativeError(actual, expected), relativeError(actual.scaled(by: -1), expected))
      #expect(error < 1e-4, "row \(row) of A")
    }
    let (actual, expected) = (layer.b.value.transposed(), b.transposed())
    for column in 0..<expected.rows {
      let one = expected.rowRange(column..<column + 1)
      let other = actual.rowRange(column..<column + 1)
      let error = min(relativeError(other, one), relativeError(other.scaled(by: -1), one))
      #expect(error < 1e-4, "column \(column) of B")
    }
  }

  @Test(arguments: ofGradients)
  func gradientsOfFrozenWeightsEqualTorch(_ name: String) throws {
    let golden = try InitGolden(name)
    let toy = try golden.makeToy()
    var plan = try golden.plan(toy)
    let found = try LoRAGA.gradients(WatchedSites(plan), plan.calibration!)
    var expected = try golden.expected.tensor("gradient")
    if toy.layer is Conv1D { expected = expected.transposed() }
    #expect(relativeError(try #require(found[0]), expected) < 1e-5)
    plan.sites = []
    let none = #expect(throws: PEFTError.self) { try LoRATuner.prepare(&plan) }
    #expect(none?.code == .noMatchingModule)
  }

  @Test(arguments: ["corda-ipm", "corda-kpm-gpt2"])
  func covariancesEqualPeft(_ name: String) throws {
    let golden = try InitGolden(name)
    let toy = try golden.makeToy()
    let plan = try golden.plan(toy)
    let found = try CorDA.covariances(WatchedSites(plan), [0], plan.calibration!)
    let expected = try golden.expected.tensor("covariance")
    #expect(relativeError(try #require(found[0]), expected) < 1e-5)
  }

  /// A uniform in ±1/√in has the deviation 1/√(3·in), a Gaussian one 1/r, PyTorch's B 1/√(3·r);
  /// standard errors of a deviation are about σ/√(2n).
  @Test(arguments: [
    LoRAConfig.Initialization.standard, .gaussian, .random, .eva(EVASettings()), .orthogonal,
  ])
  func randomFactorsHaveTheirDeviation(_ initialization: LoRAConfig.Initialization) throws {
    let (inputs, outputs, rank) = (600, 400, 40)
    let site = try Self.site(inputs, outputs)
    var config = LoRAConfig(rank: rank, alpha: 20)
    config.initialization = initialization
    let factors = try InitialFactors(site, config, rank: rank, scaling: 0.5)
    func deviation(_ x: Tensor) -> Double { (x.sumOfSquares / Double(x.count)).squareRoot() }
    let uniform = 1 / (3 * Double(inputs)).squareRoot()
    switch initialization {
    case .gaussian: #expect(abs(deviation(factors.a) * Double(rank) - 1) < 0.02)
    case .orthogonal:
      // Each element is a sum over r/2 products of a normal of deviation 0.1 with an element of a
      // row of length 1 and r elements: deviation 0.1·√(½).
      #expect(abs(deviation(factors.a) / 0.1 - 0.5.squareRoot()) < 0.03)
      #expect(abs(deviation(factors.b) / 0.1 - 0.5.squareRoot()) < 0.03)
      #expect(factors.b.multiplied(by: factors.a).maximumMagnitude < 1e-6)
    default:
      #expect(abs(deviation(factors.a) / uniform - 1) < 0.02)
      #expect(factors.a.maximumMagnitude <= 1 / Float(inputs).squareRoot())
    }
    if initialization == .random {
      #expect(abs(deviation(factors.b) * (3 * Double(rank)).squareRoot() - 1) < 0.02)
    } else if initialization != .orthogonal {
      #expect(factors.b.maximumMagnitude == 0)
    }
    #expect(factors.reference == nil && factors.standIn == nil)
  }

  /// What is known of the randomised decomposition: near the exact one where values fall fast.
  @Test func randomizedPiSSAIsNearTheExactOne() throws {
    let site = try Self.site(90, 70)
    let exact = try InitialFactors.pissa(site.parameters.matrix, 6, 2)
    let near = try InitialFactors.pissa(site.parameters.matrix, 6, 2, iterations: 16, seed: 1)
    let product = exact.b.multiplied(by: exact.a)
    let rest = site.parameters.matrix.dequantized() + product.scaled(by: -2)
    let nearRest =
      site.parameters.matrix.dequantized() + near.b.multiplied(by: near.a).scaled(by: -2)
    // No approximation of rank 6 leaves less than the exact one.
    #expect(nearRest.sumOfSquares >= rest.sumOfSquares * (1 - 1e-6))
    #expect(nearRest.sumOfSquares <= rest.sumOfSquares * 1.01)
  }

  static func site(_ inputs: Int, _ outputs: Int) throws -> AdapterSite {
    let builder = ModuleBuilder(RandomSource(seed: 7, deviation: 0.1, precision: .float32))
    let host = try builder.linear("layer", inputs, outputs, bias: false)
    return AdapterSite(
      host: host, path: "layer", target: "layer", adapter: "a", config: LoRAConfig(), seed: 5,
      parameters: host.parameters)
  }
}

extension InitGolden {
  /// A new adapter of the layer, before anything is made.
  fileprivate func plan(_ toy: ToyLayer) throws -> AdapterPlan {
    AdapterPlan(
      adapter: "a", config: try config,
      sites: [
        .init(path: "layer", target: "layer", host: toy.layer, parameters: toy.layer.parameters)
      ],
      seed: 0, calibration: try calibration(toy), isLoading: false)
  }
}
