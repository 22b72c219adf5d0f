import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// LoRA on parts of a fused projection; the expected numbers are loralib's (Tests/Goldens/fused,
/// made by Tests/Goldens/generator/fused.py).
struct FusedTests {
  static let cases = LayerGolden.names("fused")

  private func open(_ name: String) throws -> LayerGolden {
    try LayerGolden(name, registry: AdapterTree.registry)
  }

  private func load(_ golden: LayerGolden) throws -> (host: any AdapterHost, peft: PeftModel) {
    let (host, peft) = try golden.model([])
    let record = golden.record
    try peft.add("fused", try LoRAConfig(config(record)))
    let file = try SafetensorsFile(golden.folder("lora.safetensors"))
    let tensors = try peft.tensors(of: "fused")
    #expect(tensors.count == file.names.count)
    for tensor in tensors {
      // loralib's keys are peft's without the prefix and without ".weight".
      let key = String(tensor.key.dropFirst("base_model.model.".count).dropLast(".weight".count))
      let value = try file.tensor(key)
      #expect(value.shape == tensor.parameter.shape)
      tensor.parameter.assign(value)
    }
    return (host, peft)
  }

  private func config(_ record: JSONValue) -> JSONObject {
    JSONObject([
      ("peft_type", "LORA"), ("target_modules", .array(["layer"])),
      ("r", record["r"] ?? .null), ("lora_alpha", record["lora_alpha"] ?? .null),
      ("enable_lora", record["enable_lora"] ?? .null),
    ])
  }

  @Test(arguments: cases)
  func everythingEqualsLoralib(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try load(golden)
    let active = try golden.expected.tensor("output.active")
    #expect(relativeError(try golden.value(host), active) < 1e-5)
    peft.disable()
    #expect(relativeError(try golden.value(host), try golden.expected.tensor("output.base")) < 1e-5)
    peft.enable()
    let x = try golden.makeInputs()
    let output = try golden.output(host, x)
    let gradients = (output * (try golden.input.tensor("upstream"))).sum().backward()
    for tensor in peft.trainableTensors {
      let key = String(tensor.key.dropFirst("base_model.model.".count).dropLast(".weight".count))
      let gradient = try #require(gradients[tensor.parameter])
      #expect(relativeError(gradient, try golden.expected.tensor("grad.\(key)")) < 1e-4)
    }
    let input = try #require(x["x"].flatMap { gradients[$0] })
    #expect(relativeError(input, try golden.expected.tensor("grad_input.x")) < 1e-4)
    try peft.merge(safe: true)
    let merged = try golden.expected.tensor("merged.layer.weight")
    #expect(relativeError(host.parameters.storedWeight, merged) < 1e-6)
    #expect(
      relativeError(try golden.value(host), try golden.expected.tensor("output.merged")) < 1e-5)
    peft.unmerge()
    for (loss, wanted) in zip(try golden.train(host, peft), golden.losses) {
      #expect(abs(loss - wanted) < 1e-4 * wanted)
    }
  }

  /// The plain form has peft's shapes and computes the same.
  @Test(arguments: cases)
  func expandedAdaptersComputeTheSame(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try load(golden)
    try peft.expandParts(of: "fused", as: "plain")
    try peft.setActive(["plain"])
    let active = try golden.expected.tensor("output.active")
    #expect(relativeError(try golden.value(host), active) < 1e-5)
    let config = try #require(try peft.config("plain") as? LoRAConfig)
    #expect(config.enabledParts.isEmpty && config.object["enable_lora"] == nil)
    #expect(
      try peft.tensors(of: "plain").map(\.parameter.shape)
        == [[config.rank, host.inputFeatures], [host.outputFeatures, config.rank]])
    let error = #expect(throws: PEFTError.self) {
      try peft.expandParts(of: "plain", as: "again")
    }
    #expect(error?.message == "the adapter 'plain' has no parts ('enable_lora')")
    #expect(peft.adapterNames == ["fused", "plain"])
  }

  @Test func partsAreWrittenAndReadAgain() throws {
    let config = LoRAConfig(rank: 2, targets: TargetSelection(.list(["layer"])))
    #expect(config.object["enable_lora"] == nil)
    var fused = config
    fused.enabledParts = [true, false]
    #expect(fused.object["enable_lora"] == .array([true, false]))
    #expect(try LoRAConfig(fused.object) == fused)
  }

  @Test(arguments: [
    ([true, false, true, true, true], "'enable_lora': 5 parts of 8 outputs"),
    ([false, false], "'enable_lora' enables no part"),
  ])
  func wrongPartsAreRefused(_ parts: [Bool], _ text: String) throws {
    let golden = try open("fused/linear")
    let (_, peft) = try golden.model([])
    var config = LoRAConfig(rank: 2, targets: TargetSelection(.list(["layer"])))
    config.enabledParts = parts
    let error = #expect(throws: PEFTError.self) { try peft.add("a", config) }
    #expect(error?.message.hasPrefix(text) == true)
    #expect(peft.adapterNames.isEmpty)
  }

  @Test func onlyLinearLayersHaveParts() throws {
    let golden = try open("layers/conv2d-3x3")
    let (_, peft) = try golden.model([])
    var config = LoRAConfig(rank: 2, targets: TargetSelection(.list(["layer"])))
    config.enabledParts = [true, false]
    let error = #expect(throws: PEFTError.self) { try peft.add("a", config) }
    #expect(error?.message == "'enable_lora' is for fused linear layers, not for Conv2d")
    #expect(error?.location == "layer")
  }
}
