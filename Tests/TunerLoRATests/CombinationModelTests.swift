import LayerTestSupport
import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Combining, converting and rescaling adapters on a model.
struct CombinationModelTests {
  /// peft's output with two adapters active at once (Tests/Goldens/llama …) is that of their sum.
  @Test(arguments: ["llama", "llama-bias", "qwen2"])
  func theSumOfTwoIsBothActive(_ name: String) throws {
    for kind in [Combination.Kind.cat, .linear, .svd] {
      let golden = try GoldenCase(name)
      let peft = try golden.loadModel()
      for adapter in golden.two { try peft.load(golden.folder("adapter_\(adapter)"), as: adapter) }
      // Enough for the sum of any two of these.
      let combination = Combination(kind, svdRank: kind == .svd ? 32 : nil)
      try peft.combine(golden.two, weights: [1, 1], into: "both", combination)
      #expect(peft.activeAdapters == [golden.two[0]])
      try golden.expect(peft, golden.two[0])
      try peft.setActive(["both"])
      try golden.expect(peft, "two")
      // An adapter like any other: merged, saved, read again.
      try peft.merge()
      try golden.expect(peft, "two_merged")
      peft.unmerge()
      let folder = try TemporaryFolder()
      try peft.save(folder("both"), adapter: "both")
      let again = try golden.loadModel()
      try again.load(folder("both"), as: "both")
      try golden.expect(again, "two")
      // Taking the second away again leaves the first.
      try peft.combine(["both", golden.two[1]], weights: [1, -1], into: "back", Combination(.cat))
      try peft.setActive(["back"])
      try golden.expect(peft, golden.two[0])
    }
  }

