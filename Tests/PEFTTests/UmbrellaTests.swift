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

  @Test func extendingACopyLeavesTheStandardRegistryAlone() {
    var own = TunerRegistry.standard
    own.register(TaskType("RANKING", modelClassName: "RankingModel"))
    #expect(throws: Never.self) { try own.taskType("RANKING") }
    #expect(throws: PEFTError.self) { try TunerRegistry.standard.taskType("RANKING") }
  }

  /// The example of the README, on the tiny BERT of the goldens.
  @Test func readmeExample() throws {
    let loaded = try ModelLoader.load(
      TestData.golden("bert/model"), head: .sequenceClassification(labels: 7))
    let peft = PeftModel(loaded)
    try peft.add("intents", LoRAConfig(rank: 2, alpha: 4, taskType: .sequenceClassification))
    // Three layers, query and value, A and B of rank 2 on a width of 32, and the new head.
    let trained = 3 * 2 * 2 * (2 * 32) + 7 * 32 + 7
    #expect(peft.parameterCounts.trainable == trained)
    #expect(peft.trainableParametersReport.hasPrefix("trainable params: 999 || all params: "))
  }
}
