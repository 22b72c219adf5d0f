import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// What an adapter has beside its layers comes from the untouched base. Expected values are those of
/// the same calls without another adapter merged into the base.
struct MergedBaseTests {
  private static func config(_ targets: [String]) -> LoRAConfig {
    LoRAConfig(
      rank: 2, alpha: 4, targets: TargetSelection(.list(targets)), initialization: .random)
  }

  /// The values of an adapter that is added while another is merged, and while it is not.
  private func values(
    of config: LoRAConfig, above first: LoRAConfig
  ) throws -> [[String: [Float]]] {
    try [false, true].map { isMerged in
      let peft = try FileGoldenTests.load()
      try peft.add("first", first, seed: 1)
      // New rows are those of the base, so that merging them would change nothing.
      for tensor in try peft.tensors(of: "first") {
        tensor.parameter.update { $0 = $0.scaled(by: 1.5) }
      }
      if isMerged { try peft.merge() }
      try peft.add("new", config, seed: 2)
      return Dictionary(
        uniqueKeysWithValues: try peft.tensors(of: "new").map { ($0.key, $0.value.scalars) })
    }
  }

  @Test func trainedRowsAreTheBases() throws {
    var config = Self.config(["q_proj"])
    config.trainableTokens = .inputEmbedding([3, 17])
    let found = try values(of: config, above: Self.config(["embed_tokens"]))
    #expect(found[0].count == 5 && found[0] == found[1])
  }

  @Test func modulesTrainedInFullAreTheBases() throws {
    var first = Self.config(["q_proj"])
    first.trainableTokens = .modules([.init("lm_head", [3, 17])])
    var config = Self.config(["q_proj"])
    config.modulesToSave = ["lm_head"]
    let found = try values(of: config, above: first)
    #expect(found[0].count == 5 && found[0] == found[1])
  }

