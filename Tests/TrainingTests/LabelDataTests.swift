import Models
import PEFTCore
import PEFTSupport
import TestSupport
import Testing
import Tokenizers

@testable import Training

/// Labels in data files: what counts as a class, and what is refused with its place.
struct LabelDataTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    _ = try folder.write("tokenizer.json", WordTokenizer.json(["a", "b"]))
  }

  private func source(_ name: String, _ text: String, _ task: TaskType) throws -> DataSource {
    try DataSource(try folder.write(name, text), DataConfiguration(), task: task)
  }

  private func dataset(
    _ source: DataSource, _ task: TaskType, labels: [String]? = nil,
    problem: ProblemType = .singleLabel, targetCount: Int? = nil
  ) throws -> Dataset {
    try DatasetBuilder(
      task: task, configuration: DataConfiguration(),
      limits: InputLimits(vocabulary: 99, positions: 40, positionsAreTable: true, tokenTypes: 2),
      labels: try labels.map { (names) throws(PEFTError) in try LabelSet(names) },
      problem: problem, targetCount: targetCount, tokenizer: Tokenizer(folder: folder.path)
    ).dataset(source)
  }

  private func sequences(
    _ text: String, labels: [String]? = nil, problem: ProblemType = .singleLabel,
    targetCount: Int? = nil, name: String = "data.jsonl"
  ) throws -> Dataset {
    try dataset(
      try source(name, text, .sequenceClassification), .sequenceClassification, labels: labels,
      problem: problem, targetCount: targetCount)
  }

  // MARK: -100

  @Test func ignoredTagsAreNoClass() throws {
    let lines = """
      {"words": ["a", "b"], "tags": ["O", -100]}
      {"words": ["b"], "tags": [-100]}
      {"words": ["a"], "tags": ["B"]}
      """
    let source = try source("data.jsonl", lines, .tokenClassification)
    #expect(LabelSet(occurring: try source.labelNames(DataConfiguration())).names == ["B", "O"])
    let data = try dataset(source, .tokenClassification, labels: ["B", "O"])
    #expect(
      data.examples.map(\.labels)
        == [[-100, 1, -100, -100], [-100, -100, -100], [-100, 0, -100]])
  }

  @Test(arguments: [
    ("data.jsonl", "{\"text\": \"a\", \"label\": 0}\n{\"text\": \"a\", \"label\": [0, -100]}"),
    ("data.jsonl", "{\"text\": \"a\", \"label\": 0}\n{\"text\": \"a\", \"label\": -100}"),
    ("data.jsonl", "{\"input_ids\": [5], \"label\": 0}\n{\"input_ids\": [5], \"label\": -100}"),
    ("data.csv", "text,label\na,-100\n"),
  ])
  func ignoredLabelsOfSequencesAreRefused(_ name: String, _ text: String) throws {
    for problem in [ProblemType.singleLabel, .multiLabel] {
      if problem == .singleLabel, text.contains("[0,") { continue }
      let message = failure {
        _ = try sequences(text, labels: ["x", "y"], problem: problem, name: name)
      }
      #expect(
        message.contains("\(name):2: the label of a sequence is -100"), "\(problem): \(message)")
    }
    let found = try source(name, text, .sequenceClassification)
    if found.format != .tokens {
      #expect(try !found.labelNames(DataConfiguration()).contains("-100"))
    }
  }

  // MARK: Names and ids

  /// A label is a name or an id, also in CSV, where every value is a text.
  @Test(arguments: ["data.csv", "data.jsonl"])
  func labelsAreNamesOrIDs(_ name: String) throws {
    func text(_ labels: [String]) -> String {
      name.hasSuffix("csv")
        ? "text,label\n" + labels.map { "a,\($0)\n" }.joined()
        : labels.map {
          "{\"text\": \"a\", \"label\": \(Int($0) == nil ? "\"\($0)\"" : $0)}\n"
        }.joined()
    }
    func ids(_ values: [String], _ labels: [String]) throws -> [Int32] {
      try sequences(text(values), labels: labels, name: name).examples.flatMap(\.labels)
    }
    #expect(try ids(["1", "negative", "0"], ["negative", "positive"]) == [1, 0, 0])
    let beyond = failure { _ = try ids(["0", "2"], ["negative", "positive"]) }
    #expect(beyond.contains("the label 2 is not one of the model's 2 classes"), "\(beyond)")
    // Names that are numbers: their ids differ, and other numbers mean nothing.
    #expect(try ids(["5", "1", "3"], ["1", "2", "3", "4", "5"]) == [4, 0, 2])
    let unknown = failure { _ = try ids(["5", "0"], ["1", "2", "3", "4", "5"]) }
    let line = name.hasSuffix("csv") ? 3 : 2
    #expect(unknown.contains("\(name):\(line): unknown label '0'"), "\(unknown)")
  }

  /// Token files have ids, whatever the names are.
  @Test func tokenFilesHaveIDs() throws {
    let line = "{\"input_ids\": [4], \"label\": 0}"
    #expect(try sequences(line, labels: ["3", "4"]).examples[0].labels == [0])
  }

  // MARK: Numbers

  @Test func theNumberOfTargetsIsChecked() throws {
    let lines = """
      {"text": "a", "label": [0.5, 1]}
      {"text": "b", "label": [0.2]}
      """
    let text = failure { _ = try sequences(lines, problem: .regression, targetCount: 2) }
    #expect(text.contains("data.jsonl:2: 'label' holds 1 numbers, the model gives 2"), "\(text)")
    #expect(try sequences(lines, problem: .regression).count == 2)
    let none = failure {
      _ = try sequences("{\"text\": \"a\", \"label\": []}", problem: .regression)
    }
    #expect(none.contains("data.jsonl:1: 'label' holds no number"), "\(none)")
  }

  /// A run compares with its first record, before anything is written; a model that is evaluated
  /// with its head.
  @Test func runsAndEvaluationsCheckTheNumberOfTargets() throws {
    let run = try TinyRun()
    let lines = """
      {"input_ids": [1, 2], "label": [0.5, 1]}
      {"input_ids": [3], "label": [0.5, 1, 2]}
      {"input_ids": [4], "label": [0.5]}
      """
    let data = try run.folder.write("numbers.jsonl", lines)
    let text = failure { _ = try run.prepare(["train_file": .string(data)]) }
    #expect(text.contains("numbers.jsonl:2: 'label' holds 3 numbers, the model gives 2"), "\(text)")
    #expect(!FileSystem.exists(run.folder("out")))
    let adapted = try AdaptedModel(
      try run.folder.regressionModel(), adapter: TestData.golden("tasks/bert-regression-3/adapter"),
      registry: standardRegistry)
    let evaluation = failure { _ = try adapted.evaluate(data, data: DataConfiguration()) }
    #expect(
      evaluation.contains("numbers.jsonl:1: 'label' holds 2 numbers, the model gives 3"),
      "\(evaluation)")
  }
}

extension TemporaryFolder {
  /// The golden BERT with the settings of a regression.
  fileprivate func regressionModel() throws -> String {
    let source = TestData.golden("bert/model")
    try FileSystem.createDirectory(self("regression"))
    var config = try #require(
      try FileSystem.readJSON(FileSystem.join(source, "config.json")).object)
    config["problem_type"] = "regression"
    _ = try write("regression/config.json", JSONValue.object(config).text())
    _ = try write(
      "regression/model.safetensors",
      FileSystem.read(FileSystem.join(source, "model.safetensors")))
    return self("regression")
  }
}
