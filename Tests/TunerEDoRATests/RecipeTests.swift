import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// Settings, parameter counts, compact files, several adapters. Expected values are the methods'
/// definitions.
struct RecipeTests {
  private struct Fixture {
    let host: Linear
    let peft: PeftModel

    init(seed: UInt64 = 1, _ format: (Tensor) -> any WeightMatrix = { DenseMatrix($0) }) {
      let weight = Tensor.normal([8, 12], deviation: 0.4, key: DropoutKey(seed: seed, stream: 1))
      let bias = Tensor.normal([8], deviation: 0.4, key: DropoutKey(seed: seed, stream: 2))
      host = Linear(
        HostParameters(weight: .matrix(format(weight)), bias: Parameter(bias)),
        inputFeatures: 12, outputFeatures: 8)
      peft = PeftModel(
        SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: GoldenTests.registry)
    }

    func output(_ x: Tensor) -> Tensor {
      withoutGradients {
        host.run(.features(x), ForwardContext(SequenceLayout(lengths: [x.rows])))
      }
    }

    func values(_ adapter: String) throws -> [Tensor] {
      try peft.tensors(of: adapter).map(\.parameter.value)
    }
  }

  private static func config(
    _ method: EDoRAConfig.Method = .edora, rank: Int = 3, alpha: Double = 6, sigma: Double = 0.3,
    _ reconstruction: Reconstruction = Reconstruction(), isCompact: Bool = false
  ) -> EDoRAConfig {
    EDoRAConfig(
      method, rank: rank, alpha: alpha, targets: TargetSelection(.list(["layer"])), sigma: sigma,
      reconstruction: reconstruction, isCompact: isCompact)
  }

  private let x = Tensor.normal([5, 12], deviation: 1, key: DropoutKey(seed: 4, stream: 4))

  /// The table of the paper: 48 modules of RoBERTa-base with 768 outputs each, without the head.
  @Test(arguments: [(8, 39_936, 3_072), (16, 49_152, 12_288), (32, 86_016, 49_152)])
  func trainableParametersAreThePapers(_ rank: Int, _ edora: Int, _ loraXS: Int) throws {
    final class Layer: Module {
      let children: [(name: String, module: any Module)]
      let typeName = "Layer"
      init() {
        func linear(_ name: String, _ inputs: Int) -> (name: String, module: any Module) {
          let matrix = ShapeOnlyMatrix(rows: 768, columns: inputs, format: "float32")
          return (
            name,
            Linear(
              HostParameters(weight: .matrix(matrix), bias: nil), inputFeatures: inputs,
              outputFeatures: 768)
          )
        }
        children = [
          linear("query", 768), linear("value", 768), linear("attention_output", 768),
          linear("output", 3072),
        ]
      }
    }
    for (method, expected) in [(EDoRAConfig.Method.edora, edora), (.loraXS, loraXS)] {
      let model = ModuleList((0..<12).map { _ in Layer() })
      let peft = PeftModel(
        model, info: BaseModelInfo(modelType: "roberta"), registry: GoldenTests.registry)
      var config = Self.config(method, rank: rank)
      config.targets = TargetSelection(.list(["query", "value", "attention_output", "output"]))
      let report = try peft.add("a", config)
      #expect(report.matched.count == 48)
      #expect(peft.trainableTensors.reduce(0) { $0 + $1.parameter.value.count } == expected)
    }
  }

