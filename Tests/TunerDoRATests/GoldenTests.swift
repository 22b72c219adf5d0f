import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerLoRA

@testable import TunerDoRA

/// DoRA on single layers; the expected numbers are peft's, and by formula where peft is wrong or
/// computes in bf16 (Tests/Goldens/generator/dora.py).
struct GoldenTests {
  /// Every case that there is.
  static let cases = ((try? FileSystem.list(TestData.golden("dora"))) ?? []).sorted()

  static var registry: TunerRegistry {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    return registry
  }

  static func golden(_ name: String) throws -> LayerGolden {
    try LayerGolden("dora/\(name)", registry: registry)
  }

  @Test func thereAreCases() { #expect(Self.cases.count >= 20) }

  @Test(arguments: cases)
  func outputsAndMergedWeightsEqualPeft(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    let input = try golden.makeInput().input
    let context = golden.context(input)
    func output() -> Tensor { withoutGradients { host.run(input, context) } }
    func expect(_ actual: Tensor, _ expected: Tensor, _ limit: Float, _ what: Comment) {
      let error = relativeError(actual, expected)
      #expect(error < limit, "\(what): \(error)")
    }
    let active = try golden.tensor("output.active", "")
    peft.disable()
    expect(output(), try golden.tensor("output.base", ""), 1e-5, "base")
    peft.enable()
    expect(output(), active, 1e-5, "active")
    // Again from the caches.
    expect(output(), active, 1e-5, "cached")
    let before = host.parameters.storedWeight
    if let wanted = golden.record["merge_error"]?["text"]?.string {
      let error = #expect(throws: PEFTError.self) { try peft.merge() }
      #expect(error?.message == wanted && error?.location == "layer")
      expect(output(), active, 1e-5, "after a failed merge")
      return
    }
    try peft.merge()
    if golden.isHalf {
      // Rounded to 16 bits once: half a unit in the last of 8 bits.
      let merged = host.parameters.storedWeight
      let exact = try golden.tensor("merged.", "layer.weight")
      for (value, wanted) in zip(merged.scalars, exact.scalars) {
        #expect(abs(value - wanted) <= abs(wanted) / 256 + 1e-6)
      }
    } else {
      expect(output(), active, 1e-5, "merged output")
      if golden.expected["merged.layer.weight"] != nil {
        let merged = host.parameters.storedWeight
        expect(merged, try golden.tensor("merged.", "layer.weight"), 1e-6, "merged weight")
      }
    }
    peft.unmerge()
    #expect(host.parameters.storedWeight.scalars == before.scalars)
    expect(output(), active, 1e-5, "unmerged")
  }

  @Test(arguments: cases)
  func gradientsEqualTorch(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    let (input, x) = try golden.makeInput()
    let output = host.run(input, golden.context(input))
    let gradients = contracted(output, try golden.input.tensor("upstream")).backward()
    #expect(peft.trainableTensors.count == 3)
    for tensor in peft.trainableTensors {
      let gradient = try #require(gradients[tensor.parameter], "\(tensor.key)")
      #expect(gradient.shape == tensor.parameter.shape)
      let error = relativeError(gradient, try golden.tensor("grad.", tensor.key))
      #expect(error < 1e-4, "\(tensor.key): \(error)")
    }
    if let x {
      let error = relativeError(
        try #require(gradients[x]), try golden.tensor("grad_input.", "x"))
      #expect(error < 1e-4, "input: \(error)")
    }
  }

  /// With a given draw, dropout is a change of the input of the change alone, as in peft; a pass in
  /// training does that with its own draw, and so do its gradients, the input's included.
  @Test(arguments: ["linear-dropout", "conv2d-dropout"])
  func dropoutActsOnTheChangeAlone(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    #expect(peft.trainableTensors.count == 3)
    let config = try #require(try peft.config("default") as? LoRAConfig)
    try golden.expectDropoutOfChange(host, peft, probability: config.dropout) { $0 }
  }

  /// Derivatives by finite differences on every kind of layer, in training with dropout: with the
  /// norm taken through all are those of the function, else those of A and B are not. The
  /// magnitude's and the input's always are.
  @Test(
    arguments: [
      "linear-dropout", "gpt2-conv1d", "conv1d", "conv2d-3x3", "conv2d-groups", "conv3d",
      "embedding",
    ], [true, false])
  func derivativesAreThoseOfTheFunction(_ name: String, _ detachesNorm: Bool) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    var config = try #require(try peft.config("default") as? LoRAConfig)
    config.detachesNorm = detachesNorm
    config.dropout = 0.25
    config.initialization = .random
    try peft.add("n", config, seed: 6)
    try peft.setActive(["n"])
    let tensors = peft.trainableTensors.map(\.parameter)
    tensors[2].update { $0 = $0.scaled(by: 1.3) }
    let (input, x) = try golden.makeInput()
    var context = golden.context(input)
    context.dropoutSeed = 5
    func run() -> Tensor { host.run(x.map { golden.makeInput($0.tensor) } ?? input, context) }
    let always = GradientCheck([tensors[2]] + (x.map { [$0] } ?? []), run)
    #expect(always.maximumError < 5e-3, "\(always)")
    let check = GradientCheck(Array(tensors[..<2]), run)
    #expect((check.maximumError < 5e-3) == !detachesNorm, "\(check)")
  }

  @Test(arguments: cases)
  func lossesEqualTorch(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    let input: HostInput =
      switch try golden.makeInput().input {
      case .features(let x): .features(x.detached)
      case let other: other
      }
    let target = try golden.input.tensor("target")
    let optimizer = try AdamWSteps(golden.record["optimiser"])
    let losses = golden.losses
    try #require(losses.count == 10)
    for (step, expected) in losses.enumerated() {
      let loss = meanSquare(host.run(input, golden.context(input)), target)
      #expect(abs(Double(loss.item) - expected) < 1e-4 * expected, "step \(step)")
      try optimizer.update(peft.trainableTensors, loss.backward())
    }
  }

  /// What a magnitude begins with: the norms for A and B that are not zero, and those of the base.
  @Test(arguments: cases.filter { $0 != "two" })
  func magnitudesBeginAsPeftHasThem(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    let layer = try #require(host.stack?.layer("default") as? DoRALayer)
    let error = relativeError(
      layer.weight.currentNorms(host.parameters), try golden.tensor("magnitude.init", ""))
    #expect(error < 1e-6, "\(error)")
    var config = try #require(try peft.config("default") as? LoRAConfig)
    config.initialization = .standard
    try peft.add("fresh", config)
    let fresh = try #require(try peft.tensors(of: "fresh").last)
    #expect(fresh.key.hasSuffix("lora_magnitude_vector"))
    #expect(
      relativeError(fresh.parameter.value, try golden.tensor("magnitude.fresh", "")) < 1e-6)
    // It begins without effect.
    try peft.setActive(["fresh"])
    let input = try golden.makeInput().input
    let output = withoutGradients { host.run(input, golden.context(input)) }
    #expect(relativeError(output, try golden.tensor("output.base", "")) < 1e-5)
  }
}
