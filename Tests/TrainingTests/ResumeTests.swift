import Foundation
import PEFTSupport
import TestSupport
import Testing

@testable import Training

/// A run that is interrupted and resumed must end with the weights of one that was not, to the
/// bit.
@Suite(.serialized)
struct ResumeTests {
  @Test(
    arguments: TinyRun.Method.allCases,
    [(TinyRun.Kind.classifier, 7), (.classifier, 12), (.languageModel, 1)])
  func resumingEqualsAnUninterruptedRun(
    _ method: TinyRun.Method, _ point: (TinyRun.Kind, Int)
  ) throws {
    let (kind, step) = point
    let run = try TinyRun(kind)
    let common: [String: JSONValue] = [
      "validation_file": .string(run.folder("validation.jsonl")),
      "gradient_accumulation_steps": 2, "num_train_epochs": 6,
    ].merging(TinyRun.choosing(method, kind)) { $1 }
    func changes(_ other: [String: JSONValue]) -> [String: JSONValue] {
      common.merging(other) { $1 }
    }
    let whole = try run.train(changes(["output_dir": .string(run.folder("whole"))]))
    #expect(whole.steps == 18)
    let part = try run.train(common, stopAfter: step)
    #expect(part.isInterrupted && part.steps == step)
    #expect(!FileSystem.exists(run.folder("out/adapter_config.json")))
    var resumedAt = 0
    let rest = try run.train(changes(["resume_from_checkpoint": true])) { event in
      if case .started(_, let step) = event { resumedAt = step }
    }
    #expect(resumedAt == step && rest.steps == 18)
    #expect(try run.weights() == run.weights("whole"))
    #expect(try run.losses() == run.losses("whole"))
    #expect(rest.loss == whole.loss)
    #expect(
      try FileSystem.read(run.folder("out/checkpoint-18/optimizer.safetensors"))
        == FileSystem.read(run.folder("whole/checkpoint-18/optimizer.safetensors")))
    let evaluations = { (name: String) in
      try run.metrics(name).compactMap { $0["eval_loss"]?.double }
    }
    #expect(try evaluations("out") == evaluations("whole"))
  }

  /// The moments of every group, and what LoRA-FA freezes, survive too.
  @Test(
    arguments: [
      ["optim": "lorafa", "weight_decay": 0.1], ["loraplus_lr_ratio": 8],
      [
        "parameter_groups": .array([["role": "lora_B", "learning_rate": 0.02, "weight_decay": 0.3]])
      ],
    ] as [[String: JSONValue]])
  func resumingWithOtherOptimizers(_ settings: [String: JSONValue]) throws {
    let run = try TinyRun()
    func changes(_ other: [String: JSONValue]) -> [String: JSONValue] {
      settings.merging(other) { $1 }
    }
    try run.train(changes(["output_dir": .string(run.folder("whole"))]))
    try run.train(changes([:]), stopAfter: 7)
    let text = failure { try run.train(["resume_from_checkpoint": true]) }
    #expect(settings.keys.contains { text.contains("'\($0)' is") }, "\(text)")
    let rest = try run.train(changes(["resume_from_checkpoint": true]))
    #expect(rest.steps == 18)
    #expect(try run.weights() == run.weights("whole"))
    #expect(try run.losses() == run.losses("whole"))
    #expect(
      try FileSystem.read(run.folder("out/checkpoint-18/optimizer.safetensors"))
        == FileSystem.read(run.folder("whole/checkpoint-18/optimizer.safetensors")))
  }

  /// As a kill leaves it: more metrics than the checkpoint, half a line, and half a checkpoint.
  @Test func whatAKillLeavesBehindIsCleanedUp() throws {
    let run = try TinyRun()
    try run.train(["output_dir": .string(run.folder("whole"))])
    try run.train(stopAfter: 6)
    let out = run.folder("out")
    FileSystem.removeTree("\(out)/checkpoint-6.partial-1")
    try FileSystem.createDirectory("\(out)/checkpoint-12.partial-99")
    try FileSystem.write("\(out)/checkpoint-12.partial-99/adapter_config.json", "{")
    var metrics = String(decoding: try FileSystem.read("\(out)/metrics.jsonl"), as: UTF8.self)
    metrics += "{\"step\": 7, \"epoch\": 1.2, \"loss\": 5}\n{\"step\": 8, \"lo"
    try FileSystem.write("\(out)/metrics.jsonl", metrics)
    try run.train(["resume_from_checkpoint": true])
    #expect(try run.weights() == run.weights("whole"))
    #expect(try run.losses() == run.losses("whole"))
    #expect(try FileSystem.list(out).filter { $0.contains("partial") }.isEmpty)
  }

  @Test func withoutACheckpointTheRunBegins() throws {
    let run = try TinyRun()
    var notices: [String] = []
    let summary = try run.train(["resume_from_checkpoint": true]) { event in
      if case .notice(let text) = event { notices.append(text) }
    }
    #expect(summary.steps == 18)
    #expect(notices == ["no checkpoint in \(run.folder("out")): starting from the beginning"])
  }

  @Test func aFinishedRunIsNotTrainedFurther() throws {
    let run = try TinyRun()
    try run.train()
    let before = try run.weights()
    let again = try run.train(["resume_from_checkpoint": true])
    #expect(again.steps == 18 && again.tokens == 0)
    #expect(try run.weights() == before)
    #expect(try run.losses().count == 18)
  }

  /// Checkpoints of an earlier run in the same folder are neither resumed nor removed.
  @Test func anotherRunsCheckpointsAreLeftAlone() throws {
    let run = try TinyRun()
    try run.train(["num_train_epochs": 4])
    try run.train(["save_total_limit": 1], stopAfter: 8)
    var resumedAt = 0
    try run.train(["save_total_limit": 1, "resume_from_checkpoint": true]) { event in
      if case .started(_, let step) = event { resumedAt = step }
    }
    #expect(resumedAt == 8)
    #expect(FileSystem.exists(run.folder("out/checkpoint-24")))
    #expect(!FileSystem.exists(run.folder("out/checkpoint-8")))
  }

  /// Labels, settings and weights that are there belong together at any time.
  @Test func anEarlierResultStaysUntilThereIsANewOne() throws {
    let run = try TinyRun()
    try run.train(["labels": ["a", "b", "c"]])
    let names = [
      "README.md", "adapter_config.json", "adapter_model.safetensors", "labels.json",
      "trainer_state.json", "training_config.json",
    ]
    func content() throws -> [[UInt8]] {
      try names.map { try FileSystem.read(run.folder("out/\($0)")) }
    }
    let before = try content()
    let other: [String: JSONValue] = [
      "labels": ["c", "b", "a"], "model_config.layer_norm_eps": 0.5, "lora.r": 3,
    ]
    try run.train(other, stopAfter: 7)
    #expect(try content() == before)
    try run.train(other.merging(["resume_from_checkpoint": true]) { $1 })
    try run.train(other.merging(["output_dir": .string(run.folder("whole"))]) { $1 })
    #expect(try run.weights() == run.weights("whole"))
    #expect(try FileSystem.readJSON(run.folder("out/labels.json")) == ["c", "b", "a"])
    for name in ["unfinished_run.json", ".result"] {
      #expect(!FileSystem.exists(run.folder("out/\(name)")))
    }
  }

  /// As a kill leaves it that came between two files of the result.
  @Test func aResultThatIsHalfInPlaceIsCompleted() throws {
    let run = try TinyRun()
    try run.train(["save_strategy": "no"])
    let out = run.folder("out")
    let names = try FileSystem.list(out).filter { $0 != "metrics.jsonl" }
    let before = try names.map { try FileSystem.read("\(out)/\($0)") }
    try FileSystem.createDirectory("\(out)/.result")
    for name in names where !["training_config.json", "adapter_model.safetensors"].contains(name) {
      try #require(rename("\(out)/\(name)", "\(out)/.result/\(name)") == 0)
    }
    try FileSystem.write("\(out)/unfinished_run.json", "{}")
    try run.train(["seed": 4, "resume_from_checkpoint": false], stopAfter: 1)
    #expect(try names.map { try FileSystem.read("\(out)/\($0)") } == before)
    #expect(!FileSystem.exists("\(out)/.result"))
  }

  /// What is left of a result that has labels would speak of one that has none.
  @Test func aResultLeavesNothingOfAnEarlierOne() throws {
    let run = try TinyRun()
    try run.train()
    let settings = try TinyRun(.languageModel)
    try settings.train(["output_dir": .string(run.folder("out"))])
    #expect(!FileSystem.exists(run.folder("out/labels.json")))
    #expect(FileSystem.exists(run.folder("out/adapter_config.json")))
  }

  @Test func aLogOfAnotherRunIsNotGoneOnWith() throws {
    let run = try TinyRun()
    let (other, whole): (JSONValue, JSONValue) = (
      .string(run.folder("other")), .string(run.folder("whole"))
    )
    try run.train(["output_dir": whole])
    try run.train(["output_dir": other, "seed": 4])
    try run.train(stopAfter: 6)
    try run.train([
      "output_dir": other, "resume_from_checkpoint": .string(run.folder("out/checkpoint-6")),
    ])
    #expect(try run.losses("other") == run.losses("whole"))
    // Nor is there one to go on with where the checkpoint stands alone.
    try FileSystem.write(run.folder("out/metrics.jsonl"), "")
    try run.train([
      "output_dir": .string(run.folder("alone")),
      "resume_from_checkpoint": .string(run.folder("out/checkpoint-6")),
    ])
    #expect(try run.losses("alone") == run.losses("whole").suffix(12))
  }

  @Test func aModelElsewhereIsNoticed() throws {
    let run = try TinyRun()
    try run.train(stopAfter: 6)
    let model = run.folder("moved")
    try FileSystem.createDirectory(model)
    _ = try run.folder.write(
      "moved/config.json", try FileSystem.read(run.folder("model/config.json")))
    var notices: [String] = []
    try run.train(["resume_from_checkpoint": true, "model": .string(model)]) { event in
      if case .notice(let text) = event { notices.append(text) }
    }
    #expect(notices.count == 1 && notices[0].contains("'model' is another folder"), "\(notices)")
  }

  /// What has just been written stays, whatever later checkpoints the first part has left.
  @Test func theNewestCheckpointIsNotTheLatest() throws {
    let run = try TinyRun()
    try run.train(["save_steps": 6])
    let start: JSONValue = .string(run.folder("out/checkpoint-6"))
    try run.train(
      ["save_steps": 2, "save_total_limit": 1, "resume_from_checkpoint": start], stopAfter: 8)
    #expect(FileSystem.exists(run.folder("out/checkpoint-8")))
    #expect(!FileSystem.exists(run.folder("out/checkpoint-6")))
  }

  /// The best checkpoint of the first part is found from another output folder, and missed where it
  /// is gone.
  @Test func theBestStaysInTheFolderOfTheFirstPart() throws {
    let run = try TinyRun()
    func changes(_ output: String, from checkpoint: String? = nil) -> [String: JSONValue] {
      [
        "validation_file": .string(run.folder("validation.jsonl")), "num_train_epochs": 8,
        "learning_rate": 0.3, "lr_scheduler_type": "constant", "load_best_model_at_end": true,
        "metric_for_best_model": "loss", "eval_steps": 1, "save_steps": 48,
        "output_dir": .string(run.folder(output)),
        "resume_from_checkpoint": checkpoint.map { .string(run.folder($0)) } ?? false,
      ]
    }
    let whole = try run.train(changes("whole"))
    let best = try #require(whole.best)
    try #require(best.step < 40, "the best comes too late: the test shows nothing")
    try run.train(changes("out"), stopAfter: 40)
    let rest = try run.train(changes("other", from: "out/checkpoint-40"))
    #expect(rest.best?.step == best.step)
    #expect(rest.loadedBest == run.folder("out/checkpoint-\(best.step)"))
    #expect(try run.weights("other") == run.weights("whole"))

    FileSystem.removeTree(run.folder("out/checkpoint-\(best.step)"))
    var notices: [String] = []
    let anew = try run.train(changes("anew", from: "out/checkpoint-40")) { event in
      if case .notice(let text) = event { notices.append(text) }
    }
    #expect(
      notices == [
        "the best checkpoint so far, that of step \(best.step), is not in \(run.folder("anew")): "
          + "the search for the best begins anew"
      ])
    let losses = try run.metrics("anew").filter { $0["step"]?.int ?? 0 > 40 }
      .compactMap { $0["eval_loss"]?.double }
    #expect(losses.count == 8 && anew.best?.value == losses.min())
    #expect(try #require(anew.best).step > 40)
  }

  @Test(
    arguments: [
      ("learning_rate", 0.02, "'learning_rate' is 0.02, the checkpoint was made with 0.01"),
      ("seed", 4, "'seed' is 4, the checkpoint was made with 3"),
      ("per_device_train_batch_size", 2, "'per_device_train_batch_size' is 2"),
      ("warmup_steps", 3, "'warmup_steps' is 3, the checkpoint was made with 2"),
      ("num_train_epochs", 4, "'num_train_epochs' makes the run 24 steps long"),
      ("lora.lora_alpha", 3, "the adapter's 'lora_alpha' is 3, the checkpoint was made with 8"),
      ("shuffle", false, "'shuffle' is false"),
      ("model_config.layer_norm_eps", 1e-6, "'model_config' is"),
    ] as [(String, JSONValue, String)])
  func settingsThatChangeTheResultAreRefused(
    _ key: String, _ value: JSONValue, _ expected: String
  ) throws {
    let run = try TinyRun()
    try run.train(stopAfter: 4)
    let text = failure { try run.train(["resume_from_checkpoint": true, key: value]) }
    #expect(text.contains(expected), "\(text)")
    #expect(text.contains("checkpoint-4"))
  }

  /// A key that is in the file only where it is not the default, either way round.
  @Test(arguments: [false, true])
  func keysOfTheCheckpointAloneCount(_ isThere: Bool) throws {
    let run = try TinyRun()
    let without = TinyRun.choosing(.dora)
    var settings = try #require(without["dora"]?.object)
    settings["dora_detach_norm"] = false
    let with = without.merging(["dora": .object(settings)]) { $1 }
    let resuming: [String: JSONValue] = ["resume_from_checkpoint": true]
    try run.train(isThere ? with : without, stopAfter: 4)
    let text = failure {
      try run.train((isThere ? without : with).merging(resuming) { $1 })
    }
    let (now, then) = isThere ? ("null", "false") : ("false", "null")
    #expect(
      text.contains(
        "the adapter's 'dora_detach_norm' is \(now), the checkpoint was made with \(then)"),
      "\(text)")
    #expect(text.contains("checkpoint-4"))
    #expect(try run.train((isThere ? with : without).merging(resuming) { $1 }).steps == 18)
  }

  @Test func otherDataIsRefused() throws {
    let run = try TinyRun()
    try run.train(stopAfter: 4)
    let text = failure {
      try run.train([
        "resume_from_checkpoint": true, "train_file": .string(run.folder("validation.jsonl")),
        "max_steps": 18,
      ])
    }
    #expect(text.contains("'train_file' has 9 examples that are not the 22"), "\(text)")
  }

  @Test func foldersThatAreNoCheckpointsAreRefused() throws {
    let run = try TinyRun()
    let missing = failure { try run.train(["resume_from_checkpoint": .string(run.folder("none"))]) }
    #expect(missing.contains("no such checkpoint folder"))
    let wrong = failure { try run.train(["resume_from_checkpoint": .string(run.folder("model"))]) }
    #expect(wrong.contains("has no training_config.json"))
    try run.train(stopAfter: 4)
    let checkpoint = run.folder("out/checkpoint-4")
    let bytes = try FileSystem.read("\(checkpoint)/optimizer.safetensors")
    _ = try run.folder.write("out/checkpoint-4/optimizer.safetensors", Array(bytes.dropLast(9)))
    let broken = failure { try run.train(["resume_from_checkpoint": .string(checkpoint)]) }
    #expect(broken.contains("optimizer.safetensors"), "\(broken)")
  }
}
