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

  static func golden(_ name: String) throws -> LayerGolden {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    return try LayerGolden("dora/\(name)", registry: registry)
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
