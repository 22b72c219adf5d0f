import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// What an adapter cannot be put on: names, expressions, parameters, tokens and modules that do not
/// fit the model. The model is then as it was before.
struct TargetErrorTests {
  private let peft: PeftModel

  init() throws {
    peft = PeftModel(
      AdapterTree.ofEveryKind(), info: BaseModelInfo(modelType: "toy"),
      registry: AdapterTree.registry)
    try peft.add("first", config("part.plain"))
  }

  private func config(
    _ targets: String..., change: (inout LoRAConfig) -> Void = { _ in }
  ) -> LoRAConfig {
    var config = LoRAConfig(rank: 2, targets: TargetSelection(.list(targets)))
    config.initialization = .random
    change(&config)
    return config
  }

  private func add(_ config: LoRAConfig) throws { try peft.add("second", config) }

  // MARK: Names

  @Test func namesOfNothing() throws {
    try peft.refuses(
      "Target modules {'else', 'nothing'} not found in the base model. Please check the target "
        + "modules and try again.", .noMatchingModule
    ) { try add(config("nothing", "else")) }
    try peft.refuses(
      "Target modules {'nothing'} not found in the base model. Please check the target modules and "
        + "try again. Note: You specified 'layers_to_transform': [1].", .noMatchingModule,
      isPefts: true
    ) { try add(config { $0.targets = TargetSelection(.list(["nothing"]), layers: [1]) }) }
    try peft.refuses(
      "No `target_modules` passed but also no `target_parameters` found. Please check the values "
        + "for these arguments.", .noMatchingModule, remedy: "'target_modules' is set().",
      isPefts: true
    ) { try add(config()) }
    let all = "All modules were excluded. This is likely unintended. Check your `target_modules`, "
    try peft.refuses(
      all + "`exclude_modules` and `modules_to_save` configuration.", .noMatchingModule,
      remedy: "'target_modules' is {'lin'}.", isPefts: true
    ) { try add(config("lin") { $0.targets.excluded = .regex(".*") }) }
    try peft.refuses(
      "No modules were targeted for adaptation. This might be caused by a combination of mismatched "
        + "target modules and excluded modules. Please check your `target_modules` and "
        + "`exclude_modules` configuration. You may also have only targeted modules that are marked "
        + "to be saved (`modules_to_save`).", .noMatchingModule,
      remedy: "'target_modules' is {'lin'}.", isPefts: true
    ) { try add(config("lin") { $0.targets.excluded = .list(["lin"]) }) }
    try peft.refuses(
      "Please specify `target_modules` or `target_parameters`in `peft_config`",
      .invalidConfiguration, remedy: "There is no default for the model type 'toy'.", isPefts: true
    ) { try add(config { $0.targets.modules = nil }) }
    // Long lists are shortened first.
    try peft.refuses(
      "target_modules should not contain an empty string.", .invalidConfiguration, isPefts: true
    ) {
      try add(config { $0.targets.modules = .list((1...20).map { "m\($0)" } + [""]) })
    }
    try peft.refuses(
      "invalid task type: 'POETRY'", .invalidConfiguration,
      remedy: "It must be one of CAUSAL_LM, FEATURE_EXTRACTION, QUESTION_ANS, SEQ_2_SEQ_LM, "
        + "SEQ_CLS, TOKEN_CLS."
    ) { try add(config("lin") { $0.taskType = "POETRY" }) }
  }

  @Test func expressionsThatAreNone() throws {
    for (selection, start) in [
      (TargetSelection(.regex("(")), "'target_modules': '('"),
      (TargetSelection(.list(["lin"]), excluding: .regex("[")), "'exclude_modules': '['"),
      (TargetSelection(.list(["lin"]), layers: [1], layersPattern: ["("]), "'layers_pattern': '('"),
    ] {
      try peft.refuses(
        "\(start) is not a valid regular expression", .invalidConfiguration
      ) { try add(config { $0.targets = selection }) }
    }
    try peft.refuses(
      "'alpha_pattern': '*' is not a valid regular expression", .invalidConfiguration, at: "lin"
    ) { try add(config("lin") { $0.alphaPattern = SuffixPatterns([.init("*", 1)]) }) }
  }

