import LayerTestSupport
import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerLoRA

@testable import TunerDoRA

/// DoRA on a whole model: exchange of adapters, and trained rows of a layer that DoRA adapts. Expected
/// outputs are those of the same adapter on a fresh model, or merged.
struct ModelTests {
  private static func load() throws -> PeftModel { try SmallModel.load(GoldenTests.registry) }

  /// Adds an adapter with random factors and magnitudes that are not the norms.
  private static func add(
    _ peft: PeftModel, _ targets: [String], seed: UInt64, tokens: [Int] = []
  ) throws {
    var config = LoRAConfig(
      rank: 4, alpha: 3, targets: TargetSelection(.list(targets)), initialization: .random)
    config.usesDoRA = true
    if !tokens.isEmpty { config.trainableTokens = .inputEmbedding(tokens) }
    try peft.add("a", config, seed: seed)
    for (place, tensor) in try peft.tensors(of: "a").enumerated()
    where tensor.key.hasSuffix("magnitude_vector") || tensor.key.hasSuffix("tokens_delta") {
      let noise = Tensor.uniform(
        tensor.parameter.shape, bound: 0.4, key: DropoutKey(seed: seed, stream: UInt64(place)))
      tensor.parameter.update { value in value = value * noise.adding(1) }
    }
  }

  /// LoRA and DoRA on one layer are one wrapper, as peft 0.21 prints it.
  @Test func printsAsOneWithLoRA() throws {
    let targets = TargetSelection(.list(["q_proj", "embed_tokens"]))
    let peft = try Self.load()
    try peft.add("a", LoRAConfig(rank: 4, targets: targets))
    var config = LoRAConfig(rank: 2, dropout: 0.1, targets: targets)
    config.usesDoRA = true
    try peft.add("b", config)
    let lines = peft.printed.text.split(separator: "\n")
    func text(of name: String) throws -> String {
      let first = try #require(lines.firstIndex { $0.contains("(\(name)): lora.") })
      let indent = lines[first].prefix { $0 == " " }
      let last = try #require(lines[first...].firstIndex { $0 == indent + ")" })
      return lines[first...last].map { $0.dropFirst(indent.count) }.joined(separator: "\n")
    }
    #expect(
      try text(of: "q_proj") == """
        (q_proj): lora.Linear(
          (base_layer): Linear(in_features=16, out_features=16, bias=False)
          (lora_dropout): ModuleDict(
            (a): Identity()
            (b): Dropout(p=0.1, inplace=False)
          )
          (lora_A): ModuleDict(
            (a): Linear(in_features=16, out_features=4, bias=False)
            (b): Linear(in_features=16, out_features=2, bias=False)
          )
          (lora_B): ModuleDict(
            (a): Linear(in_features=4, out_features=16, bias=False)
            (b): Linear(in_features=2, out_features=16, bias=False)
          )
          (lora_embedding_A): ParameterDict()
          (lora_embedding_B): ParameterDict()
          (lora_magnitude_vector): ModuleDict(
            (b): lora.dora.DoraLinearLayer()
          )
        )
        """)
    #expect(
      try text(of: "embed_tokens") == """
        (embed_tokens): lora.Embedding(
          (base_layer): Embedding(40, 16)
          (lora_dropout): ModuleDict(
            (a): Identity()
            (b): Dropout(p=0.1, inplace=False)
          )
          (lora_A): ModuleDict()
          (lora_B): ModuleDict()
          (lora_embedding_A): ParameterDict(
              (a): Parameter containing: [torch.FloatTensor of size 4x40]
              (b): Parameter containing: [torch.FloatTensor of size 2x40]
          )
          (lora_embedding_B): ParameterDict(
              (a): Parameter containing: [torch.FloatTensor of size 16x4]
              (b): Parameter containing: [torch.FloatTensor of size 16x2]
          )
          (lora_magnitude_vector): ModuleDict(
            (b): lora.dora.lora.dora.DoraEmbeddingLayer()
          )
        )
        """)
  }

  /// Layers that the new adapter lacks change nothing, until another one has them again.
  @Test func layersThatAreMissingBecomeEmpty() throws {
    let folder = try TemporaryFolder()
    func adapter(_ targets: [String], _ name: String, seed: UInt64) throws -> Tensor {
      let peft = try Self.load()
      try Self.add(peft, targets, seed: seed)
      try peft.save(folder(name), embeddings: .never)
      return try peft.logits()
    }
    let all = try adapter(["embed_tokens", "q_proj", "down_proj"], "all", seed: 1)
    let few = try adapter(["q_proj"], "few", seed: 2)
    let peft = try Self.load()
    try peft.load(folder("all"), as: "a")
    let report = try peft.hotSwap("a", from: folder("few"))
    #expect(report.missing.count == 9 && report.matched.count == 6)
    #expect(relativeError(try peft.logits(), few) < 1e-5)
    try peft.merge()
    #expect(relativeError(try peft.logits(), few) < 1e-5)
    peft.unmerge()
    // What is saved then is whole, and the same adapter.
    try peft.save(folder("again"), embeddings: .never)
    let again = try Self.load()
    try again.load(folder("again"))
    #expect(relativeError(try again.logits(), few) < 1e-5)
    try peft.hotSwap("a", from: folder("all"))
    #expect(relativeError(try peft.logits(), all) < 1e-5)
  }

  /// A magnitude alone is no layer.
  @Test func layersThatAreThereInPartAreRefused() throws {
    let folder = try TemporaryFolder()
    let peft = try Self.load()
    try Self.add(peft, ["q_proj"], seed: 1)
    try peft.save(folder("new"))
    let weights = folder("new/\(AdapterFolder.weightsName)")
    let file = try SafetensorsFile(weights)
    let missing = file.names.filter { $0.contains("layers.1") && $0.contains("magnitude") }
    try SafetensorsWriter.write(
      try file.names.filter { !missing.contains($0) }.map {
        SafetensorsItem($0, try file.tensor($0))
      }, to: weights)
    try peft.refuses(
      "the tensors of the layer 'model.layers.1.self_attn.q_proj' are incomplete, missing: "
        + "'\(missing.joined())'", .missingTensor, at: weights
    ) { try peft.hotSwap("a", from: folder("new")) }
  }

  /// Trained rows take the place of the base's, and DoRA's change is against the base as it was:
  /// row′ + g∘(W + s·B·A) − W, merged or not, in a mixed batch or alone.
  @Test(arguments: [["embed_tokens", "q_proj"], ["lm_head", "q_proj"]])
  func rowsAndChangesOfAnEmbeddingAdd(_ targets: [String]) throws {
    let peft = try Self.load()
    try Self.add(peft, targets, seed: 3, tokens: [2, 3, 5, 8, 11, 17, 28, 30, 38, 39])
    let active = try peft.logits()
    let mixed = try peft.logits(rows: ["a", "__base__"])
    #expect(relativeError(mixed.rowRange(0..<5), active.rowRange(0..<5)) < 1e-5)
    try peft.merge(safe: true)
    #expect(relativeError(try peft.logits(), active) < 1e-5)
    peft.unmerge()
    peft.disable()
    let base = try peft.logits()
    #expect(relativeError(mixed.rowRange(5..<10), base.rowRange(5..<10)) < 1e-5)
    #expect(relativeError(base, active) > 0.01)
  }
}
