import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import Testing
import TunerLoRA

@testable import TunerDoRA

/// s that is changed on a model. Expected values are the formula of the method in double precision,
/// peft's (Tests/Goldens/generator/dora.py), or those of the adapter that was changed.
struct ScalingTests {
  @Test(arguments: ["linear", "linear-nobias", "linear-rslora", "gpt2-conv1d"])
  func scalesActInsideTheDirection(_ name: String) throws {
    try GoldenTests.golden(name).expectScales()
  }

  @Test(arguments: ["linear-scaled", "embedding-scaled", "conv2d-scaled"])
  func scalesEqualPeft(_ name: String) throws {
    let golden = try GoldenTests.golden(name)
    let (host, peft) = try golden.model()
    let input = try golden.makeInput().input
    let factors = try #require(golden.record["scales"]?.array)
    #expect(factors.count == 3)
    func expect(_ expected: Tensor, _ what: Comment) {
      let output = withoutGradients { host.run(input, golden.context(input)) }
      #expect(relativeError(output, expected) < 1e-5, what)
    }
    for (place, factor) in factors.enumerated() {
      let expected = try golden.expected.tensor("scaled.output.\(place)")
      try peft.setScale("default", try #require(factor.double))
      expect(expected, "\(factor)")
      try peft.merge()
      expect(expected, "\(factor), merged")
      let weight = try golden.expected.tensor("scaled.merged.\(place)")
      #expect(relativeError(host.parameters.storedWeight, weight) < 1e-6, "\(factor)")
      peft.unmerge()
    }
    try peft.unscaleLayers()
    expect(try golden.expected.tensor("output.active"), "as configured")
  }

  /// Derivatives by finite differences at another s; the norm's go through it too.
  @Test(arguments: ["linear", "gpt2-conv1d", "conv2d-3x3", "embedding"])
  func derivativesFollowTheScale(_ name: String) throws {
    let golden = try GoldenTests.golden(name)
    let (host, peft) = try golden.model()
    var config = try #require(try peft.config("default") as? LoRAConfig)
    config.detachesNorm = false
    config.initialization = .random
    try peft.add("n", config, seed: 6)
    try peft.setActive(["n"])
    try peft.setScale("n", 2.5)
    let input = try golden.makeInput().input
    let tensors = try peft.tensors(of: "n").map(\.parameter)
    let check = GradientCheck(tensors) { host.run(input, golden.context(input)) }
    #expect(check.maximumError < 5e-3, "\(check)")
  }

  /// A combination takes the present scaling.
  @Test func combinationsTakeTheScale() throws {
    let golden = try GoldenTests.golden("linear")
    let (host, peft) = try golden.model()
    let input = try golden.makeInput().input
    try peft.setScale("default", 0.5)
    let expected = withoutGradients { host.run(input, golden.context(input)) }
    try peft.combine(["default"], weights: [1], into: "same", Combination(.cat))
    try peft.setActive(["same"])
    let output = withoutGradients { host.run(input, golden.context(input)) }
    #expect(relativeError(output, expected) < 1e-5)
  }
}