  @Test func layersThatDoNotFitTogether() throws {
    try peft.add("biased", config("lin") { $0.bias = .all })
    try peft.refuses(
      "LoraModel supports only 1 adapter with bias. When using multiple adapters, set bias to 'none' "
        + "for all adapters.", .invalidConfiguration,
      remedy: "The adapter 'biased' trains biases already.", isPefts: true
    ) { try add(config("lin") { $0.bias = .adaptedOnly }) }
    let part =
      "Target module Tree(\n  (plain): Linear(in_features=10, out_features=8, bias=False)\n) is not "
    let other = PeftModel(
      AdapterTree.ofEveryKind(), info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    try other.refuses(
      part + "supported. Only layers with weights can be adapted.", .unsupported, at: "part",
      remedy: "Name the layers inside of it instead."
    ) { try other.add("second", config("part")) }
  }

  // MARK: Parameters

  /// A model with a weight of its own, and a module with one.
  private final class Holder: Module {
    let typeName = "Holder"
    let inner: Holder?
    private let kernel = StackedWeight(DenseMatrix(.zeros([4, 3])), shape: [4, 3])

    init(around inner: Holder?) { self.inner = inner }

    var children: [(name: String, module: any Module)] {
      guard let inner else { return [] }
      return [("part", inner)]
    }
    var weightHosts: [(name: String, host: any WeightHost)] { [("kernel", kernel)] }
  }

  private func holder() -> PeftModel {
    PeftModel(
      Holder(around: Holder(around: nil)), info: BaseModelInfo(modelType: ""),
      registry: AdapterTree.registry)
  }

  @Test func parametersThatNoModuleHolds() throws {
    let peft = holder()
    func config(_ change: (inout LoRAConfig) -> Void) -> LoRAConfig {
      self.config {
        $0.targetParameters = ["part.kernel"]
        change(&$0)
      }
    }
    try peft.refuses(
      "Targeting an nn.Parameter on the top-level module is not supported (parameter 'kernel').",
      .unsupported, remedy: "Put the parameter into a module of the model."
    ) { try peft.add("second", config { $0.targetParameters = ["kernel"] }) }
    try peft.refuses(
      "a parameter that no layer holds cannot be trained in full", .unsupported, at: "part.kernel",
      remedy: "Adapt it by 'target_parameters' instead."
    ) { try peft.add("second", config { $0.modulesToSave = ["part"] }) }
    try peft.add("first", config { _ in })
    try peft.refuses(
      "the adapter 'first' changes a stacked weight, which does not support mixed adapter batches",
      .unsupported, at: "part.kernel", remedy: "Activate it for the whole batch."
    ) { _ = try peft.sequenceAdapters(["__base__", "first"]) }
    try peft.refuses(
      "When using multiple adapters with `target_parameters`, all adapters must target the same set "
        + "of parameters, but got ['other'] for the new adapter and ['part.kernel'] for adapter "
        + "'first'.", .invalidConfiguration
    ) { try peft.add("second", config { $0.targetParameters = ["other"] }) }
  }

  @Test func parametersOfLayers() throws {
    try peft.refuses(
      "Trying to wrap an `nn.Parameter` of layer 'lin' of type Linear, which is not a valid target. "
        + "Make sure that this layer is not also targeted with `target_modules`. For some models, "
        + "PEFT will do this automatically, try setting `target_modules=[]` to prevent it.",
      .invalidConfiguration, at: "lin"
    ) { try add(config("lin") { $0.targetParameters = ["lin.weight"] }) }
    try peft.refuses(
      "lora.ParamWrapper was initialized with 1 dimensional Parameter, but only 2d and 3d are "
        + "supported.", .unsupported, at: "lin.bias", isPefts: true
    ) { try add(config { $0.targetParameters = ["lin.bias"] }) }
  }

  // MARK: Tokens

  @Test func tokensThatNoLayerHas() throws {
    func config(_ tokens: TrainableTokens, saved: [String] = []) -> LoRAConfig {
      self.config("lin") {
        $0.trainableTokens = tokens
        $0.modulesToSave = saved
      }
    }
    func module(_ name: String, _ indices: [Int]) -> TrainableTokens {
      .modules([.init(name, indices)])
    }
    try peft.refuses(
      "Target modules {'nothing'} not found in the base model. Please check the target modules and "
        + "try again.", .noMatchingModule, isPefts: true
    ) { try add(config(module("nothing", [1]))) }
    try peft.refuses(
      "'trainable_token_indices': Conv2d has no rows for tokens", .unsupported, at: "conv",
      remedy: "Name embeddings and linear heads."
    ) { try add(config(module("conv", [1]))) }
    for index in [11, -1] {
      try peft.refuses(
        "index \(index) is out of bounds for dimension 0 with size 11", .invalidConfiguration,
        at: "emb", remedy: "Check 'trainable_token_indices'."
      ) { try add(config(.inputEmbedding([3, index]))) }
    }
    try peft.refuses(
      "'trainable_token_indices': a token stands twice in [3, 1, 3]", .invalidConfiguration,
      at: "emb", remedy: "List every token once."
    ) { try add(config(.inputEmbedding([3, 1, 3]))) }
    try peft.refuses(
      "The embedding layer is already marked to be trained fully, either specify "
        + "`modules_to_save=[..., \"emb\", ...]` or `trainable_tokens={'emb': x}` but not both.",
      .invalidConfiguration, at: "emb"
    ) { try add(config(.inputEmbedding([3]), saved: ["emb"])) }

    let tree = AdapterTree()
    tree.add("lin", AdapterTree.ofEveryKind().children[0].module)
    let other = PeftModel(
      tree, info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    try other.refuses(
      "Target modules {'embed_tokens'} not found in the base model. Please check the target modules "
        + "and try again.", .noMatchingModule,
      remedy: "'trainable_token_indices' can name a module."
    ) { try other.add("second", config(.inputEmbedding([3]))) }
  }

  @Test func tokensOfSeveralAdapters() throws {
    for (name, indices) in [("one", [1, 3]), ("two", [3, 4])] {
      try peft.add(name, config("lin") { $0.trainableTokens = .inputEmbedding(indices) })
    }
    try peft.refuses(
      "Token indices of adapter two are already defined and would result in undefined merging "
        + "behavior. Only disjunct token indices are currently supported.", .invalidAdapter,
      at: "emb", remedy: "Merge one of the adapters alone."
    ) { try peft.merge(["one", "two"]) }
    let printed = """
      TrainableTokensWrapper(
        (original_module): None
      """
    let error = #expect(throws: PEFTError.self) { try peft.setActive(["one", "two"]) }
    #expect(
      error?.message.hasPrefix("Only one adapter can be set at a time for \(printed)") == true)
    #expect(error?.message.hasSuffix("), got 2") == true)
    #expect(
      error?.remedy == "They replace the same module 'emb': activate one at a time.")
    #expect(peft.activeAdapters == ["first"])
  }

