import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// LoRA on whole models: targets, files, precision, mixed batches.
struct ModelTests {
  private func peftModel(_ loaded: LoadedModel) -> PeftModel {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return PeftModel(
      loaded.model,
      info: BaseModelInfo(
        modelType: loaded.model.configuration.modelType, outputHeads: loaded.outputHeads),
      registry: registry)
  }

  /// The modules that peft adapts for `all-linear` and by default (Tests/Goldens/targets.json).
  @Test func targetsOfTheTinyModelsArePefts() throws {
    let table = try FileSystem.readJSON(TestData.golden("targets.json"))
    let rows = try #require(table["models"]?.array)
    for row in rows {
      let golden = try GoldenCase(try #require(row["model"]?.string))
      let peft = try golden.loadModel()
      let task = try peft.registry.taskType(try #require(row["task_type"]?.string))
      let modules: TargetModules? = row["target_modules"] == "all-linear" ? .allLinear : nil
      let report = try peft.add(
        "a", LoRAConfig(targets: TargetSelection(modules), taskType: task))
      let expected = try #require(row["expected"]?.array).compactMap(\.string)
      #expect(report.matched.sorted() == expected.sorted(), "\(golden.name)")
    }
    #expect(rows.count == 6)
  }

  /// Trees and counts that transformers and peft print (Tests/Goldens/inspect).
  @Test(arguments: ["stories260k", "minilm-seq-cls"])
  func printsAsPeftDoes(_ name: String) throws {
    let folder = TestData.golden("inspect/\(name)")
    func text(_ file: String) throws -> String {
      var lines = String(decoding: try FileSystem.read("\(folder)/\(file)"), as: UTF8.self)
      while lines.last?.isNewline == true { lines.removeLast() }
      return lines
    }
    var options = ModelOptions()
    options.randomWeights = true
    let lora = try #require(try FileSystem.readJSON("\(folder)/lora.json").object)
    let labels = lora["task_type"] == "SEQ_CLS"
    let loaded = try ModelLoader.load(
      folder, head: labels ? .sequenceClassification(labels: 77) : .causalLM, options: options)
    #expect(loaded.model.printed.text == (try text("before.txt")))
    let peft = peftModel(loaded)
    try peft.add("default", try LoRAConfig(lora))
    #expect(peft.printed.text == (try text("after.txt")))
    #expect(peft.trainableParametersReport == (try text("parameters.txt")))
  }

  /// Loading what peft saved and saving it again keeps keys, shapes and bytes.
  @Test(arguments: GoldenTests.cases)
  func savedAdaptersHavePeftsKeys(_ name: String) throws {
    let golden = try GoldenCase(name)
    let folder = try TemporaryFolder()
    for adapter in golden.adapters {
      let peft = try golden.loadModel()
      try peft.load(golden.folder("adapter_\(adapter)"), as: adapter)
      try peft.save(folder(adapter))
      let original = try AdapterFolder(golden.folder("adapter_\(adapter)"))
      let copy = try AdapterFolder(folder(adapter))
      #expect(Set(copy.tensors.names) == Set(original.tensors.names))
      for key in original.tensors.names {
        #expect(try copy.tensors.bytes(key) == original.tensors.bytes(key))
        #expect(copy.tensors[key]?.shape == original.tensors[key]?.shape)
      }
      for key in LoRAConfig.knownKeys {
        let (ours, theirs) = (copy.config[key] ?? .null, original.config[key] ?? .null)
        if key == "target_modules" || key.hasPrefix("layers_"), !theirs.isNull {
          // A set in peft, in any order; one layer or pattern may stand without its list.
          #expect(
            Set((ours.array ?? [ours]).map { $0.text() })
              == Set((theirs.array ?? [theirs]).map { $0.text() }))
        } else {
          #expect(ours.double == theirs.double && (ours.double != nil || ours == theirs), "\(key)")
        }
      }
    }
  }

  @Test func adaptersForAnotherBaseAreRefused() throws {
    let llama = try GoldenCase("llama")
    let peft = try llama.loadModel()
    let bert = #expect(throws: PEFTError.self) {
      try peft.load(try GoldenCase("bert").folder("adapter_a"))
    }
    #expect(bert?.code == .noMatchingModule)
    // The same modules of other shapes.
    let qwen = #expect(throws: PEFTError.self) {
      try peft.load(try GoldenCase("qwen2").folder("adapter_a"))
    }
    #expect(
      qwen?.code == .missingTensor || qwen?.code == .shapeMismatch
        || qwen?.code == .unexpectedTensor)
    #expect(peft.adapterNames.isEmpty)
    try llama.expect(peft, "base")
  }

  /// A bf16 base gives what a float32 base of the rounded weights gives; where the CPU multiplies
  /// bf16, products may add the rounding of activations, 2⁻⁹ relative each.
  @Test(arguments: ["bert", "llama", "qwen2"])
  func halfPrecisionEqualsItsDequantisedWeights(_ name: String) throws {
    let golden = try GoldenCase(name)
    var options = ModelOptions()
    options.precision = .bfloat16
    let half = try golden.loadModel(options: options)
    let exact = try golden.loadModel(options: options)
    var converted = 0
    for (_, module) in exact.base.namedModules() {
      guard let host = module as? any AdapterHost, case .matrix(let matrix) = host.parameters.weight
      else { continue }
      #expect(matrix.format == "bfloat16")
      host.parameters.weight = .matrix(DenseMatrix(matrix.dequantized()))
      converted += 1
    }
    #expect(converted > 10)
    let batch = try golden.batch(golden.input)
    for peft in [half, exact] { try peft.load(golden.folder("adapter_a"), as: "a") }
    func compare(_ tolerance: Float) {
      let (a, b) = withoutGradients { (golden.output(half, batch), golden.output(exact, batch)) }
      let error = relativeError(a, b)
      #expect(error < tolerance, "\(error)")
    }
    compare(0.03)
    let halfLoss = try golden.loss(half, golden.input).backward()
    let exactLoss = try golden.loss(exact, golden.input).backward()
    for (h, e) in zip(half.trainableTensors, exact.trainableTensors) {
      let (h, e) = (try #require(halfLoss[h.parameter]), try #require(exactLoss[e.parameter]))
      #expect(relativeError(h, e) < 0.1)
    }
    // Merged weights are rounded once more.
    try half.merge()
    compare(0.05)
    half.unmerge()
    compare(0.03)
  }

  @Test(arguments: ["bert", "llama", "qwen2"])
  func mixedBatchesEqualSeparateRuns(_ name: String) throws {
    let golden = try GoldenCase(name)
    let peft = try golden.loadModel()
    for adapter in ["a", "b"] { try peft.load(golden.folder("adapter_\(adapter)"), as: adapter) }
    let batch = try golden.batch(golden.input)
    let layout = batch.packed.layout
    let names = ["b", "a", "__base__"]
    func run(_ change: (inout ForwardContext) -> Void = { _ in }) -> Tensor {
      withoutGradients { golden.output(peft, batch, change) }
    }
    let rows = try peft.sequenceAdapters(names)
    let mixed = run { $0.sequenceAdapters = rows }
    for (sequence, name) in names.enumerated() {
      try peft.setActive(name == "__base__" ? [] : [name])
      let rows = mixed.rows == layout.count ? sequence..<sequence + 1 : layout.range(sequence)
      let error = relativeError(mixed.rowRange(rows), run().rowRange(rows))
      #expect(error < 1e-5, "\(name): \(error)")
    }
  }
}
