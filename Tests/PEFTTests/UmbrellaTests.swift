import PEFT
import TestSupport
import Testing

/// What one `import PEFT` offers.
struct UmbrellaTests {
  @Test func standardRegistryKnowsTheBundledMethods() throws {
    #expect(TunerRegistry.standard.peftTypes.contains("LORA"))
    let members = JSONObject([("peft_type", "LORA"), ("r", 3)])
    let config = try TunerRegistry.standard.config(members)
    #expect((config as? LoRAConfig)?.rank == 3)
  }

  /// Also keys within a mapping, which are compared with that mapping's.
  @Test(arguments: [
    ("replacement_module_random_int", "Did you mean 'replacement_module_random_init'?"),
    ("r_sqared", "Did you mean 'r_squared'?"),
  ])
  func runSettingsRefuseUnknownKeysOfEDoRAsRecipe(_ key: String, _ remedy: String) throws {
    func run(_ key: String) throws -> RunConfiguration {
      let text = """
        {"model": "m", "output_dir": "o", "method": "edora",
         "edora": {"r": 4, "reconstruct_config": {"half_init_dec": true, "\(key)": true}}}
        """
      let object = try #require(try JSONValue(parsing: text).object)
      return try RunConfiguration(object, registry: .standard)
    }
    let right = try run("r_squared")
    let config = try right.adapterConfig(registry: .standard, task: .causalLM)
    #expect((config as? EDoRAConfig)?.reconstruction.drawsHalfOfB == true)
    let wrong = try run(key)
    let error = #expect(throws: PEFTError.self) {
      _ = try wrong.adapterConfig(registry: .standard, task: .causalLM)
    }
    #expect(error?.message == "unknown key 'edora.reconstruct_config.\(key)'")
    #expect(error?.remedy == remedy)
  }

  @Test func extendingACopyLeavesTheStandardRegistryAlone() {
    var own = TunerRegistry.standard
    own.register(TaskType("RANKING", modelClassName: "RankingModel"))
    #expect(throws: Never.self) { try own.taskType("RANKING") }
    #expect(throws: PEFTError.self) { try TunerRegistry.standard.taskType("RANKING") }
  }

  /// The example of the README, on the tiny BERT of the goldens.
  @Test func readmeExample() throws {
    let loaded = try ModelLoader.load(
      TestData.golden("bert-base/model"), head: .sequenceClassification(labels: 7))
    let peft = PeftModel(loaded)
    try peft.add("intents", LoRAConfig(rank: 2, alpha: 4, taskType: .sequenceClassification))
    // Three layers, query and value, A and B of rank 2 on a width of 32, and the new head.
    let trained = 3 * 2 * 2 * (2 * 32) + 7 * 32 + 7
    #expect(peft.parameterCounts.trainable == trained)
    #expect(peft.trainableParametersReport.hasPrefix("trainable params: 999 || all params: "))
  }
}
