import Models
import PEFTCore
import PEFTSupport
import TestSupport
import Testing
import TunerLoRA

@testable import Training

/// Adapters that begin from the first training batches, in runs.
@Suite(.serialized)
struct InitializationTests {
  static let settings: [(name: String, JSONValue)] = [
    ("eva", ["r": 2, "init_lora_weights": "eva", "eva_config": ["rho": 1.5, "tau": 0.8]]),
    ("corda", ["r": 2, "init_lora_weights": "corda", "corda_config": ["corda_method": "kpm"]]),
    ("lora_ga", ["r": 2, "init_lora_weights": "lora_ga", "lora_alpha": 1]),
    ("pissa", ["r": 2, "init_lora_weights": "pissa", "lora_dropout": 0.2]),
  ]

  /// Trains, resumes to the bit, and the saved adapter computes what the trained one does.
  @Test(arguments: [TinyRun.Kind.classifier, .languageModel], settings.indices)
  func runsBeginFromTheirData(_ kind: TinyRun.Kind, _ index: Int) throws {
    let run = try TinyRun(kind)
    var lora = Self.settings[index].1.object!
    lora["target_modules"] = kind == .classifier ? ["query", "dense"] : ["q_proj", "down_proj"]
    let changes: [String: JSONValue] = [
      "lora": .object(lora), "num_train_epochs": 1, "initialization_batches": 4,
      "per_device_train_batch_size": 8, "learning_rate": 0.001,
    ]
    let file = run.folder("validation.jsonl")
    let summary = try run.train(
      changes.merging(
        ["output_dir": .string(run.folder("whole")), "validation_file": .string(file)]
      ) { $1 })
    try run.train(changes, stopAfter: 2)
    try run.train(changes.merging(["resume_from_checkpoint": true]) { $1 })
    #expect(try run.weights() == run.weights("whole"))
    let adapter = run.folder("whole")
    let config = try LoRAConfig(AdapterFolder(adapter).config)
    let isPlain = ["corda", "lora_ga"].contains(Self.settings[index].name)
    #expect((config.initialization == .standard) == isPlain)
    // The adapter that was saved, put on the untouched model, computes what the trained one did.
    let again = try run.prepare([
      "init_adapter": .string(adapter), "validation_file": .string(file), "lora": .null,
    ])
    let model = again.base.model
    let objective: any Objective =
      (model as? any SequenceClassifier).map { ClassificationObjective($0) }
      ?? LanguageModelObjective(model as! any CausalLanguageModel)
    let result = try Evaluator(objective).evaluate(try #require(again.validation), batchSize: 32) {
      _ in
    }
    let expected = try #require(summary.validation?.loss)
    #expect(abs(result.loss - expected) < 1e-4 * expected)
  }

  @Test func settingsWithoutEffectAreMistakes() throws {
    let run = try TinyRun()
    let text = failure {
      _ = try run.prepare(["lora.eva_config": ["rho": 2], "lora.init_lora_weights": true])
    }
    #expect(text.contains("'lora.eva_config'"))
    let unknown = failure {
      _ = try run.prepare(["lora.eva_config": ["rh": 2], "lora.init_lora_weights": "eva"])
    }
    #expect(unknown.contains("unknown key 'rh'") && unknown.contains("rho"))
    #expect(failure { _ = try run.prepare(["initialization_batches": 0]) }.contains("at least 1"))
  }
}