  /// half_init_dec, random factors, and trained factors without R, in their sizes.
  @Test func recipesDiffer() throws {
    let fixture = Fixture()
    try fixture.peft.add("svd", Self.config(rank: 4))
    try fixture.peft.add("half", Self.config(rank: 4, Reconstruction(drawsHalfOfB: true)))
    try fixture.peft.add("random", Self.config(rank: 4, Reconstruction(isRandom: true)))
    try fixture.peft.add(
      "other", Self.config(rank: 4, Reconstruction(randomState: 7, isRandom: true)))
    try fixture.peft.add("free", Self.config(rank: 4, Reconstruction(hasLatent: false)))
    let (svd, half) = (try fixture.values("svd"), try fixture.values("half"))
    #expect(half[0].scalars == svd[0].scalars)
    for row in 0..<8 {
      for column in 0..<4 {
        let (one, other) = (svd[1].scalars[row * 4 + column], half[1].scalars[row * 4 + column])
        #expect((one == other) == (column < 2))
        if column >= 2 { #expect(abs(other) <= 1 / Float(8).squareRoot()) }
      }
    }
    let (random, other) = (try fixture.values("random"), try fixture.values("other"))
    #expect(random[0].scalars != other[0].scalars)
    // kaiming_uniform(√5) of [in, r] and [r, out]: ±1/√r and ±1/√out.
    #expect(random[0].maximumMagnitude <= 0.5 && random[0].maximumMagnitude > 0.4)
    let bound = 1 / Float(8).squareRoot()
    #expect(random[1].maximumMagnitude <= bound && random[1].maximumMagnitude > 0.8 * bound)
    let free = try fixture.peft.tensors(of: "free")
    #expect(free.map { GoldenTests.letter($0.key) } == ["A", "B", "m"])
    #expect(free[1].parameter.value.scalars == svd[1].scalars)
    try fixture.peft.setActive(["free"])
    #expect(fixture.peft.trainableTensors.count == 3)
    try fixture.peft.setActive(["svd"])
    #expect(fixture.peft.trainableTensors.map { GoldenTests.letter($0.key) } == ["R", "m"])
  }

  /// On any weight format; the same as on the dequantised weights in 32 bits.
  @Test(arguments: EDoRAConfig.Method.allCases)
  func weightFormatsDoNotMatter(_ method: EDoRAConfig.Method) throws {
    for make: (Tensor) -> any WeightMatrix in [
      { HalfMatrix(rounding: $0, to: .bfloat16) }, { LossyMatrix(rounding: $0) },
    ] {
      let (low, wide) = (
        Fixture { make($0) }, Fixture { DenseMatrix(make($0).dequantized()) }
      )
      try low.peft.add("a", Self.config(method), seed: 2)
      try wide.peft.add("a", Self.config(method), seed: 2)
      for (one, other) in zip(try low.values("a"), try wide.values("a")) {
        #expect(relativeError(one, other) < 1e-4)
      }
      #expect(relativeError(low.output(x), wide.output(x)) < 1e-5)
      try low.peft.merge()
      #expect(relativeError(low.output(x), wide.output(x)) < 0.2)
    }
  }

  /// EDoRA, LoRA-XS, DoRA and LoRA at once, in any order, merged and not.
  @Test func severalMethodsAddUp() throws {
    let fixture = Fixture()
    var dora = LoRAConfig(
      rank: 2, alpha: 3, targets: TargetSelection(.list(["layer"])), initialization: .random)
    dora.usesDoRA = true
    try fixture.peft.add("e", Self.config(), seed: 1)
    try fixture.peft.add("x", Self.config(.loraXS, rank: 2), seed: 2)
    try fixture.peft.add("d", dora, seed: 3)
    let base: Tensor
    do {
      fixture.peft.disable()
      base = fixture.output(x)
      fixture.peft.enable()
    }
    var changes = Tensor.zeros(base.shape)
    for name in ["e", "x", "d"] {
      try fixture.peft.setActive([name])
      let change = fixture.output(x) + base.scaled(by: -1)
      #expect(change.maximumMagnitude > 1e-3)
      changes = changes + change
    }
    let expected = base + changes
    for order in [["e", "x", "d"], ["d", "e", "x"], ["x", "d", "e"]] {
      try fixture.peft.setActive(order)
      #expect(relativeError(fixture.output(x), expected) < 1e-5)
      try fixture.peft.merge()
      #expect(relativeError(fixture.output(x), expected) < 1e-5)
      fixture.peft.unmerge()
    }
  }

  /// R and the magnitude alone in the file; another base is refused by the module's name.
  @Test(arguments: EDoRAConfig.Method.allCases)
  func compactFilesKnowTheirBase(_ method: EDoRAConfig.Method) throws {
    let folder = try TemporaryFolder()
    let fixture = Fixture()
    try fixture.peft.add(
      "a", Self.config(method, Reconstruction(drawsHalfOfB: true), isCompact: true), seed: 5)
    // As after training: R and the magnitude are others than those of a new adapter.
    for tensor in try fixture.peft.tensors(of: "a") where tensor.parameter.isTrainable {
      let shape = tensor.parameter.shape
      let noise = Tensor.normal(
        shape, deviation: 0.2, key: DropoutKey(seed: 9, stream: siteID(tensor.key)))
      tensor.parameter.update { value in value = value + noise }
    }
    let expected = fixture.output(x)
    try fixture.peft.save(folder("compact"))
    let names = try AdapterFolder(folder("compact")).tensors.names
    #expect(!names.contains { $0.contains("lora_A") || $0.contains("lora_B") })
    #expect(names.count == (method == .edora ? 3 : 2))

    let same = Fixture()
    try same.peft.load(folder("compact"), as: "b")
    #expect(relativeError(same.output(x), expected) < 1e-6)
    // Both forms of the same adapter.
    #expect(try same.peft.config("b").object == fixture.peft.config("a").object)

    let other = Fixture(seed: 2)
    let error = #expect(throws: PEFTError.self) { try other.peft.load(folder("compact"), as: "b") }
    #expect(error?.code == .invalidAdapter)
    #expect(error?.description.contains("'layer'") == true)
    #expect(error?.description.contains("made for another base model") == true)
    #expect(other.peft.adapterNames.isEmpty && other.host.adapters == nil)
    #expect(throws: PEFTError.self) {
      try Fixture { HalfMatrix(rounding: $0, to: .bfloat16) }.peft.load(folder("compact"), as: "b")
    }
  }

