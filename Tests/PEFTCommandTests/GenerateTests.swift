import PEFT
import TestSupport
import Testing

@testable import PEFTCommand

struct GenerateTests {
  /// `reference.json` holds the text that transformers generates greedily.
  @Test func storiesEqualTransformers() throws {
    guard let model = TestData.path("stories260k") else { return }
    let reference = try FileSystem.readJSON("\(model)/reference.json")
    let text = try #require(reference["greedy"]?["text"]?.string)
    let count = try #require(reference["greedy"]?["ids"]?.array?.count)
    let prompt = "Once upon a time"
    // The prompt has five tokens (reference.json, "encode").
    let arguments = [
      "generate", "--model", model, "--prompt", prompt, "--max-new-tokens", "\(count - 5)",
    ]
    let outcome = try Tool.succeed(arguments)
    #expect(outcome.output == text + "\n")
    #expect(outcome.errors.contains("tokens/s"))
    let silent = try Tool.succeed(arguments + ["--no-echo", "--temperature", "0"])
    #expect(silent.output == text.dropFirst(prompt.count) + "\n")
  }

  @Test func seedsRepeatATextAndAdaptersChangeIt() throws {
    guard let model = TestData.path("stories260k") else { return }
    let folder = try TemporaryFolder()
    let peft = PeftModel(try ModelLoader.load(model))
    try peft.add("default", LoRAConfig(taskType: .causalLM, initialization: .random))
    try peft.save(folder.file("adapter"))
    func text(_ arguments: String...) throws -> String {
      try Tool.succeed(
        ["generate", "--model", model, "--prompt", "Lily", "--max-new-tokens", "24"] + arguments
      ).output
    }
    let sampled = try text(
      "--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--seed", "4")
    #expect(
      sampled
        == (try text("--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--seed", "4")))
    let greedy = try text("--greedy")
    #expect(sampled != greedy)
    let adapter = folder.file("adapter")
    #expect(try text("--adapter", adapter) != greedy)
    #expect(try text("--adapter", adapter, "--active", "") == greedy)
  }

  @Test func decidesBetweenGreedyAndSampling() throws {
    func sampling(_ arguments: String...) throws -> Sampling? {
      try SamplingOptions.parse(arguments).sampling()
    }
    #expect(try sampling() == nil)
    #expect(try sampling("--greedy") == nil)
    #expect(try sampling("--temperature", "0") == nil)
    #expect(try sampling("--seed", "3") == Sampling(seed: 3))
    #expect(
      try sampling("--temperature", "0.5", "--top-k", "3", "--top-p", "0.2", "--seed", "1")
        == Sampling(temperature: 0.5, topK: 3, topP: 0.2, seed: 1))
    #expect(throws: (any Error).self) { try sampling("--greedy", "--top-k", "3") }
    #expect(throws: (any Error).self) { try sampling("--temperature", "0", "--top-p", "0.3") }
  }
}
