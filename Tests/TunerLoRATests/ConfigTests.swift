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
    config.unknownKeys["later"] = ["x": 1]
    #expect(try LoRAConfig(config.object) == config)
    for initialization in [LoRAConfig.Initialization.standard, .gaussian, .random] {
      config.initialization = initialization
      #expect(try LoRAConfig(config.object) == config)
    }
    let keys = Set(LoRAConfig.knownKeys + ["later"])
    #expect(Set(config.object.keys) == keys.subtracting(["enable_lora"]))
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
    (#"{"init_lora_weights": "pissa"}"#, "'init_lora_weights': \"pissa\" is not supported"),
    (#"{"bias": "all"}"#, "'bias': \"all\" is not supported"),
    (#"{"layer_replication": [[0, 2]]}"#, "'layer_replication': [[0, 2]] is not supported"),
    (#"{"eva_config": {"rho": 2}}"#, "'eva_config': {\"rho\": 2} is not supported"),
  ])
  func wrongAndUnsupportedKeysAreNamed(_ text: String, _ message: String) {
    let error = #expect(throws: PEFTError.self) { try config(text) }
    #expect(error?.message == message)
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
    config.rankPattern = SuffixPatterns([.init("q", 0), .init("k", 1.5)])
    for path in ["q", "k"] {
      let error = #expect(throws: PEFTError.self) { try config.rank(path) }
      #expect(error?.message.hasPrefix("`r` should be a positive integer value") == true)
    }
  }
}
