import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Layers inside of adapted ones, whose keys peft has under `base_layer`: the output projection of a
/// packed attention. Adapter and expected output are peft's (Tests/Goldens/README.md).
struct InnerLayerTests {
  static let golden = TestData.golden("layers/attention")

  /// The golden's model, and its output.
  private struct Subject {
    let peft: PeftModel
    let attention: MultiheadAttention

    init() throws {
      let base = try SafetensorsFile("\(golden)/base.safetensors")
      attention = MultiheadAttention(
        packed: try base.matrix("layer.in_proj_weight"),
        bias: Parameter(try base.tensor("layer.in_proj_bias")),
        output: HostParameters(
          weight: .matrix(try base.matrix("layer.out_proj.weight")),
          bias: Parameter(try base.tensor("layer.out_proj.bias"))),
        heads: 2, batchFirst: true, dropout: Dropout(0, path: "layer"))
      let tree = AdapterTree()
      tree.add("layer", attention)
      peft = PeftModel(tree, info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    }

    func output() throws -> Tensor {
      let input = try SafetensorsFile("\(golden)/input.safetensors")
      let (query, key) = (try input.tensor("query"), try input.tensor("key"))
      let value = try input.tensor("value")
      let masks = MultiheadAttention.Masks(
        keys: try input.integers("mask").values.map { UInt8($0) })
      let context = ForwardContext(SequenceLayout(lengths: []))
      return withoutGradients {
        attention(query, key: key, value: value, masks, context)
      }
    }
  }

  static let keys = ["layer.base_layer.out_proj", "layer"].flatMap { path in
    ["A", "B"].map { "base_model.model.\(path).lora_\($0).weight" }
  }

  @Test func exchangeFindsTheKeysOfInnerLayers() throws {
    let folder = try TemporaryFolder()
    let expected = try SafetensorsFile("\(Self.golden)/expected.safetensors")
    let active = try expected.tensor("right.output")
    let fresh = try Subject()
    var config = LoRAConfig(rank: 2, alpha: 5, targets: TargetSelection(.list(["layer"])))
    config.initialization = .random
    try fresh.peft.add("other", config, seed: 3)
    try fresh.peft.save(folder("other"))
    let other = try fresh.output()
    #expect(relativeError(other, active) > 1e-2)

    let subject = try Subject()
    try subject.peft.load(folder("other"), as: "a")
    let report = try subject.peft.hotSwap("a", from: "\(Self.golden)/adapter")
    #expect(Set(report.matched) == Set(Self.keys) && report.matched.count == 4)
    #expect(report.missing.isEmpty && report.unexpected.isEmpty)
    #expect(relativeError(try subject.output(), active) < 1e-5)
    try subject.peft.hotSwap("a", from: folder("other"))
    #expect(relativeError(try subject.output(), other) < 1e-6)
  }

  @Test func keysOfInnerLayersDecideWhereAdaptersGo() throws {
    let subject = try Subject()
    let adapters = InjectedAdapters(in: subject.peft.base, registry: AdapterTree.registry)
    let report = try adapters.inject(
      LoRAConfig(rank: 4, alpha: 6, targets: TargetSelection(.list(["layer"]))),
      stateKeys: Self.keys)
    #expect(report.matched == ["layer"])
    #expect(report.additionalInConfig.isEmpty && report.additionalInState.isEmpty)
    let state = try AdapterFolder("\(Self.golden)/adapter").tensors
    let loaded = try adapters.setState(state)
    #expect(loaded.matched.count == 4 && loaded.missing.isEmpty && loaded.unexpected.isEmpty)
    let expected = try SafetensorsFile("\(Self.golden)/expected.safetensors")
    #expect(relativeError(try subject.output(), try expected.tensor("right.output")) < 1e-5)
    // An adapter of the inner layer alone has its own path.
    try adapters.delete("default")
    try adapters.inject(LoRAConfig(rank: 4, targets: TargetSelection(.list(["out_proj"]))))
    #expect(
      try adapters.state().names == ["A", "B"].map { "layer.out_proj.lora_\($0).weight" })
  }

  /// A copy of a module that is trained in full is exchanged, too.
  @Test func exchangeCarriesSavedModules() throws {
    let folder = try TemporaryFolder()
    var config = LoRAConfig(rank: 2, targets: TargetSelection(.list(["query"])))
    config.modulesToSave = ["head"]
    config.initialization = .random
    func make(_ value: Float) throws -> PeftModel {
      let tree = AdapterTree()
      tree.add("query", AdapterTree.layer(4, 6))
      let head = HostParameters(
        weight: .matrix(DenseMatrix(Tensor(repeating: value, shape: [3, 6]))),
        bias: Parameter(Tensor(repeating: value, shape: [3])))
      tree.add("head", Linear(head, inputFeatures: 6, outputFeatures: 3))
      return PeftModel(tree, info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    }
    let source = try make(2)
    try source.add("default", config, seed: 8)
    try source.save(folder("new"))
    let peft = try make(1)
    try peft.add("a", config)
    let report = try peft.hotSwap("a", from: folder("new"))
    #expect(report.matched.count == 4 && report.missing.isEmpty)
    let (found, wanted) = (try peft.state(of: "a"), try source.state(of: "default"))
    #expect(found.names == wanted.names)
    for name in wanted.names { #expect(try found.bytes(name) == wanted.bytes(name), "\(name)") }
  }
}
