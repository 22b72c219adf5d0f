import LayerTestSupport
import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerDoRA
import TunerLoRA

@testable import PEFTCore
@testable import TunerEDoRA

/// Where a converted adapter is: on the layers, and with the modules, of the original, whatever decided
/// about these. Expected values are the original's.
struct ConversionPlacesTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  private static func lora(_ targets: String..., saving modules: [String] = []) -> LoRAConfig {
    LoRAConfig(
      rank: 2, alpha: 3, targets: TargetSelection(.list(targets)), modulesToSave: modules,
      initialization: .random)
  }

  /// An adapter as peft writes it: 'modules_to_save' names `norm`, and the file has every norm of the
  /// model, as peft goes by the ends of names.
  private func saveAllNorms(_ config: any TunerConfig, _ name: String) throws {
    var config = config
    config.modulesToSave = ["norm", "input_layernorm", "post_attention_layernorm"]
    let peft = try SmallModel.load(GoldenTests.registry)
    try peft.add("default", any: config, seed: 1)
    for (place, tensor) in try peft.tensors(of: "default").enumerated()
    where tensor.key.hasSuffix("norm.weight") {
      tensor.parameter.assign(
        .normal(
          tensor.parameter.shape, deviation: 1, key: DropoutKey(seed: 3, stream: UInt64(place))))
    }
    try peft.save(folder(name))
    let path = folder("\(name)/\(AdapterFolder.configName)")
    var object = try #require(try FileSystem.readJSON(path).object)
    object["modules_to_save"] = ["norm"]
    try FileSystem.write(path, JSONValue.object(object).text())
  }

  private static func norms(_ peft: PeftModel, _ name: String) throws -> [String: [Float]] {
    Dictionary(
      uniqueKeysWithValues: try peft.tensors(of: name).filter { $0.key.hasSuffix("norm.weight") }
        .map { ($0.key, $0.parameter.value.scalars) })
  }

  @Test(arguments: AdapterForm.allCases)
  func modulesByTheEndsOfTheirNamesAreKept(_ form: AdapterForm) throws {
    try saveAllNorms(Self.lora("q_proj"), "lora")
    try saveAllNorms(
      EDoRAConfig(rank: 2, alpha: 3, targets: TargetSelection(.list(["q_proj"])), sigma: 0.3),
      "edora")
    for source in ["lora", "edora"] {
      let peft = try SmallModel.load(GoldenTests.registry)
      try peft.load(folder(source), as: "old")
      let expected = try Self.norms(peft, "old")
      // Two in each of two layers, and the last one.
      #expect(expected.count == 5)
      try peft.convert("old", to: form, as: "new")
      #expect(try Self.norms(peft, "new") == expected)
      try peft.setActive(["new"])
      let logits = try peft.logits()
      let path = "\(source)-\(form.rawValue)"
      try peft.save(folder(path), adapter: "new")
      let other = try SmallModel.load(GoldenTests.registry)
      try other.load(folder(path), as: "again")
      #expect(try Self.norms(other, "again") == expected)
      #expect(relativeError(try other.logits(), logits) < 1e-5)
    }
  }

  /// The keys of a state put the adapter on layers that the config does not name, and on fewer.
  @Test func layersThatAStateNamedAreKept() throws {
    let peft = try SmallModel.load(GoldenTests.registry)
    let paths = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    _ = try peft.add(
      "old", any: Self.lora("q_proj"), seed: 1,
      from: AdapterOrigin(layers: .named(by: paths.map { "\($0).lora_A.weight" })))
    #expect(try peft.adaptedLayers(of: "old").map(\.path) == paths)
    let expected = try peft.logits()
    for form in [AdapterForm.lora, .dora] {
      try peft.convert("old", to: form, as: form.rawValue)
      #expect(try peft.adaptedLayers(of: form.rawValue).map(\.path) == paths)
      try peft.setActive([form.rawValue])
      #expect(relativeError(try peft.logits(), expected) < 1e-5)
    }
  }

  /// Adapters with magnitudes combine as DoRA, which holds the sum of their changes; LoRA would not.
  @Test func combiningNamesTheExactWay() throws {
    let peft = try SmallModel.load(GoldenTests.registry)
    func config(_ method: EDoRAConfig.Method) -> EDoRAConfig {
      EDoRAConfig(
        method, rank: 2, alpha: 3, targets: TargetSelection(.list(["q_proj"])), sigma: 0.3)
    }
    try peft.add("e", config(.edora), seed: 1)
    let magnitude = try #require(
      try peft.tensors(of: "e").first { $0.key.hasSuffix("magnitude_vector") })
    magnitude.parameter.update { $0 = $0.scaled(by: 1.3) }
    try peft.add("x", config(.loraXS), seed: 2)
    try peft.setActive([])
    try peft.refuses(
      "adapters of the methods EDORA, LORA_XS cannot be combined", .unsupported,
      remedy: "Convert them first: those with magnitudes to DoRA, which keeps their change, the "
        + "others to LoRA."
    ) { try peft.combine(["e", "x"], weights: [1, 1], into: "sum", Combination(.cat)) }
    try peft.convert("e", to: .dora, as: "dora")
    try peft.convert("x", to: .lora, as: "lora")
    try peft.combine(["dora", "lora"], weights: [1, 1], into: "sum", Combination(.cat))
    try peft.setActive(["e", "x"])
    let expected = try peft.logits()
    try peft.setActive(["sum"])
    #expect(relativeError(try peft.logits(), expected) < 1e-5)
  }
}
