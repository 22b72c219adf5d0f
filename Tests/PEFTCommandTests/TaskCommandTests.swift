import PEFT
import TestSupport
import Testing

@testable import PEFTCommand

/// `peft forward`, `train`, `eval` and `predict` for every task, as processes.
@Suite(.serialized)
struct TaskCommandTests {
  private static let cases = [
    "bert-multi", "bert-regression", "bert-regression-3", "bert-token", "bert-question",
    "llama-sequence", "llama-sequence-left", "llama-multi", "llama-token", "llama-question",
    "qwen2-sequence", "qwen2-token", "qwen2-question",
  ]

  /// Outputs, losses and gradients against transformers with peft (Tests/Goldens/tasks).
  @Test(arguments: cases, [false, true])
  func forwardEqualsPeft(_ name: String, isMerged: Bool) throws {
    let folder = try TemporaryFolder()
    let record = try FileSystem.readJSON(golden("tasks/\(name)/case.json"))
    let source = try #require(record["model"]?.string)
    let model = try folder.copy(golden("\(source)/model"), as: "model")
    // What the golden's model was built with besides its folder.
    let path = FileSystem.join(model, "config.json")
    var config = try #require(try FileSystem.readJSON(path).object)
    for (key, value) in record["config"]?.object?.members ?? [] { config[key] = value }
    config["id2label"] = .null
    try FileSystem.write(path, JSONValue.object(config).text())
    let (output, slopes) = (folder.file("out.safetensors"), folder.file("grad.safetensors"))
    var arguments = [
      "forward", "--model", model, "--adapter", golden("tasks/\(name)/adapter"), "--input",
      golden("tasks/\(name)/input.safetensors"), "--output", output,
    ]
    arguments += isMerged ? ["--merge"] : ["--gradients", slopes]
    try Tool.succeed(arguments)

    let expected = try SafetensorsFile(golden("tasks/\(name)/expected.safetensors"))
    let input = try SafetensorsFile(golden("tasks/\(name)/input.safetensors"))
    let (_, mask) = try input.integers("attention_mask")
    let visible = mask.indices.filter { mask[$0] == 1 }.map { Int32($0) }
    let found = try SafetensorsFile(output)
    let suffix = isMerged ? "merged" : "active"
    let names = expected.names.filter { $0.hasSuffix(".\(suffix)") && !$0.hasPrefix("loss") }
    #expect(Set(found.names) == Set(names.map { $0.replacing(".\(suffix)", with: "") } + ["loss"]))
    for name in names {
      var actual = try found.tensor(name.replacing(".\(suffix)", with: ""))
      var wanted = try expected.tensor(name)
      #expect(actual.shape == wanted.shape)
      if wanted.count % mask.count == 0 {
        let rows = [mask.count, wanted.count / mask.count]
        actual = actual.reshaped(rows).selectRows(visible)
        wanted = wanted.reshaped(rows).selectRows(visible)
      }
      #expect(relativeError(actual, wanted) < 1e-5, "\(name)")
    }
    let loss = try expected.tensor("loss.active")
    #expect(relativeError(try found.tensor("loss"), loss) < 1e-5)
    if isMerged { return }
    let gradients = try SafetensorsFile(slopes)
    let keys = expected.names.filter { $0.hasPrefix("grad.") }.map { String($0.dropFirst(5)) }
    #expect(Set(gradients.names) == Set(keys))
    for key in keys where key != "base_model.model.qa_outputs.bias" {
      let error = relativeError(
        try gradients.tensor(key), try expected.tensor("grad.\(key)"))
      #expect(error < 1e-4, "\(key): \(error)")
    }
  }

