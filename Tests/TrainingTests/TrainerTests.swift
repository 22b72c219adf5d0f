import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

@Suite(.serialized)
struct TrainerTests {
  /// Losses of ten AdamW steps that torch and peft compute from the same adapter on the same
  /// batches (Tests/Goldens, make_goldens.py); the issue asks for 1e-4 relative.
  @Test(arguments: ["bert", "llama", "qwen2"])
  func tenStepsEqualPeft(_ name: String) throws {
    let folder = try TemporaryFolder()
    let batches = try SafetensorsFile(TestData.golden("\(name)/batches.safetensors"))
    var lines = ""
    var batchSize = 0
    for number in 0..<10 {
      func integers(_ key: String) throws -> (shape: [Int], values: [Int32])? {
        try batches["\(number).\(key)"] == nil ? nil : batches.integers("\(number).\(key)")
      }
      let ids = try #require(try integers("input_ids"))
      batchSize = ids.shape[0]
      for row in 0..<ids.shape[0] {
        var object = JSONObject()
        for key in ["input_ids", "attention_mask", "token_type_ids", "labels"] {
          guard let (shape, values) = try integers(key) else { continue }
          if shape.count == 1 {
            object["label"] = .int(Int(values[row]))
          } else {
            let columns = row * shape[1]..<(row + 1) * shape[1]
            object[key] = .array(values[columns].map { .int(Int($0)) })
          }
        }
        lines += JSONValue.object(object).text() + "\n"
      }
    }
    let golden = try FileSystem.readJSON(TestData.golden("\(name)/losses.json"))
    let adapter = try #require(golden["adapter"]?.string)
    // torch's AdamW decays the classifier's bias too.
    let decay: JSONValue = ["pattern": ".", "weight_decay": 0.01]
    let object = JSONObject([
      ("model", .string(TestData.golden("\(name)/model"))),
      ("init_adapter", .string(TestData.golden("\(name)/\(adapter)"))),
      ("train_file", .string(try folder.write("train.jsonl", lines))),
      ("output_dir", .string(folder("out"))), ("max_steps", 10),
      ("per_device_train_batch_size", .int(batchSize)), ("shuffle", false),
      ("learning_rate", 0.01), ("lr_scheduler_type", "constant"), ("weight_decay", 0.01),
      ("max_grad_norm", 0), ("save_strategy", "no"),
      ("parameter_groups", .array([decay])),
    ])
    let run = try PreparedRun(
      RunConfiguration(object, registry: standardRegistry), registry: standardRegistry)
    var reports: [StepReport] = []
    _ = try run.makeTrainer().run { event in
      if case .step(let report) = event { reports.append(report) }
    }
    let losses = golden["losses"]!.array!.map { $0.double! }
    let norms = golden["grad_norms"]!.array!.map { $0.double! }
    #expect(reports.count == 10)
    for (report, (loss, norm)) in zip(reports, zip(losses, norms)) {
      #expect(abs(report.loss - loss) <= 1e-4 * loss, "step \(report.step)")
      #expect(abs(report.gradientNorm - norm) <= 1e-3 * norm, "step \(report.step)")
    }
  }

