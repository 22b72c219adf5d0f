import PEFTCore
import PEFTSupport
import Testing

@testable import TunerLoRA

/// `LoraConfig` in files: peft's keys and defaults.
struct ConfigTests {
  private func config(_ text: String) throws -> LoRAConfig {
    try LoRAConfig(try #require(try JSONValue(parsing: text).object))
  }

  @Test func defaultsArePefts() throws {
    #expect(try config(#"{"peft_type": "LORA"}"#) == LoRAConfig())
    let config = LoRAConfig()
    #expect(config.rank == 8 && config.alpha == 8 && config.dropout == 0)
    #expect(!config.usesRSLoRA && config.initialization == .standard)
  }

  @Test func whatIsWrittenReadsBack() throws {
    var config = LoRAConfig(
      rank: 3, alpha: 6.5, dropout: 0.25,
      targets: TargetSelection(
        .list(["q", "v"]), excluding: .regex(".*0.*"), layers: [1], layersPattern: ["h"]),
      taskType: .causalLM, rankPattern: SuffixPatterns([.init("q", 5)]),
      alphaPattern: SuffixPatterns([.init("v", 1.5)]), usesRSLoRA: true, modulesToSave: ["lm_head"],
      initialization: .gaussian)
    config.baseModel = "base"
    config.targetParameters = []
    config.bias = .adaptedOnly
    config.usesLoRABias = false
    config.trainableTokens = .modules([.init("embed", [3, 1]), .init("head", [2])])
    config.layerReplication = [0..<2, 1..<3]
    config.ensuresWeightTying = true
    config.isInference = true
    config.fanInFanOut = true
    config.unknownKeys["later"] = ["x": 1]
    #expect(try LoRAConfig(config.object) == config)
    var eva = EVASettings()
    eva.whitens = true
    for initialization in [
      LoRAConfig.Initialization.standard, .random, .orthogonal, .pissa,
      .randomizedPiSSA(iterations: 4), .olora, .loftq(LoftQSettings(bits: 8, iterations: 3)),
      .eva(eva), .corda(CorDASettings(method: .knowledgePreserved)),
      .loraGA(LoRAGASettings(direction: .random, scale: .unit, stableGamma: 2.5)), .gaussian,
    ] {
      config.initialization = initialization
      #expect(try LoRAConfig(config.object) == config)
    }
    // Two keys that peft does not have are written only where they say something.
    let keys = Set(LoRAConfig.knownKeys + ["later"]).subtracting([
      "enable_lora", "dora_detach_norm",
    ])
    #expect(Set(config.object.keys) == keys)
    #expect(config.object["r"] == .int(3) && config.object["rank_pattern"]?.text() == #"{"q":5}"#)
  }

  @Test(arguments: [
    (#"{"r": 0}"#, "`r` should be a positive integer value but the value passed is 0"),
    (#"{"r": -4}"#, "`r` should be a positive integer value but the value passed is -4"),
    (#"{"r": 2.5}"#, "'r' is a number (2.5), an integer was expected"),
    (#"{"r": "8"}"#, "'r' is a string (\"8\"), an integer was expected"),
    (#"{"lora_dropout": 1}"#, "'lora_dropout' is 1.0, a number from 0 to below 1 was expected"),
    (#"{"lora_dropout": -0.1}"#, "'lora_dropout' is -0.1, a number from 0 to below 1 was expected"),
    (#"{"lora_dropout": NaN}"#, "'lora_dropout' is nan, a number from 0 to below 1 was expected"),
    (#"{"lora_alpha": Infinity}"#, "'lora_alpha' is inf, a finite number was expected"),
    (#"{"lora_alpha": true}"#, "'lora_alpha' is a Boolean (true), a number was expected"),
    (
      #"{"rank_pattern": {"q": "x"}}"#,
      "'rank_pattern.q' is a string (\"x\"), a number was expected"
    ),
    (
      #"{"init_lora_weights": "pisa"}"#, "Unknown initialization init_lora_weights='pisa'"
    ),
    (
      #"{"init_lora_weights": "pissa_niter_x"}"#,
      "init_lora_weights should be 'pissa' or 'pissa_niter_[number of iters]', got pissa_niter_x "
        + "instead."
    ),
    (
      #"{"init_lora_weights": 1}"#,
      "'init_lora_weights' is an integer (1), true, false or a name was expected"
    ),
    (
      #"{"init_lora_weights": "loftq"}"#,
      "`loftq_config` must be specified when `init_lora_weights` is 'loftq'."
    ),
    (
      #"{"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 3}}"#,
      "'loftq_bits' is 3; only nf2, nf4 and int8 quantization is supported"
    ),
    (
      #"{"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 0}}"#,
      "Number of iterations must be greater than 0"
    ),
    (#"{"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}"#, "`rho` must be >= 1.0"),
    (
      #"{"init_lora_weights": "eva", "eva_config": {"tau": 1.5}}"#,
      "`tau` must be between 0.0 and 1.0."
    ),
    (#"{"init_lora_weights": "eva", "eva_config": {"roh": 2}}"#, "unknown key 'roh'"),
    (
      #"{"init_lora_weights": "eva", "eva_config": {"rho": "2"}}"#,
      "'rho' is a string (\"2\"), a number was expected"
    ),
    (
      #"{"init_lora_weights": "eva", "eva_config": 2}"#,
      "'eva_config' is an integer (2), a mapping of settings was expected"
    ),
    (
      #"{"init_lora_weights": "corda", "corda_config": {"corda_method": "spm"}}"#,
      "'corda_method' is 'spm'; it must be one of 'ipm', 'kpm'"
    ),
    (
      #"{"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "gd"}}"#,
      "'scale' is 'gd'; it must be one of 'stable', 'weight_svd', 'gd_scale', 'unit'"
    ),
    (
      #"{"init_lora_weights": "lora_ga", "lora_ga_config": {"stable_gamma": 0}}"#,
      "'stable_gamma' is 0.0, a positive number was expected"
    ),
    (#"{"bias": "some"}"#, "Requested bias: some, is not implemented."),
    (#"{"use_qalora": true}"#, "'use_qalora': true is not supported"),
    (#"{"velora_config": {"rank": 1}}"#, "'velora_config': {\"rank\": 1} is not supported"),
    (#"{"kasa_config": {"beta": 1}}"#, "'kasa_config': {\"beta\": 1} is not supported"),
    (#"{"megatron_config": {"a": 1}}"#, "'megatron_config': {\"a\": 1} is not supported"),
    (
      #"{"alora_invocation_tokens": [1]}"#,
      "'alora_invocation_tokens': [1] is not supported"
    ),
    (
      #"{"lora_bias": true, "init_lora_weights": "gaussian"}"#,
      "The argument lora_bias=True is only supported with init_lora_weights=True or False, got "
        + "init_lora_weights=gaussian instead."
    ),
    (
      #"{"target_parameters": "experts.down"}"#,
      "`target_parameters` must be a list of strings or None."
    ),
    (
      #"{"layer_replication": [[0, 2], [1]]}"#,
      "'layer_replication' is a list ([[0, 2], [1]]), a list of [start, end] was expected"
    ),
    (
      #"{"layer_replication": [[2, 0]]}"#,
      "'layer_replication' is a list ([[2, 0]]), a list of [start, end] was expected"
    ),
    (
      #"{"trainable_token_indices": {"e": [1, "x"]}}"#,
      #"'trainable_token_indices.e' is a list ([1, "x"]), a list of integers was expected"#
    ),
  ])
  func wrongAndUnsupportedKeysAreNamed(_ text: String, _ message: String) {
    let error = #expect(throws: PEFTError.self) { try config(text) }
    #expect(error?.message == message)
  }

  /// peft accepts the settings of another initialisation with a warning and writes them back, as it
  /// does with a converted adapter's.
  @Test func settingsOfOtherInitialisationsAreKept() throws {
    let config = try config(
      #"{"init_lora_weights": true, "corda_config": {"corda_method": "kpm"}, "loftq_config": {}}"#)
    #expect(config.initialization == .standard)
    #expect(config.unknownKeys.keys == ["corda_config"])
    #expect(config.object["corda_config"]?.text() == #"{"corda_method":"kpm"}"#)
    #expect(config.object.keys.count { $0 == "corda_config" } == 1)
    #expect(try self.config(#"{"init_lora_weights": "OLoRA"}"#).initialization == .olora)
    #expect(try self.config(#"{"init_lora_weights": ""}"#).initialization == .random)
  }

  /// Neutral values that peft always writes are accepted.
  @Test func neutralValuesPass() throws {
    _ = try config(
      #"{"use_dora": false, "bias": "none", "loftq_config": {}, "layer_replication": null, "megatron_core": "megatron.core", "peft_version": "0.21.2", "use_qalora": null, "qalora_group_size": 16}"#
    )
  }

  /// alpha/r, or alpha/√r with rank-stabilised scaling (Kalajdzievski, arXiv 2312.03732).
  @Test func scalingFollowsPatterns() throws {
    var config = LoRAConfig(
      rank: 4, alpha: 6, rankPattern: SuffixPatterns([.init("layers.1.q", 9), .init("q", 2)]),
      alphaPattern: SuffixPatterns([.init("v", 3)]))
    #expect(try config.rank("m.layers.1.q") == 9 && config.rank("m.layers.2.q") == 2)
    #expect(try config.rank("m.layers.2.k") == 4)
    #expect(try config.scaling("m.k", rank: 4) == 1.5)
    #expect(try config.scaling("m.v", rank: 4) == 0.75)
    config.usesRSLoRA = true
    #expect(try config.scaling("m.k", rank: 4) == 3 && config.scaling("m.v", rank: 9) == 1)
    for rank in [1 << 40, 1 << 21] {
      let error = #expect(throws: PEFTError.self) { try LoRAConfig(rank: rank).validate() }
      #expect(
        error?.message == "`r` is \(rank), which is more than 1048576 and than any weight has")
    }
    config.rankPattern = SuffixPatterns([.init("q", 1e30)])
    #expect(throws: PEFTError.self) { try config.rank("m.q") }
    config.rankPattern = SuffixPatterns([.init("q", 0), .init("k", 1.5)])
    for path in ["q", "k"] {
      let error = #expect(throws: PEFTError.self) { try config.rank(path) }
      #expect(error?.message.hasPrefix("`r` should be a positive integer value") == true)
    }
  }
}