  /// R without A and B next to it is not DoRA: the folder must not be taken for one.
  @Test func latentTensorsAreNeverIgnored() throws {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    for name in ["linear", "xs-linear"] {
      let golden = try LayerGolden("edora/\(name)", registry: registry)
      let error = #expect(throws: PEFTError.self) { _ = try golden.model() }
      #expect(error?.code == .unexpectedTensor)
      #expect(error?.message.contains("lora_latent_mapping") == true)
    }
  }

  @Test func settingsAreChecked() throws {
    func object(_ members: [(String, JSONValue)]) -> JSONObject {
      JSONObject([("peft_type", "EDORA"), ("r", 4), ("target_modules", ["layer"])] + members)
    }
    let config = try EDoRAConfig(
      object([
        ("init_sigma", 5e-6),
        ("reconstruct_config", ["half_init_dec": true, "svd": ["n_iter": 3, "random_state": 9]]),
        ("unknown", 1),
      ]))
    #expect(config.sigma == 5e-6 && config.lora.rank == 4)
    #expect(
      config.reconstruction
        == Reconstruction(
          decomposition: .randomized(iterations: 3), randomState: 9, drawsHalfOfB: true))
    #expect(config.unknownKeys.keys == ["unknown"])
    #expect(try EDoRAConfig(config.object) == config)
    // As the recipe's file has it.
    let nested = object([
      ("use_dora", true), ("dora_detach_norm", false),
      ("reconstruct_config", ["init_sigma": 0.25, "svd": ["rank": 4]]),
    ])
    #expect(try EDoRAConfig(nested).sigma == 0.25)
    #expect(try !EDoRAConfig(nested).lora.detachesNorm)
    #expect(try EDoRAConfig(EDoRAConfig(nested).object) == EDoRAConfig(nested))
    // What others write into the recipe is kept, and named for those who want none of it.
    var recipe = try EDoRAConfig(
      object([("reconstruct_config", ["half_init_dec": true, "half_init_enc": true])]))
    #expect(recipe.unknownKeys.keys == ["reconstruct_config.half_init_enc"])
    #expect(recipe.object["reconstruct_config"]?["half_init_enc"] == true)
    #expect(try EDoRAConfig(recipe.object) == recipe)
    recipe.unknownKeys = JSONObject([("reconstruct_config.other", 1), ("unknown", 2)])
    #expect(recipe.object["reconstruct_config"]?["half_init_enc"] == nil)
    #expect(recipe.object["reconstruct_config"]?["other"] == 1 && recipe.object["unknown"] == 2)
    for (members, text) in [
      ([("init_sigma", -1)], "'init_sigma' is -1"),
      ([("init_sigma", "small")], "'init_sigma'"),
      ([("reconstruct_config", ["reconstruction_type": "qr"])], "'reconstruction_type': \"qr\""),
      ([("reconstruct_config", ["reconstr_mode": "combined"])], "'reconstr_mode': \"combined\""),
      ([("reconstruct_config", ["svd": ["n_itr": 1]])], "'svd.n_itr'"),
      ([("reconstruct_config", ["svd": ["n_iter": -1]])], "'svd.n_iter' is -1"),
      ([("compact", true), ("reconstruct_config", ["r_squared": false])], "'compact' needs"),
      ([("init_lora_weights", "pissa")], "'init_lora_weights'"),
    ] as [([(String, JSONValue)], String)] {
      let error = #expect(throws: PEFTError.self) { _ = try EDoRAConfig(object(members)) }
      #expect(error?.message.contains(text) == true, "\(error.map { "\($0)" } ?? "")")
    }
    let fixture = Fixture()
    let error = #expect(throws: PEFTError.self) {
      try fixture.peft.add("a", Self.config(rank: 9))
    }
    #expect(error?.message.contains("'r' is 9") == true && error?.location == "layer")
    #expect(fixture.peft.adapterNames.isEmpty)
  }

  /// The repositories pass every member to `LoraConfig` of peft 0.10.0, which fails at a name that is
  /// none of its fields: those of its `tuners/lora/config.py` and `config.py`.
  @Test(arguments: EDoRAConfig.Method.allCases)
  func theRepositoriesReadTheConfig(_ method: EDoRAConfig.Method) throws {
    let fields = [
      "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out",
      "inference_mode", "init_lora_weights", "layer_replication", "layers_pattern",
      "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_config",
      "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern", "revision",
      "target_modules", "task_type", "use_dora", "use_rslora",
    ]
    func keys(_ config: EDoRAConfig) -> [String] { config.files[0].members.keys.sorted() }
    #expect(keys(Self.config(method)) == fields)
    // The version of a peft that wrote the adapter before is not that of this form.
    let members: [(String, JSONValue)] = [
      ("peft_type", .string(method.rawValue)), ("r", 3), ("target_modules", ["layer"]),
      ("peft_version", "0.17.0"), ("corda_config", nil),
    ]
    var later = try EDoRAConfig(JSONObject(members))
    #expect(keys(later) == fields)
    // Others that are not at their default say what the adapter is.
    later.lora.targets.excluded = .list(["head"])
    later.unknownKeys = JSONObject([("mine", 1)])
    #expect(keys(later) == (fields + ["exclude_modules", "mine"]).sorted())
    #expect(later.files[0].members["use_dora"] == .bool(method == .edora))
    // A compact adapter is read by this package alone.
    later.isCompact = true
    #expect(later.files[0].members["target_parameters"] != nil)
  }

  /// LoRA's targets, and its refusals, are those of the methods that build upon it.
  @Test(arguments: ["mamba", "falcon_h1", "llama", "bert", "gpt2"])
  func relativesTargetWhatLoRADoes(_ modelType: String) {
    for tuner: any Tuner.Type in [DoRATuner.self, EDoRATuner.self, LoRAXSTuner.self] {
      #expect(
        tuner.defaultTargets(modelType: modelType) == LoRATuner.defaultTargets(modelType: modelType)
      )
      #expect(
        tuner.unreachableModules(modelType: modelType)
          == LoRATuner.unreachableModules(modelType: modelType))
    }
  }

  /// As the repository's code leaves its modules.
  @Test func printsLatentMappings() throws {
    let fixture = Fixture()
    try fixture.peft.add("default", Self.config())
    #expect(
      fixture.peft.printed.text == """
        PeftModel(
          (base_model): LoraModel(
            (model): Toy(
              (layer): lora.Linear(
                (base_layer): Linear(in_features=12, out_features=8, bias=True)
                (lora_dropout): ModuleDict(
                  (default): Identity()
                )
                (lora_A): ModuleDict(
                  (default): Linear(in_features=12, out_features=3, bias=False)
                )
                (lora_B): ModuleDict(
                  (default): Linear(in_features=3, out_features=8, bias=False)
                )
                (lora_embedding_A): ParameterDict()
                (lora_embedding_B): ParameterDict()
                (lora_magnitude_vector): ModuleDict(
                  (default): lora.dora.DoraLinearLayer()
                )
                (default_lora_latent_mapping): Linear(in_features=3, out_features=3, bias=False)
              )
            )
          )
        )
        """)
  }
}