  @Test func biasesAreTheBases() throws {
    var first = Self.config(["layer"])
    first.usesLoRABias = true
    var config = Self.config(["layer"])
    config.bias = .adaptedOnly
    let outputs = try [false, true].map { isMerged in
      let weight = Tensor.normal([8, 12], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))
      let host = Linear(
        HostParameters(
          weight: .matrix(DenseMatrix(weight)), bias: Parameter(Tensor(repeating: 1, shape: [8]))),
        inputFeatures: 12, outputFeatures: 8)
      let peft = PeftModel(
        SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: AdapterTree.registry)
      try peft.add("first", first, seed: 1)
      if isMerged { try peft.merge() }
      try peft.add("new", config, seed: 2)
      try peft.setActive(["new"])
      let bias = try #require(try peft.tensors(of: "new").last)
      #expect(bias.value.scalars == [Float](repeating: 1, count: 8))
      bias.parameter.update { $0 = $0.scaled(by: 3) }
      let x = Tensor.normal([5, 12], deviation: 1, key: DropoutKey(seed: 4, stream: 4))
      return withoutGradients {
        host.run(.features(x), ForwardContext(SequenceLayout(lengths: [5])))
      }.scalars
    }
    #expect(outputs[0] == outputs[1])
  }

  /// A bias that one adapter trains stays when another one is merged into the same layer.
  @Test(arguments: [["all", "plain"], ["plain"]])
  func trainedBiasesStayWhenOthersAreMerged(_ merged: [String]) throws {
    let weight = Tensor.normal([8, 12], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))
    let tree = AdapterTree()
    for name in ["one", "two"] {
      tree.add(
        name,
        Linear(
          HostParameters(
            weight: .matrix(DenseMatrix(weight)), bias: Parameter(Tensor(repeating: 1, shape: [8]))),
          inputFeatures: 12, outputFeatures: 8))
    }
    let peft = PeftModel(tree, info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    var all = Self.config(["one"])
    all.bias = .all
    try peft.add("all", all, seed: 1)
    try peft.add("plain", Self.config(["one", "two"]), seed: 2)
    for tensor in try peft.tensors(of: "all") where tensor.key.hasSuffix("bias") {
      tensor.parameter.update { $0 = $0.scaled(by: 3) }
    }
    try peft.setActive(["all", "plain"])
    let x = Tensor.normal([5, 12], deviation: 1, key: DropoutKey(seed: 4, stream: 4))
    func outputs() throws -> [Tensor] {
      try ["one", "two"].map { name in
        let host = try #require(
          peft.base.namedModules().first { $0.path == name }?.module as? Linear)
        return withoutGradients {
          host.run(.features(x), ForwardContext(SequenceLayout(lengths: [5])))
        }
      }
    }
    let before = try outputs()
    try peft.merge(merged)
    for (one, other) in zip(before, try outputs()) { #expect(relativeError(other, one) < 1e-5) }
    guard merged.count == 2 else { return }
    try peft.mergeAndUnload()
    for (one, other) in zip(before, try outputs()) { #expect(relativeError(other, one) < 1e-5) }
  }

  /// A module that one adapter trains in full while another adapts it: the change is not lost where
  /// the other is merged, and both cannot be merged.
  @Test func modulesTrainedInFullAndAdapted() throws {
    let peft = try FileGoldenTests.load()
    var whole = Self.config(["q_proj"])
    whole.modulesToSave = ["lm_head"]
    try peft.add("whole", whole, seed: 1)
    try peft.add("head", Self.config(["lm_head"]), seed: 2)
    try peft.setActive(["whole", "head"])
    let before = try peft.logits()
    try peft.refuses(
      "the adapter 'whole' trains this module in full, and 'head' changes it besides", .unsupported,
      at: "lm_head", remedy: "Merge one of the two."
    ) { try peft.merge() }
    try peft.merge(["head"])
    #expect(relativeError(try peft.logits(), before) < 1e-5)
  }

  /// Rows are scaled as the embedding scales its own: a new adapter changes nothing, a merged one the
  /// same as before.
  @Test func rowsOfAScaledEmbedding() throws {
    let weight = Tensor.normal([11, 6], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))
    let host = Embedding(
      HostParameters(weight: .matrix(DenseMatrix(weight)), bias: nil), count: 11, width: 6, scale: 3
    )
    let tree = AdapterTree()
    tree.add("emb", host)
    let other = HostParameters(weight: .matrix(DenseMatrix(.zeros([4, 4]))), bias: nil)
    tree.add("lin", Linear(other, inputFeatures: 4, outputFeatures: 4))
    let peft = PeftModel(tree, info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    func output() -> Tensor {
      withoutGradients {
        host.run(.tokenIDs([4, 2, 9]), ForwardContext(SequenceLayout(lengths: [3])))
      }
    }
    let base = output()
    var config = LoRAConfig(rank: 2, targets: TargetSelection(.list(["lin"])))
    config.trainableTokens = .modules([.init("emb", [2, 9])])
    try peft.add("rows", config)
    #expect(relativeError(output(), base) < 1e-6)
    for tensor in try peft.tensors(of: "rows") where tensor.key.hasSuffix("delta") {
      tensor.parameter.update { $0 = $0.scaled(by: 2) }
    }
    let changed = output()
    #expect(relativeError(changed, base) > 0.1)
    try peft.merge()
    #expect(relativeError(output(), changed) < 1e-6)
  }

  /// Saved while merged, the base's embedding is the one that the adapter goes with, so that it can
  /// be loaded again.
  @Test func embeddingsAreSavedUntouched() throws {
    let folder = try TemporaryFolder()
    let states = try [false, true].map { isMerged in
      let peft = try FileGoldenTests.load()
      try peft.add("first", Self.config(["embed_tokens"]), seed: 1)
      if isMerged { try peft.merge() }
      try peft.save(folder("\(isMerged)"))
      return try FileSystem.read(folder("\(isMerged)/adapter_model.safetensors"))
    }
    #expect(states[0] == states[1])
    let report = try FileGoldenTests.load().load(folder("true"))
    #expect(report.matched.contains { $0.hasSuffix("embed_tokens.base_layer.weight") })
  }
}
