import PEFT
import TestSupport
import Testing

@testable import PEFTCommand

/// `peft train`, `peft eval` and `peft predict` as processes, on the tiny golden models.
@Suite(.serialized)
struct TrainCommandTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    var lines = ""
    for number in 0..<12 {
      lines += "{\"input_ids\": [\(number), 5, \(number + 20)], \"label\": \(number % 2)}\n"
    }
    try FileSystem.write(folder.file("train.jsonl"), lines)
    try FileSystem.write(
      folder.file("run.yaml"),
      """
      model: \(golden("bert/model"))
      task_type: SEQ_CLS
      labels: [even, odd, c, d, e]
      train_file: \(folder.file("train.jsonl"))
      validation_file: \(folder.file("train.jsonl"))
      output_dir: \(folder.file("out"))
      num_train_epochs: 2
      per_device_train_batch_size: 4
      learning_rate: 1e-3
      lora: {r: 2, target_modules: [query]}
      logging_steps: 2
      """)
  }

  private func train(_ settings: String...) -> [String] {
    ["train", "--config", folder.file("run.yaml")] + settings.flatMap { ["--set", $0] }
  }

  @Test func trainingReportsAndSaves() throws {
    let outcome = try Tool.succeed(train())
    for part in [
      "BertForSequenceClassification", "SEQ_CLS, 5 labels", "12 training, 12 validation examples",
      "lora on 3 modules", "bert.encoder.layer.*.attention.self.query  (3)",
      "trained in full: classifier", "trainable params: ", "6 steps (3 an epoch)",
      "step 2/6  epoch 0.67  loss ", "eval at epoch 1.00: loss ",
      "saved \(folder.file("out/checkpoint-6"))",
    ] {
      #expect(outcome.errors.contains(part), "\(part): \(outcome.errors)")
    }
    #expect(!outcome.errors.contains("\r"))
    #expect(outcome.output.contains("adapter saved in \(folder.file("out"))"))
    let metrics = String(
      decoding: try FileSystem.read(folder.file("out/metrics.jsonl")), as: UTF8.self)
    #expect(metrics.split(separator: "\n").count == 8)

    let evaluation = try Tool.succeed([
      "eval", "--model", golden("bert/model"), "--adapter", folder.file("out"), "--data",
      folder.file("train.jsonl"), "--json",
    ])
    let result = try JSONValue(parsing: evaluation.output)
    #expect(result["examples"] == 12 && result["eval_loss"]?.double != nil)
    #expect(metrics.contains("\"eval_loss\": \(result["eval_loss"]!.text())"))
  }

  @Test func theMethodIsThatOfTheInitialAdapter() throws {
    try Tool.succeed(train("lora=null", "dora.r=2", "dora.target_modules=[query]"))
    let start = "init_adapter=\(folder.file("out"))"
    let again = try Tool.succeed(train("lora=null", start, "output_dir=\(folder.file("again"))"))
    #expect(again.errors.contains("dora from \(folder.file("out")) on 3 modules"))
    let record = try FileSystem.readJSON(folder.file("again/training_config.json"))
    #expect(record["settings"]?["method"] == "dora")
    // Another name of the same.
    try Tool.succeed(train("lora.use_dora=true", start, "output_dir=\(folder.file("third"))"))
    for settings in [["lora=null", "method=edora"], ["lora.r=2"]] {
      let outcome = try Tool.run(
        ["train", "--config", folder.file("run.yaml"), "--set", start]
          + settings.flatMap { ["--set", $0] })
      #expect(
        outcome.status == 1
          && outcome.errors.contains("the adapter in 'init_adapter' is of the method dora"),
        "\(outcome.errors)")
    }
  }

  @Test func quietRunsPrintNothing() throws {
    let outcome = try Tool.succeed(train("save_strategy=no") + ["--quiet"])
    #expect(outcome.output.isEmpty && outcome.errors.isEmpty)
    #expect(FileSystem.exists(folder.file("out/adapter_model.safetensors")))
    #expect(!FileSystem.exists(folder.file("out/checkpoint-6")))
  }

  @Test(
    arguments: [
      ("learning_rte=1", ["--set: unknown key 'learning_rte'. Did you mean 'learning_rate'?"]),
      ("lora.r=0", ["`r` should be a positive integer"]),
      ("lora.target_modules=[nothing]", ["{'nothing'}"]),
      ("model=/nowhere", ["/nowhere: no such model folder"]),
      ("train_file=/nowhere.csv", ["/nowhere.csv: cannot open"]),
      ("output_dir=/proc/nowhere", ["/proc/nowhere: cannot create the folder"]),
      ("labels=[a]", ["there is only one label"]),
      ("task_type=CAUSAL_LM", ["no CAUSAL_LM head"]),
      ("seed", ["--set: 'seed' is not of the form key=value"]),
      ("train_file=null", ["run.yaml: the key 'train_file' is missing"]),
    ] as [(String, [String])])
  func badSettingsAreErrors(_ setting: String, _ parts: [String]) throws {
    let outcome = try Tool.run(train(setting))
    #expect(outcome.status == 1)
    #expect(outcome.errors.contains("error: "))
    for part in parts { #expect(outcome.errors.contains(part), "\(outcome.errors)") }
    #expect(!FileSystem.exists(folder.file("out")))
  }

  /// What is wrong in the file is not blamed on --set.
  @Test func badSettingsInTheFileNameIt() throws {
    let file = folder.file("run.yaml")
    let text = String(decoding: try FileSystem.read(file), as: UTF8.self)
    try FileSystem.write(file, text + "\nlearning_rte: 1\n")
    let outcome = try Tool.run(train("seed=3"))
    #expect(outcome.errors.hasPrefix("error: \(file): unknown key 'learning_rte'"))
    let alone = try Tool.run(["train", "--set", "learning_rte=1"])
    #expect(alone.errors.hasPrefix("error: --set: unknown key 'learning_rte'"))
  }

  @Test func commandLinesWithoutSettingsAreExplained() throws {
    let outcome = try Tool.run(["train"])
    #expect(outcome.status == 64)
    #expect(outcome.errors.contains("--config FILE or --set key=value"))
    let other = try Tool.run(["predict", "--model", "m", "--input", "f", "text"])
    #expect(other.status == 64 && other.errors.contains("either --input or texts"))
  }

  /// MiniLM on the bundled messages: texts in, labels out.
  @Test func predictionsOfARealModel() throws {
    guard let model = TestData.path("minilm-l6-v2") else { return }
    let examples = TestData.package + "/Examples/support-intents"
    try Tool.succeed([
      "train", "--quiet", "--set", "model=\(model)", "--set", "train_file=\(examples)/train.jsonl",
      "--set", "output_dir=\(folder.file("intents"))", "--set", "max_steps=40", "--set",
      "learning_rate=2e-3", "--set", "save_strategy=no", "--set", "lora.r=8", "--set",
      "lora.target_modules=[query, value]", "--set", "per_device_train_batch_size=16",
    ])
    let run = ["predict", "--model", model, "--adapter", folder.file("intents")]
    let plain = try Tool.succeed(run + ["please cancel my order", "a\ttab"])
    let lines = plain.output.split(separator: "\n").map { $0.split(separator: "\t") }
    #expect(lines.count == 2 && lines.allSatisfy { $0.count == 3 })
    #expect(lines[0][0] == "please cancel my order" && lines[0][1] == "cancel_order")
    #expect(lines[1][0] == "a tab")
    try FileSystem.write(folder.file("texts.txt"), "please cancel my order\n\nwhere is it\n")
    let json = try Tool.succeed(run + ["--json", "--input", folder.file("texts.txt")])
    let objects = try json.output.split(separator: "\n").map { try JSONValue(parsing: String($0)) }
    #expect(objects.map { $0["text"]?.string } == ["please cancel my order", "where is it"])
    #expect(objects[0]["label"] == "cancel_order")
    let probability = try #require(objects[0]["probability"]?.double)
    #expect(lines[0][2] == fixed(probability, 4))
  }
}
