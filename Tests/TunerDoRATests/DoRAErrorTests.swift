import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerLoRA

@testable import TunerDoRA

/// What DoRA refuses, with the key or the module, and the model as it was.
struct DoRAErrorTests {
  /// A layer, packed attention, and both ends of a language model.
  private final class Model: Module {
    let children: [(name: String, module: any Module)]
    let typeName = "Model"

    init() throws {
      let builder = ModuleBuilder(RandomSource(seed: 7, deviation: 0.5, precision: .float32))
      let table = DenseMatrix(.normal([9, 6], deviation: 1, key: DropoutKey(seed: 1, stream: 1)))
      children = [
        (
          "embed_tokens",
          Embedding(
            HostParameters(weight: .matrix(table), bias: nil), count: 9, width: 6)
        ),
        ("lin", try builder.linear("lin", 6, 6, bias: true)),
        ("mha", try builder.multiheadAttention("mha", 6, heads: 2)),
        (
          "lm_head",
          Linear(
            HostParameters(weight: .matrix(table), bias: nil, isTied: true), inputFeatures: 6,
            outputFeatures: 9)
        ),
      ]
    }
  }

  private let peft: PeftModel

  init() throws {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    peft = PeftModel(
      try Model(), info: BaseModelInfo(modelType: "toy", inputEmbedding: "embed_tokens"),
      registry: registry)
    try peft.add("first", Self.config("lin"))
    try peft.setTrainable(["first"], false)
  }

  /// Where no norm is divided by; a magnitude's own setting is kept.
  @Test func normsOfNoMagnitude() throws {
    let text =
      "'dora_detach_norm' is false, but the adapter has no magnitude, whose norm it is about"
    for members in [[], [("use_dora", false)]] as [[(String, JSONValue)]] {
      let object = JSONObject(
        [("peft_type", "LORA"), ("target_modules", ["lin"]), ("dora_detach_norm", false)] + members)
      expectError(text, .invalidConfiguration) { _ = try peft.registry.config(object) }
    }
    try peft.refuses(text, .invalidConfiguration) {
      try peft.add(
        "second",
        Self.config("lin") {
          $0.usesDoRA = false
          $0.detachesNorm = false
        })
    }
    try peft.add("second", Self.config("lin") { $0.detachesNorm = false })
  }

  private static func config(
    _ targets: String..., change: (inout LoRAConfig) -> Void = { _ in }
  ) -> LoRAConfig {
    var config = LoRAConfig(rank: 2, targets: TargetSelection(.list(targets)))
    config.usesDoRA = true
    change(&config)
    return config
  }

  @Test(arguments: [
    (LoRAConfig.Initialization.pissa, "\"pissa\""),
    (.randomizedPiSSA(iterations: 4), "\"pissa_niter_4\""), (.olora, "\"olora\""),
    (.corda(CorDASettings()), "\"corda\""), (.loraGA(LoRAGASettings()), "\"lora_ga\""),
    (.loftq(LoftQSettings()), "\"loftq\""),
  ])
  func initialisationsThatChangeTheBase(
    _ initialization: LoRAConfig.Initialization, _ name: String
  ) throws {
    try peft.refuses(
      "'init_lora_weights': \(name) is not supported for DoRA, whose norms are those of the untouched "
        + "base weight", .unsupported
    ) { try peft.add("second", Self.config("lin") { $0.initialization = initialization }) }
  }

  @Test func layersAndKeys() throws {
    try peft.refuses(
      "'ensure_weight_tying' is not supported for DoRA on a tied layer", .unsupported,
      at: "lm_head"
    ) {
      try peft.add("second", Self.config("embed_tokens", "lin") { $0.ensuresWeightTying = true })
    }
    // In peft's words (cases 16, 21).
    try peft.refuses(
      "MultiheadAttention does not support DoRA (yet), please set use_dora to False", .unsupported,
      at: "mha", isPefts: true
    ) { try peft.add("second", Self.config("lin", "mha")) }
    try peft.refuses(
      "The argument lora_bias=True is not supported for DoRA, please pass use_dora=False",
      .invalidConfiguration, isPefts: true
    ) {
      try peft.add("second", Self.config("lin") { $0.usesLoRABias = true })
    }
    try peft.refuses(
      "'use_dora' is not supported together with 'enable_lora'", .unsupported
    ) { try peft.add("second", Self.config("lin") { $0.enabledParts = [true, false] }) }
  }
}