  /// A trained classifier goes along; two of them are refused, and nothing is left behind.
  @Test func classifiers() throws {
    let golden = try GoldenCase("bert")
    let peft = try golden.loadModel()
    try peft.load(golden.folder("adapter_a"), as: "a")
    try peft.load(golden.folder("adapter_b"), as: "b")
    try peft.load(golden.folder("adapter_c"), as: "c")
    try peft.combine(["a", "c"], weights: [1, 1], into: "both", Combination(.linear))
    try peft.setActive(["both"])
    try golden.expect(peft, "two")
    let error = #expect(throws: PEFTError.self) {
      try peft.combine(["a", "b"], weights: [1, 1], into: "new", Combination(.cat))
    }
    #expect(
      error?.message
        == "Cannot add weighted adapters if they target the same module with modules_to_save, but "
        + "found 1 such instance(s).")
    #expect(peft.adapterNames == ["a", "b", "c", "both"])
    try golden.expect(peft, "two")
  }

  @Test func failuresLeaveTheModelAsItWas() throws {
    let golden = try GoldenCase("llama")
    let peft = try golden.loadModel()
    try peft.load(golden.folder("adapter_a"), as: "a")
    try peft.load(golden.folder("adapter_b"), as: "b")
    func expect(_ text: String, _ body: () throws -> Void) throws {
      let error = #expect(throws: PEFTError.self) { try body() }
      #expect(error?.description.contains(text) == true, "\(error?.description ?? "")")
      #expect(peft.adapterNames == ["a", "b"])
      #expect(peft.activeAdapters == ["a"])
      try golden.expect(peft, "a")
    }
    try expect("Adapter c does not exist") {
      try peft.combine(["a", "c"], weights: [1, 1], into: "new")
    }
    try expect("Adapter with name 'b' already exists.") {
      try peft.combine(["a", "b"], weights: [1, 1], into: "b")
    }
    try expect("cannot be the name of an adapter") {
      try peft.combine(["a", "b"], weights: [1, 1], into: "a.b", Combination(.cat))
    }
    try expect("2 adapters and 1 weights") {
      try peft.combine(["a", "b"], weights: [1], into: "new")
    }
    try expect("All adapters must have the same r value") {
      try peft.combine(["a", "b"], weights: [1, 1], into: "new", Combination(.ties, density: 0.5))
    }
    try expect("Density should be >= 0, got -1.0") {
      try peft.combine(["a", "b"], weights: [1, 1], into: "new", Combination(.ties, density: -1))
    }
    try expect("'density' is missing, combination_type dare_ties needs it") {
      try peft.combine(["a", "b"], weights: [1, 1], into: "new", Combination(.dareTIES))
    }
    try expect("All adapters must have the same r value") {
      try peft.combine([], weights: [], into: "new", Combination(.linear))
    }
    try expect("Found no adapter matching the names in []") {
      try peft.combine([], weights: [], into: "new")
    }
    try expect("the weight of 'b' is nan") {
      try peft.combine(["a", "b"], weights: [1, .nan], into: "new")
    }
    // A state that does not fit the model.
    var state = try peft.values(of: "a")
    let first = state.tensors[0]
    state.tensors[0].value = .zeros([first.value.shape[0], first.value.shape[1] + 1])
    try expect("the model needs") { try peft.add("new", state) }
    state.tensors.remove(at: 0)
    try expect("has no values for '\(first.key)'") { try peft.add("new", state) }
    state.tensors.insert(first, at: 0)
    state.tensors.append(("base_model.model.none.lora_A.weight", .zeros([1])))
    try expect("no place for 'base_model.model.none.lora_A.weight'") {
      try peft.add("new", state)
    }
    let report = try peft.combine(
      ["a"], weights: [1], into: "b", Combination(.linear, compatibility: .peft))
    #expect(!report.isNew)
  }

  /// PiSSA's change is measured from the initial factors: what is combined and converted is the change.
  @Test func adaptersThatReferToInitialValues() throws {
    let golden = try GoldenCase("llama")
    let peft = try golden.loadModel()
    let targets = TargetSelection(.list(["q_proj", "down_proj"]))
    try peft.add(
      "pissa", LoRAConfig(rank: 3, alpha: 5, targets: targets, initialization: .pissa))
    for tensor in try peft.tensors(of: "pissa") {
      let noise = Tensor.normal(
        tensor.parameter.shape, deviation: 0.1, key: DropoutKey(seed: 1, stream: siteID(tensor.key))
      )
      tensor.parameter.assign(tensor.parameter.value + noise)
    }
    try peft.setActive(["pissa"])
    let batch = try golden.batch(golden.input)
    let expected = withoutGradients { golden.output(peft, batch) }
    try peft.combine(["pissa"], weights: [1], into: "same", Combination(.linear))
    try peft.combine(["pissa"], weights: [1], into: "decomposed", Combination(.svd, svdRank: 6))
    try peft.combine(["pissa", "pissa"], weights: [3, -2], into: "sum", Combination(.cat))
    try peft.add("converted", peft.convertToLoRA("pissa", rank: .fixed(6)).values)
    for name in ["same", "decomposed", "sum", "converted"] {
      try peft.setActive([name])
      #expect(
        relativeError(withoutGradients { golden.output(peft, batch) }, expected) < 1e-5, "\(name)")
    }
  }

  /// peft's `set_scale`, `scale_layer` and `unscale_layer`: factors of the configured scaling and
  /// of the present one.
  @Test func scales() throws {
    let golden = try GoldenCase("llama")
    let peft = try golden.loadModel()
    try peft.load(golden.folder("adapter_a"), as: "a")
    try peft.load(golden.folder("adapter_b"), as: "b")
    let layers = try peft.adaptedLayers(of: "a").compactMap { $0.layer as? any ScaledLayer }
    let configured = layers.map(\.configuredScaling)
    func expect(_ factor: Double) {
      for (layer, scaling) in zip(layers, configured) {
        #expect(abs(layer.scaling - factor * scaling) < 1e-12)
      }
    }
    try peft.setScale("a", 0.5)
    expect(0.5)
    try peft.setScale("a", 3)
    expect(3)
    try peft.scaleLayers(by: 2)
    expect(6)
    // The other adapter is not active.
    for layer in try peft.adaptedLayers(of: "b") {
      let layer = try #require(layer.layer as? any ScaledLayer)
      #expect(layer.scaling == layer.configuredScaling)
    }
    // A combination takes the present scaling: 1/6 of it is the adapter itself.
    try peft.combine(["a"], weights: [1.0 / 6], into: "same", Combination(.linear))
    try peft.setActive(["same"])
    try golden.expect(peft, "a")
    try peft.setActive(["a"])
    try peft.unscaleLayers(by: 4)
    expect(1.5)
    try peft.unscaleLayers()
    expect(1)
    try golden.expect(peft, "a")
    try peft.setScale("a", 0)
    try golden.expect(peft, "base")
    try peft.unscaleLayers()
    try peft.merge()
    #expect(throws: PEFTError.self) { try peft.setScale("a", 2) }
    #expect(throws: PEFTError.self) { try peft.setScale("nobody", 2) }
    #expect(throws: PEFTError.self) { try peft.setScale("b", .infinity) }
    #expect(throws: PEFTError.self) { try peft.unscaleLayers(by: 0) }
    try golden.expect(peft, "a_merged")
  }

  /// Cases of the reference with the outcome that peft gave (Tests/Goldens/conformance.json).
  @Test(arguments: ["53", "72"])
  func conformance(_ id: String) throws {
    var runner = try ConformanceSteps(id)
    try runner.run()
    #expect(runner.count > 10)
  }

  /// An adapter on an embedding converts too, and one by energy keeps what was asked for.
  @Test func convertsToLoRA() throws {
    let golden = try GoldenCase("llama")
    let peft = try golden.loadModel()
    try peft.add(
      "wide",
      LoRAConfig(
        rank: 6, alpha: 9,
        targets: TargetSelection(.list(["embed_tokens", "q_proj", "down_proj"])),
        taskType: .causalLM, initialization: .random))
    try peft.setActive(["wide"])
    let batch = try golden.batch(golden.input)
    let expected = withoutGradients { golden.output(peft, batch) }
    let folder = try TemporaryFolder()
    let whole = try peft.saveAsLoRA(folder("whole"), adapter: "wide", rank: .fixed(6))
    #expect(whole.warnings.count == 1)
    #expect(Set(whole.ranks.values) == [6])
    try peft.load(folder("whole"), as: "whole")
    try peft.setActive(["whole"])
    #expect(relativeError(withoutGradients { golden.output(peft, batch) }, expected) < 1e-5)

    let part = try peft.convertToLoRA("wide", rank: .energy(0.7))
    #expect(part.ranks.values.contains { $0 < 6 })
    try peft.add("part", part.values)
    let changes = try (peft.adaptedLayers(of: "wide"), peft.adaptedLayers(of: "part"))
    for (old, new) in zip(changes.0, changes.1) {
      let (before, after) = (try old.fullChange().scalars, try new.fullChange().scalars)
      let total = before.reduce(0.0) { $0 + Double($1) * Double($1) }
      let rest = zip(before, after).reduce(0.0) {
        $0 + (Double($1.0) - Double($1.1)) * (Double($1.0) - Double($1.1))
      }
      #expect(1 - rest / total >= 0.7 - 1e-5, "\(old.path)")
    }
  }

  /// Rows of an embedding that are trained, and layers that stand there twice, are in the folder.
  @Test func conversionsKeepRowsAndStacks() throws {
    let batch = TokenBatch([[3, 17, 5, 9], [2, 3]])
    let peft = try FileGoldenTests.load()
    var config = LoRAConfig(
      rank: 4, targets: TargetSelection(.list(["q_proj", "down_proj"])), initialization: .random)
    config.layerReplication = [0..<2, 1..<2]
    config.trainableTokens = .inputEmbedding([3, 17])
    config.ensuresWeightTying = true
    try peft.add("default", config)
    let plain = try peft.logits(of: batch)
    let rows = try #require(
      try peft.tensors(of: "default").first { $0.key.contains("trainable_tokens_delta") })
    rows.parameter.update { $0 = $0.scaled(by: -2) }
    let expected = try peft.logits(of: batch)
    #expect(relativeError(plain, expected) > 1e-2)
    let folder = try TemporaryFolder()
    try peft.saveAsLoRA(folder("lora"), rank: .fixed(4))
    let again = try FileGoldenTests.load()
    try again.load(folder("lora"))
    #expect(relativeError(try again.logits(of: batch), expected) < 1e-5)
    let read = try #require(try again.config("default") as? LoRAConfig)
    #expect(read.layerReplication == config.layerReplication && read.ensuresWeightTying)
    // Beside the first one, too.
    try peft.load(folder("lora"), as: "again")
    try peft.setActive(["again"])
    #expect(relativeError(try peft.logits(of: batch), expected) < 1e-5)
  }

  /// A head with its embedding's factors would get factors for itself.
  @Test func conversionsRefuseTiedHeads() throws {
    let peft = try GoldenCase("llama").loadModel()
    var config = LoRAConfig(
      rank: 4, targets: TargetSelection(.list(["embed_tokens", "q_proj"])),
      initialization: .random)
    config.ensuresWeightTying = true
    try peft.add("tied", config)
    let folder = try TemporaryFolder()
    try peft.refuses(
      "the module 'lm_head' has the change of the embedding that it is tied to "
        + "('ensure_weight_tying'), which cannot be converted", .unsupported, at: "tied",
      remedy: "Keep the adapter as it is."
    ) { try peft.saveAsLoRA(folder("x"), adapter: "tied", rank: .fixed(4)) }
    #expect(folder.names.isEmpty)
  }

  /// A tuner that knows nothing of factors: its whole change is decomposed.
  @Test func convertsFullChanges() throws {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(FullTuner.self)
    let model = MLP(lin0: .zeros([8, 10]), lin1: .zeros([2, 8]))
    let peft = PeftModel(model, info: BaseModelInfo(modelType: "mlp"), registry: registry)
    try peft.add("full", FullConfig(targets: TargetSelection(.list(["lin0", "lin1"]))))
    let layer = try #require(try peft.adaptedLayers(of: "full").first)
    let conversion = try peft.convertToLoRA("full", rank: .fixed(2))
    #expect(conversion.warnings.isEmpty)
    try peft.add("lora", conversion.values)
    let new = try #require(try peft.adaptedLayers(of: "lora").first)
    let change = try layer.fullChange()
    let expected = Reference.truncated(change.scalars.map { Double($0) }, 8, 10, 2)
    expectClose(try new.fullChange().scalars, expected, 1e-5, "lin0")
    #expect(throws: PEFTError.self) { try peft.convertToLoRA("full", rank: .fixed(3)) }
    // Several methods convert and then combine; as they are they do not.
    let error = #expect(throws: PEFTError.self) {
      try peft.combine(["full", "lora"], weights: [1, 1], into: "new", Combination(.cat))
    }
    #expect(error?.message == "adapters of the methods LORA, TEST_FULL cannot be combined")
  }
}

