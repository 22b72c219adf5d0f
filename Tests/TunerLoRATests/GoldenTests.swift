import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Tiny models with adapters made by peft; the expected numbers are what peft, transformers and
/// torch compute for them in float32 (Tests/Goldens/make_goldens.py).
struct GoldenTests {
  static let cases = ["bert", "bert-base", "llama", "llama-bias", "qwen2"]

  @Test(arguments: cases)
  func outputsEqualPeft(_ name: String) throws {
    let golden = try GoldenCase(name)
    let peft = try golden.loadModel()
    try golden.expect(peft, "base")
    for adapter in golden.adapters {
      try peft.load(golden.folder("adapter_\(adapter)"), as: adapter)
      try peft.setActive([adapter])
      try golden.expect(peft, adapter)
      peft.disable()
      try golden.expect(peft, "\(adapter)_disabled")
      peft.enable()
      try peft.merge()
      try golden.expect(peft, "\(adapter)_merged")
      peft.unmerge()
      try golden.expect(peft, adapter)
    }
    try peft.setActive(golden.two)
    try golden.expect(peft, "two")
    try peft.merge()
    try golden.expect(peft, "two_merged")
    // Unloading keeps the head of an active adapter, as peft does; without one the base is back.
    try peft.setActive([])
    peft.unload()
    try golden.expect(peft, "base")
  }

  @Test(arguments: cases.filter { $0 != "bert-base" })
  func gradientsEqualTorch(_ name: String) throws {
    let golden = try GoldenCase(name)
    let peft = try golden.loadModel()
    try peft.load(golden.folder("adapter_a"), as: "a")
    let gradients = try golden.loss(peft, golden.input).backward()
    for tensor in peft.trainableTensors {
      let expected = try golden.expected.tensor("grad.\(tensor.key)")
      let gradient = try #require(gradients[tensor.parameter], "\(tensor.key)")
      let error = relativeError(gradient, expected)
      #expect(error < 1e-4, "\(tensor.key): \(error)")
    }
  }
}

/// One folder of goldens.
struct GoldenCase {
  let name: String
  let expected: SafetensorsFile
  let input: SafetensorsFile

  init(_ name: String) throws {
    self.name = name
    expected = try SafetensorsFile(TestData.golden("\(name)/expected.safetensors"))
    input = try SafetensorsFile(TestData.golden("\(name)/input.safetensors"))
  }

  func folder(_ part: String) -> String { TestData.golden("\(name)/\(part)") }

  var adapters: [String] {
    switch name {
    case "bert": return ["a", "b", "c"]
    default: return ["a", "b"]
    }
  }

  /// The pair that is active together; peft refuses two adapters that both hold a classifier.
  var two: [String] { name == "bert" ? ["a", "c"] : ["a", "b"] }

  func loadModel(
    head: ModelHead? = nil, options: ModelOptions = ModelOptions()
  ) throws -> PeftModel {
    let loaded = try ModelLoader.load(folder("model"), head: head, options: options)
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return PeftModel(
      loaded.model,
      info: BaseModelInfo(
        modelType: loaded.model.configuration.modelType, outputHeads: loaded.outputHeads),
      registry: registry)
  }

  func batch(_ file: SafetensorsFile, prefix: String = "") throws -> PaddedBatch {
    try PaddedBatch(file, prefix: prefix)
  }

  func output(
    _ peft: PeftModel, _ batch: PaddedBatch, _ change: (inout ForwardContext) -> Void = { _ in }
  ) -> Tensor {
    var context = ForwardContext(batch.packed.layout)
    change(&context)
    switch peft.base {
    case let model as any SequenceClassifier: return model.logits(batch.packed, context)
    case let model as any CausalLanguageModel: return model.logits(batch.packed, context)
    case let model as any TransformerModel: return model.lastHiddenState(batch.packed, context)
    default: fatalError("not a transformer")
    }
  }

  func loss(
    _ peft: PeftModel, _ file: SafetensorsFile, prefix: String = "", recomputing: Bool = false
  ) throws -> Tensor {
    let batch = try batch(file, prefix: prefix)
    let logits = output(peft, batch) { context in
      context.recomputesBlocks = recomputing
      // Blocks are recomputed in training only; these models have no dropout.
      if recomputing { context.dropoutSeed = 1 }
    }
    return try crossEntropy(logits, labels: batch.packedLabels)
  }

  /// Compares outputs, and losses where there are labels, with what peft gave.
  func expect(
    _ peft: PeftModel, _ suffix: String,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let batch = try batch(input)
    let output = withoutGradients { self.output(peft, batch) }
    let kind = peft.base is any SequenceClassifier || peft.base is any CausalLanguageModel
    let key = kind ? "logits.\(suffix)" : "last_hidden_state.\(suffix)"
    let wanted = try expected.tensor(key)
    let rows =
      wanted.shape.count == 3
      ? Tensor(shape: [wanted.rows, wanted.columns], slice: wanted.slice)
        .selectRows(batch.visiblePlaces) : wanted
    let error = relativeError(output, rows)
    #expect(error < 1e-5, "\(name), \(key): \(error)", sourceLocation: sourceLocation)
    if kind {
      let loss = try withoutGradients { try crossEntropy(output, labels: batch.packedLabels) }.item
      let wantedLoss = try expected.tensor("loss.\(suffix)").item
      #expect(
        abs(loss - wantedLoss) <= 1e-5 * abs(wantedLoss), "\(name), loss.\(suffix)",
        sourceLocation: sourceLocation)
    }
  }
}

/// A padded batch of a golden file, packed.
struct PaddedBatch {
  let packed: TokenBatch
  /// Places of the visible tokens in the padded rectangle.
  let visiblePlaces: [Int32]
  /// Labels in the order of the output's rows; shifted by one for a language model.
  let packedLabels: [Int32]

  init(_ file: SafetensorsFile, prefix: String) throws {
    let (shape, ids) = try file.integers(prefix + "input_ids")
    let (_, mask) = try file.integers(prefix + "attention_mask")
    let types =
      file[prefix + "token_type_ids"] == nil
      ? nil : try file.integers(prefix + "token_type_ids").values
    let labels = try file.integers(prefix + "labels")
    var sequences: [[Int32]] = []
    var typeSequences: [[Int32]] = []
    var places: [Int32] = []
    var packedLabels: [Int32] = []
    for row in 0..<shape[0] {
      let visible = (row * shape[1]..<(row + 1) * shape[1]).filter { mask[$0] == 1 }
      sequences.append(visible.map { ids[$0] })
      if let types { typeSequences.append(visible.map { types[$0] }) }
      places += visible.map { Int32($0) }
      if labels.shape.count == 2 {
        packedLabels += visible.dropFirst().map { labels.values[$0] } + [ignoredLabel]
      }
    }
    packed = TokenBatch(sequences, tokenTypeIDs: types == nil ? nil : typeSequences)
    visiblePlaces = places
    self.packedLabels = labels.shape.count == 2 ? packedLabels : labels.values
  }
}