  @Test func theOutputFolderHoldsWhatItShould() throws {
    let run = try TinyRun()
    let summary = try run.train(["validation_file": .string(run.folder("validation.jsonl"))])
    #expect(summary.steps == 18 && summary.epochs == 3 && !summary.isInterrupted)
    #expect(
      try FileSystem.list(run.folder("out")) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint-12",
        "checkpoint-18", "checkpoint-6", "labels.json", "metrics.jsonl", "trainer_state.json",
        "training_config.json",
      ])
    let steps = try run.metrics().filter { $0["loss"] != nil }
    #expect(steps.map { $0["step"]?.int } == Array(1...18))
    // Warm-up over two steps, then linearly to zero, with the rate before the update.
    let rates = steps.map { $0["learning_rate"]!.double! }
    #expect(rates[0] == 0 && rates[1] == 0.005 && rates[2] == 0.01)
    #expect(steps.allSatisfy { $0["tokens"]!.int! > 0 && $0["tokens_per_second"]!.double! > 0 })
    let evaluations = try run.metrics().filter { $0["eval_loss"] != nil }
    #expect(evaluations.map { $0["step"]?.int } == [6, 12, 18])
    #expect(evaluations.allSatisfy { $0["eval_accuracy"] != nil && $0["eval_perplexity"] == nil })
    let state = try FileSystem.readJSON(run.folder("out/checkpoint-12/trainer_state.json"))
    #expect(state["global_step"] == 12 && state["max_steps"] == 18)
    #expect(state["epoch"]?.double == 2 && state["num_train_epochs"] == 3)
    let best = evaluations[0...1].compactMap { $0["eval_accuracy"]?.double }.max()
    #expect(state["best_metric"]?.double == best)
    #expect(
      try FileSystem.readJSON(run.folder("out/labels.json")) == ["LABEL_0", "LABEL_1", "LABEL_2"])
    // The adapter reads back strictly, and the last checkpoint is the result.
    let last = try FileSystem.read(run.folder("out/checkpoint-18/adapter_model.safetensors"))
    #expect(try run.weights() == last)
  }

  @Test func trainingLowersTheLoss() throws {
    for kind in [TinyRun.Kind.classifier, .languageModel] {
      let run = try TinyRun(kind)
      try run.train(["num_train_epochs": 20, "save_strategy": "no"])
      let losses = try run.losses()
      let mean = { (part: ArraySlice<Double>) in part.reduce(0, +) / Double(part.count) }
      #expect(mean(losses.suffix(12)) < 0.9 * mean(losses.prefix(12)), "\(kind)")
    }
  }

  /// One step over 4·3 examples has the loss and gradient of one batch of 12, dropout apart.
  @Test(arguments: [TinyRun.Kind.classifier, .languageModel])
  func accumulationEqualsALargeBatch(_ kind: TinyRun.Kind) throws {
    let run = try TinyRun(kind)
    var common: [String: JSONValue] = [
      "lora.lora_dropout": 0, "save_strategy": "no", "max_steps": 5, "warmup_steps": 0,
    ]
    if kind == .classifier {
      common["model_config.hidden_dropout_prob"] = 0
      common["model_config.attention_probs_dropout_prob"] = 0
    }
    func reports(_ changes: [String: JSONValue]) throws -> [StepReport] {
      var reports: [StepReport] = []
      try run.train(common.merging(changes) { $1 }) { event in
        if case .step(let report) = event { reports.append(report) }
      }
      return reports
    }
    let large = try reports(["per_device_train_batch_size": 12])
    let small = try reports([
      "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3,
    ])
    #expect(large.count == 5 && small.count == 5)
    for (a, b) in zip(large, small) {
      #expect(a.tokens == b.tokens && a.epoch == b.epoch)
      // Sums in another order, then five steps that amplify the rounding a little.
      #expect(abs(a.loss - b.loss) <= 2e-5 * a.loss, "step \(a.step)")
      #expect(abs(a.gradientNorm - b.gradientNorm) <= 1e-3 * a.gradientNorm, "step \(a.step)")
    }
  }

  @Test func recomputationChangesNothing() throws {
    for kind in [TinyRun.Kind.classifier, .languageModel] {
      let run = try TinyRun(kind)
      try run.train(["save_strategy": "no"])
      try run.train([
        "save_strategy": "no", "gradient_checkpointing": true,
        "output_dir": .string(run.folder("recomputed")),
      ])
      let pairs = zip(try run.losses(), try run.losses("recomputed"))
      for (a, b) in pairs { #expect(abs(a - b) <= 1e-5 * a) }
    }
  }

  @Test(arguments: TinyRun.Method.allCases)
  func theBestCheckpointIsKeptAndLoaded(_ method: TinyRun.Method) throws {
    let run = try TinyRun()
    // A rate that soon spoils what the first epochs have learnt.
    let settings: [String: JSONValue] = [
      "validation_file": .string(run.folder("validation.jsonl")), "num_train_epochs": 8,
      "learning_rate": 0.3, "lr_scheduler_type": "constant_with_warmup",
      "load_best_model_at_end": true,
      "metric_for_best_model": "loss", "save_total_limit": 1,
      "test_file": .string(run.folder("validation.jsonl")),
    ]
    let summary = try run.train(settings.merging(TinyRun.choosing(method)) { $1 })
    let losses = try run.metrics().compactMap { $0["eval_loss"]?.double }
    let best = try #require(summary.best)
    #expect(losses.count == 8 && best.value == losses.min())
    #expect(best.step < 48, "the last epoch was the best: the test shows nothing")
    #expect(summary.loadedBest == run.folder("out/checkpoint-\(best.step)"))
    #expect(summary.test?.loss == best.value)
    let checkpoint = run.folder("out/checkpoint-\(best.step)/adapter_model.safetensors")
    #expect(try run.weights() == FileSystem.read(checkpoint))
    let kept = try FileSystem.list(run.folder("out")).filter { $0.hasPrefix("checkpoint-") }
    #expect(kept == ["checkpoint-\(best.step)", "checkpoint-48"].sorted())
  }

  /// The best evaluation is kept though no checkpoint is due at its step.
  @Test func theBestBetweenTwoCheckpointsIsSaved() throws {
    let run = try TinyRun()
    let summary = try run.train([
      "validation_file": .string(run.folder("validation.jsonl")), "num_train_epochs": 8,
      "learning_rate": 0.3, "lr_scheduler_type": "constant", "load_best_model_at_end": true,
      "metric_for_best_model": "loss", "eval_steps": 3, "save_steps": 48, "save_total_limit": 1,
      "test_file": .string(run.folder("validation.jsonl")),
    ])
    let best = try #require(summary.best)
    #expect(best.step < 48, "the last evaluation was the best: the test shows nothing")
    #expect(summary.loadedBest == run.folder("out/checkpoint-\(best.step)"))
    #expect(summary.test?.loss == best.value)
    let checkpoint = run.folder("out/checkpoint-\(best.step)/adapter_model.safetensors")
    #expect(try run.weights() == FileSystem.read(checkpoint))
    let kept = try FileSystem.list(run.folder("out")).filter { $0.hasPrefix("checkpoint-") }
    #expect(kept == ["checkpoint-48", "checkpoint-\(best.step)"].sorted())
    let state = try FileSystem.readJSON(run.folder("out/trainer_state.json"))
    #expect(state["best_model_checkpoint"] == .string(summary.loadedBest ?? ""))
  }

  @Test func divergenceIsAnErrorThatSaysWhatToDo() throws {
    let run = try TinyRun()
    let text = failure {
      try run.train([
        "learning_rate": 1e30, "max_grad_norm": 0, "lr_scheduler_type": "constant",
        "warmup_steps": 0, "save_strategy": "no",
      ])
    }
    #expect(text.contains("training diverged") && text.contains("Lower 'learning_rate'"))
    #expect(!FileSystem.exists(run.folder("out/adapter_config.json")))
  }

  @Test func aFolderThatCannotBeWrittenIsAnError() throws {
    let run = try TinyRun()
    let file = try run.folder.write("file", "x")
    let text = failure { try run.train(["output_dir": .string("\(file)/out")]) }
    #expect(
      text.contains("\(file)") && text.contains("is a file, a folder was expected"), "\(text)")
  }
}
