import PEFT
import TestSupport
import Testing

@testable import PEFTCommand

/// Every task on every architecture that has a head for it, on the goldens' tiny models with random
/// weights: trained, saved with its head, loaded again and evaluated.
@Suite(.serialized)
struct TaskTrainingTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var model: String
    var task: String
    /// The tensors saved in full.
    var head: [String]
    var metrics: [String]

    var testDescription: String { "\(model) \(task)" }
  }

  static let cases: [Case] = ["bert", "llama", "qwen2"].flatMap { model in
    // Llama and Qwen2 call the classifier of sequences, and that of tokens, score.
    let classifier =
      model == "bert" ? ["classifier.bias", "classifier.weight"] : ["score.bias", "score.weight"]
    var cases = [
      Case(
        model: model, task: "SEQ_CLS", head: model == "bert" ? classifier : ["score.weight"],
        metrics: ["accuracy"]),
      Case(model: model, task: "TOKEN_CLS", head: classifier, metrics: ["accuracy"]),
      Case(
        model: model, task: "QUESTION_ANS", head: ["qa_outputs.bias", "qa_outputs.weight"],
        metrics: ["exact_match", "f1"]),
    ]
    if model != "bert" {
      cases.append(
        Case(model: model, task: "CAUSAL_LM", head: [], metrics: ["accuracy", "perplexity"]))
    }
    return cases
  }

  /// Ids, and a label that follows from them.
  private func record(_ task: String, _ row: Int) -> JSONValue {
    let ids = (0..<8).map { 5 + (row * 13 + $0 * 7) % 30 }
    var members: [(String, JSONValue)] = [("input_ids", .array(ids.map { .int($0) }))]
    switch task {
    case "SEQ_CLS": members.append(("label", .int(row % 3)))
    case "TOKEN_CLS": members.append(("labels", .array(ids.map { .int($0 % 4) })))
    case "QUESTION_ANS":
      members += [("start_positions", .int(row % 4)), ("end_positions", .int(row % 4 + 2))]
    default: break
    }
    return .object(JSONObject(members))
  }

  private func settings(_ task: String, _ model: String, _ folder: TemporaryFolder) throws
    -> [String]
  {
    let data = folder.file("data.jsonl")
    try FileSystem.write(data, (0..<8).map { record(task, $0).text() + "\n" }.joined())
    return [
      "model=\(golden("\(model)/model"))", "task_type=\(task)", "train_file=\(data)",
      "output_dir=\(folder.file("out"))", "max_steps=40", "per_device_train_batch_size=8",
      "learning_rate=5e-3", "lr_scheduler_type=constant", "save_strategy=no", "eval_strategy=no",
      "lora.r=4", "lora.lora_alpha=8", "lora.target_modules=all-linear",
    ].flatMap { ["--set", $0] }
  }

  @Test(arguments: cases)
  func trainsSavesAndEvaluates(_ item: Case) throws {
    let folder = try TemporaryFolder()
    let output = folder.file("out")
    try Tool.succeed(
      ["train", "--quiet"] + settings(item.task, item.model, folder))
    let text = String(
      decoding: try FileSystem.read(folder.file("out/metrics.jsonl")), as: UTF8.self)
    let losses = try text.split(separator: "\n").compactMap {
      try JSONValue(parsing: String($0))["loss"]?.double
    }
    #expect(losses.count == 40)
    #expect(losses[39] < 0.8 * losses[0], "\(losses[0]), \(losses[39])")

    let adapter = try AdapterFolder(output)
    #expect(adapter.config["task_type"] == .string(item.task))
    let prefix = "base_model.model."
    let head = adapter.tensors.names.filter { !$0.contains("lora_") }
    #expect(head.sorted() == item.head.map { prefix + $0 })

    let result = try JSONValue(
      parsing: try Tool.succeed([
        "eval", "--json", "--model", golden("\(item.model)/model"), "--adapter", output, "--data",
        folder.file("data.jsonl"),
      ]).output)
    // The last step's loss is the one before its update.
    #expect(try #require(result["eval_loss"]?.double) < 0.9 * losses[0])
    for name in item.metrics { #expect(result["eval_\(name)"]?.double != nil, "\(name)") }
  }

  @Test func tasksThatCannotBeTrainedSayWhy() throws {
    let folder = try TemporaryFolder()
    func message(_ task: String, _ model: String) throws -> String {
      try Tool.run(["train", "--quiet"] + settings(task, model, folder)).errors
    }
    for model in ["bert", "llama"] {
      #expect(
        try message("SEQ_2_SEQ_LM", model)
          .contains("no SEQ_2_SEQ_LM head: that takes an encoder-decoder, such as T5"))
    }
    #expect(try message("FEATURE_EXTRACTION", "bert").contains("FEATURE_EXTRACTION has no loss"))
    #expect(!FileSystem.exists(folder.file("out")))
  }
}