  // MARK: Modules trained in full

  @Test func modulesThatCannotBeTrainedInFull() throws {
    try peft.refuses(
      "'modules_to_save': no module of the base model is named 'nothing'", .noMatchingModule,
      remedy: "Please check the names and try again."
    ) { try add(config("lin") { $0.modulesToSave = ["nothing"] }) }
    try peft.refuses(
      "modules_to_save cannot be applied to modules of type lora.Linear", .invalidConfiguration,
      at: "part.plain", remedy: "The adapter 'first' changes this module."
    ) { try add(config("lin") { $0.modulesToSave = ["plain"] }) }
    for name in ["one", "two"] { try peft.add(name, config("lin") { $0.modulesToSave = ["emb"] }) }
    try peft.refuses(
      "Only one adapter can be set at a time for ModulesToSaveWrapper(\n"
        + "  (original_module): Embedding(11, 6)\n  (modules_to_save): ModuleDict(\n"
        + "    (one): Embedding(11, 6)\n    (two): Embedding(11, 6)\n  )\n), got 2",
      .invalidAdapter, remedy: "They replace the same module 'emb': activate one at a time."
    ) { try peft.setActive(["one", "two"]) }
  }

  // MARK: Layers of the model

  @Test func stacksThatCannotBeMade() throws {
    try peft.delete("first")
    try peft.refuses(
      "Could not locate the layers attribute in the model. Expected Llama, Bert or Falcon "
        + "compatible architectures.", .unsupported, remedy: "Leave out 'layer_replication'."
    ) { try add(config("lin") { $0.layerReplication = [0..<1] }) }
  }

  @Test func stacksOfARealModel() throws {
    let peft = try FileGoldenTests.load()
    let folder = try TemporaryFolder()
    func config(_ ranges: [Range<Int>], _ target: String = "q_proj") -> LoRAConfig {
      self.config(target) { $0.layerReplication = ranges }
    }
    for range in [0..<3, 2..<9] {
      try peft.refuses(
        "'layer_replication': [\(range.lowerBound), \(range.upperBound)] is out of bounds for 2 "
          + "layers", .invalidConfiguration, remedy: "Give ranges [start, end] within the model."
      ) { try peft.add("first", config([0..<2, range])) }
    }
    // The stack was made before the target was not found.
    try peft.refuses(
      "Target modules {'nothing'} not found in the base model. Please check the target modules and "
        + "try again.", .noMatchingModule, isPefts: true
    ) { try peft.add("first", config([0..<2, 1..<2], "nothing")) }

    // A file that lacks a tensor, and values that do.
    let source = try FileGoldenTests.load()
    try source.add("default", config([0..<2, 1..<2]))
    try source.save(folder("adapter"))
    var values = try source.values(of: "default")
    let last = values.tensors.removeLast().key
    let weights = folder("adapter/adapter_model.safetensors")
    try SafetensorsWriter.write(
      values.tensors.map { SafetensorsItem($0.key, $0.value) }, to: weights)
    for isReplicated in [false, true] {
      try peft.refuses(
        "the adapter's tensors do not fit the model; missing: '\(last)'", .missingTensor,
        at: weights
      ) { try peft.load(folder("adapter"), as: "first") }
      try peft.refuses(
        "the new adapter 'first' has no values for '\(last)'", .missingTensor,
        remedy: "Its target modules match more modules than the adapters that it comes from."
      ) { try peft.add("first", values) }
      if !isReplicated {
        try peft.add("first", config([0..<2, 1..<2]))
        try peft.delete("first")
      }
    }
    peft.unload()
    try peft.add("first", self.config("q_proj"))
    try peft.refuses(
      "'layer_replication' [[0, 2], [1, 2]] differs from that of the adapters that the model has",
      .invalidState, remedy: "Remove them first: first."
    ) { try peft.add("second", config([0..<2, 1..<2])) }
  }
}