/// lin1(relu(lin0(x))).
final class MLP: Module {
  let lin0: Linear
  let lin1: Linear

  init(lin0: Tensor, lin1: Tensor, biases: [Tensor?] = [nil, nil]) {
    func layer(_ weight: Tensor, _ bias: Tensor?) -> Linear {
      Linear(
        HostParameters(weight: .matrix(DenseMatrix(weight)), bias: bias.map { Parameter($0) }),
        inputFeatures: weight.shape[1], outputFeatures: weight.shape[0])
    }
    self.lin0 = layer(lin0, biases[0])
    self.lin1 = layer(lin1, biases[1])
  }

  var typeName: String { "MLP" }
  var children: [(name: String, module: any Module)] { [("lin0", lin0), ("lin1", lin1)] }

  func callAsFunction(_ x: Tensor) -> Tensor {
    let context = ForwardContext(SequenceLayout(lengths: [x.rows]))
    return withoutGradients { lin1(Activation.relu(lin0(x, context)), context) }
  }
}

/// ΔW is a matrix of its own.
enum FullTuner: Tuner {
  typealias Config = FullConfig
  static let peftType = "TEST_FULL"
  static let modelTypeName = "FullModel"
  static let dispatchers: [any Dispatcher] = [FullDispatcher()]
}

struct FullConfig: TunerConfig {
  var taskType: String?
  var baseModel: String?
  var targets: TargetSelection
  var modulesToSave: [String] = []
  var unknownKeys = JSONObject()

  init(targets: TargetSelection) { self.targets = targets }
  init(_ object: JSONObject) throws(PEFTError) {
    var reader = ConfigReader(object)
    targets = try TargetSelection(&reader)
  }
  var object: JSONObject { JSONObject([("peft_type", "TEST_FULL")] + targets.members) }
}

struct FullDispatcher: Dispatcher {
  var supports: String { "Linear" }
  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? { FullLayer(site) }
}

final class FullLayer: TunerLayer {
  let delta: Parameter

  init(_ site: AdapterSite) {
    delta = Parameter(
      .normal(
        [site.host.outputFeatures, site.host.inputFeatures], deviation: 1,
        key: DropoutKey(seed: 5, stream: siteID(site.path))))
  }

  var parameters: [AdapterParameter] { [AdapterParameter("delta", delta)] }
  func contribute(_ call: LayerCall, to sum: inout Tensor) {}
  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) { block = block + delta.value.rowRange(rows) }
  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule { base }
}