  /// As peft's model does, such an adapter on a classifier gives the classifier's logits unless
  /// hidden states are asked for (ForwardTests has the logits).
  @Test func hiddenStatesOfAModelWithAHead() throws {
    let folder = try TemporaryFolder()
    let output = folder.file("out.safetensors")
    try Tool.succeed([
      "forward", "--model", golden("bert/model"), "--adapter", golden("bert/adapter_c"), "--input",
      golden("bert/input.safetensors"), "--output", output, "--task", "FEATURE_EXTRACTION",
    ])
    let found = try SafetensorsFile(output)
    #expect(found.names == ["last_hidden_state"])
    let expected = try SafetensorsFile(golden("tasks/bert-features/expected.safetensors"))
    let (_, mask) = try SafetensorsFile(golden("bert/input.safetensors")).integers("attention_mask")
    let visible = mask.indices.filter { mask[$0] == 1 }.map { Int32($0) }
    func rows(_ tensor: Tensor) -> Tensor {
      tensor.reshaped([tensor.rows, tensor.columns]).selectRows(visible)
    }
    #expect(
      relativeError(
        rows(try found.tensor("last_hidden_state")),
        rows(try expected.tensor("last_hidden_state.active"))) < 1e-5)
  }

  @Test func answersNeedBothEnds() throws {
    let folder = try TemporaryFolder()
    func message(_ items: [SafetensorsItem]) throws -> String {
      let ids = SafetensorsItem("input_ids", shape: [2, 3], integers: [1, 2, 3, 4, 5, 6])
      try SafetensorsWriter.write([ids] + items, to: folder.file("in.safetensors"))
      let outcome = try Tool.run([
        "forward", "--model", golden("bert/model"), "--task", "QUESTION_ANS", "--input",
        folder.file("in.safetensors"), "--output", folder.file("out.safetensors"),
      ])
      return outcome.errors
    }
    let start = SafetensorsItem("start_positions", shape: [2], integers: [0, 1])
    #expect(try message([start]).contains("'start_positions' needs the other end"))
    let negative = SafetensorsItem("end_positions", shape: [2], integers: [-1, 1])
    #expect(try message([start, negative]).contains("'end_positions' holds -1"))
    let wide = SafetensorsItem("end_positions", shape: [2, 1], integers: [1, 1])
    #expect(try message([start, wide]).contains("'end_positions' has shape [2, 1]"))
  }

  // MARK: Training

  /// The golden BERT with a tokenizer of a few words.
  private func model(_ folder: TemporaryFolder) throws -> String {
    let model = try folder.copy(golden("bert/model"), as: "model")
    let words = [
      "anna", "bert", "lives", "works", "in", "new", "york", "paris", "rome", "who", "where", "?",
      ".",
    ]
    try FileSystem.write(FileSystem.join(model, "tokenizer.json"), WordTokenizer.json(words))
    return model
  }

  private func train(_ folder: TemporaryFolder, _ settings: [String]) throws {
    let common = [
      "output_dir=\(folder.file("out"))", "num_train_epochs=40", "learning_rate=5e-3",
      "per_device_train_batch_size=4", "save_strategy=no", "eval_strategy=no", "lora.r=4",
      "lora.target_modules=all-linear", "lora.lora_alpha=8",
    ]
    try Tool.succeed(["train", "--quiet"] + (common + settings).flatMap { ["--set", $0] })
  }

  @Test func wordsAreLabelled() throws {
    let folder = try TemporaryFolder()
    let model = try model(folder)
    var lines = ""
    for name in ["Anna", "Bert"] {
      for verb in ["lives", "works"] {
        for (place, tags) in [(["New", "York"], ["B-LOC", "I-LOC"]), (["Paris"], ["B-LOC"])] {
          let record: JSONValue = [
            "words": .array(([name, verb, "in"] + place + ["."]).map { .string($0) }),
            "tags": .array((["B-PER", "O", "O"] + tags + ["O"]).map { .string($0) }),
          ]
          lines += record.text() + "\n"
        }
      }
    }
    let data = folder.file("words.jsonl")
    try FileSystem.write(data, lines)
    try train(folder, ["model=\(model)", "task_type=TOKEN_CLS", "train_file=\(data)"])
    let run = ["--model", model, "--adapter", folder.file("out")]
    let result = try JSONValue(
      parsing: try Tool.succeed(["eval", "--json", "--data", data] + run).output)
    #expect(result["eval_accuracy"] == 1.0 && result["eval_f1"] == 1.0)
    let text = try Tool.succeed(["predict"] + run + ["Anna lives in New York ."]).output
    #expect(text == "Anna lives in New York .\tB-PER O O B-LOC I-LOC O\n")
    let json = try JSONValue(
      parsing: try Tool.succeed(["predict", "--json"] + run + ["Bert works in Paris ."]).output)
    let labels: JSONValue = ["B-PER", "O", "O", "B-LOC", "O"]
    #expect(json["labels"] == labels)
    // Words of a file, and its task from the folder of the adapter alone.
    let file = try Tool.succeed(["predict", "--input", data] + run).output
    #expect(file.split(separator: "\n").count == 8)
    // The merged model is a classifier of tokens with the adapter's labels.
    try Tool.succeed(["merge", "--output", folder.file("merged")] + run)
    let merged = try Tool.succeed([
      "predict", "--model", folder.file("merged"), "Anna lives in New York .",
    ])
    #expect(merged.output == text)
  }

  @Test func questionsAreAnswered() throws {
    let folder = try TemporaryFolder()
    let model = try model(folder)
    var lines = ""
    for name in ["Anna", "Bert"] {
      for place in ["New York", "Paris", "Rome"] {
        let context = "\(name) lives in \(place)."
        for (question, answer) in [("who ?", name), ("where ?", place)] {
          let start = context.distance(
            from: context.startIndex, to: context.ranges(of: answer)[0].lowerBound)
          let record: JSONValue = [
            "question": .string(question), "context": .string(context),
            "answers": ["text": .array([.string(answer)]), "answer_start": .array([.int(start)])],
          ]
          lines += record.text() + "\n"
        }
      }
    }
    let data = folder.file("questions.jsonl")
    try FileSystem.write(data, lines)
    try train(folder, ["model=\(model)", "task_type=QUESTION_ANS", "train_file=\(data)"])
    let run = ["--model", model, "--adapter", folder.file("out")]
    let result = try JSONValue(
      parsing: try Tool.succeed(["eval", "--json", "--data", data] + run).output)
    #expect(result["eval_exact_match"] == 1.0 && result["eval_f1"] == 1.0)
    let question = ["predict", "--json", "where ?"] + run
    let answer = try JSONValue(
      parsing: try Tool.succeed(question + ["--context", "Bert lives in New York."]).output)
    #expect(answer["answer"] == "New York")
    let probability = try #require(answer["probability"]?.double)
    #expect(probability > 0.5 && probability <= 1)
    #expect(try Tool.run(question).errors.contains("--context: a question needs a context"))
    let file = try Tool.succeed(["predict", "--input", data] + run).output
    #expect(file.split(separator: "\n").count == 12)
  }

  @Test func severalLabelsAndNumbers() throws {
    let folder = try TemporaryFolder()
    let model = try model(folder)
    let data = folder.file("labels.jsonl")
    try FileSystem.write(
      data,
      """
      {"text": "anna lives in paris", "label": ["person", "place"]}
      {"text": "anna works", "label": ["person"]}
      {"text": "in rome", "label": ["place"]}
      {"text": "works in", "label": []}
      """)
    try train(folder, ["model=\(model)", "train_file=\(data)"])
    let run = ["--model", model, "--adapter", folder.file("out")]
    var result = try JSONValue(
      parsing: try Tool.succeed(["eval", "--json", "--data", data] + run).output)
    #expect(result["eval_accuracy"] == 1.0 && result["eval_f1"] == 1.0)
    let json = try JSONValue(
      parsing: try Tool.succeed(["predict", "--json"] + run + ["anna lives in paris"]).output)
    #expect(json["labels"] == ["person", "place"])
    try Tool.succeed(["merge", "--output", folder.file("merged")] + run)
    let config = try FileSystem.readJSON(folder.file("merged/config.json"))
    #expect(config["problem_type"] == "multi_label_classification")

    let numbers = folder.file("numbers.csv")
    try FileSystem.write(numbers, "text,label\nanna,1.5\nbert,-1\nin paris,0.25\n")
    FileSystem.removeTree(folder.file("out"))
    try train(
      folder, ["model=\(model)", "train_file=\(numbers)", "problem_type=regression"])
    result = try JSONValue(
      parsing: try Tool.succeed(["eval", "--json", "--data", numbers] + run).output)
    #expect(try #require(result["eval_pearson"]?.double) > 0.99)
    let line = try Tool.succeed(["predict"] + run + ["bert"]).output
    let value = try #require(Double(line.split(separator: "\t")[1].dropLast()))
    #expect(abs(value + 1) < 0.2, "\(line)")
  }
}
