import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

/// Heads and losses of every task against transformers with peft (Tests/Goldens/tasks,
/// generator/tasks.py): losses, gradients of every trained tensor, ten steps.
///
/// Rows keep their padding where transformers' loss depends on it: the softmax over a question's
/// tokens runs over padding too.
struct TaskGoldenTests {
  static let names = [
    "bert-multi", "bert-regression", "bert-regression-3", "bert-token", "bert-question",
    "llama-sequence", "llama-sequence-left", "llama-multi", "llama-token", "llama-question",
    "qwen2-sequence", "qwen2-token", "qwen2-question",
  ]

  private func record(_ name: String) throws -> JSONValue {
    try FileSystem.readJSON(TestData.golden("tasks/\(name)/case.json"))
  }

  private func run(_ name: String) throws -> GoldenRun {
    let record = try record(name)
    let task = try #require(record["task"]?.string)
    return try GoldenRun(
      try #require(record["model"]?.string), adapter: "tasks/\(name)/adapter",
      batches: "tasks/\(name)/batches.safetensors", overrides: record["config"]?.object ?? .init(),
      keepsPadding: task == "QUESTION_ANS" || name.hasSuffix("-left"))
  }

  @Test func everyCaseIsListed() throws {
    let found = try FileSystem.list(TestData.golden("tasks")).filter { $0 != "bert-features" }
    #expect(Set(found) == Set(Self.names))
  }

  @Test(arguments: names)
  func lossAndGradientsEqualPeft(_ name: String) throws {
    let run = try run(name)
    let expected = try SafetensorsFile(TestData.golden("tasks/\(name)/expected.safetensors"))
    let input = try SafetensorsFile(TestData.golden("tasks/\(name)/input.safetensors"))
    let batch = try run.batch("", of: input)
    let loss = try #require(
      try run.objective.loss(
        batch, ForwardContext(batch.tokens.layout), count: run.objective.labelCount(batch)))
    let wanted = try expected.tensor("loss.active").item
    #expect(abs(loss.item - wanted) < 1e-5 * wanted, "\(loss.item), \(wanted)")
    let gradients = loss.backward()
    let keys = expected.names.filter { $0.hasPrefix("grad.") }.map { String($0.dropFirst(5)) }
    let trained = run.model.trainableTensors
    #expect(Set(trained.map(\.key)) == Set(keys))
    let largest = try keys.map { try expected.tensor("grad.\($0)").maximumMagnitude }.max() ?? 0
    for tensor in trained {
      let gradient = gradients[tensor.parameter] ?? .zeros(tensor.parameter.shape)
      let right = try expected.tensor("grad.\(tensor.key)")
      let difference = zip(gradient.scalars, right.scalars).map { abs($0 - $1) }.max() ?? 0
      // A softmax over tokens does not depend on the bias: its gradient is nothing but rounding.
      let scale = max(right.maximumMagnitude, 1e-3 * largest)
      #expect(difference < 1e-4 * scale, "\(tensor.key)")
    }
    let counts = try record(name)
    #expect(run.model.parameterCounts.trainable == counts["trainable_parameters"]?.int)
    #expect(run.loaded.model.typeName == counts["task_model"]?.string)
    let task = try #require(try run.model.taskType("default"))
    #expect(task.modelClassName == counts["peft_model"]?.string)
    #expect(
      task.savedModules == counts["modules_to_save"]?.array?.compactMap(\.string))
  }

  @Test(arguments: names)
  func tenStepsEqualPeft(_ name: String) throws {
    let run = try run(name)
    let record = try record(name)
    let settings = OptimizerSettings(
      learningRate: try #require(record["optimiser"]?["lr"]?.double),
      weightDecay: try #require(record["optimiser"]?["weight_decay"]?.double))
    try run.expect(
      try #require(record["losses"]?.array).compactMap(\.double),
      AdamW(run.model.trainableTensors, settings: settings))
  }

  /// The same two tasks among the goldens of configuration fields, labels made from the ids.
  @Test(arguments: ["token-classification", "question-answering"])
  func fieldCasesEqualPeft(_ name: String) throws {
    let isQuestion = name == "question-answering"
    let run = try GoldenRun(
      "bert", adapter: "fields/\(name)/adapter", keepsPadding: isQuestion)
    let record = try FileSystem.readJSON(TestData.golden("fields/\(name)/case.json"))
    let losses = try #require(record["losses"]?.array).compactMap(\.double)
    let optimizer = AdamW(
      run.model.trainableTensors,
      settings: OptimizerSettings(learningRate: 1e-2, weightDecay: 0.01))
    for step in 0..<10 {
      let examples = try goldenExamples(
        run.batches, prefix: "\(step).", keepsPadding: isQuestion)
      let batch = Batch(
        examples.map { example in
          var example = example
          let visible = example.mask?.count { $0 == 1 } ?? example.tokenIDs.count
          example.labels =
            isQuestion
            ? [Int32(visible / 3), Int32(visible - 1)] : example.tokenIDs.map { $0 % 5 }
          return example
        })
      let loss = try #require(
        try run.objective.loss(
          batch, ForwardContext(batch.tokens.layout), count: run.objective.labelCount(batch)))
      #expect(abs(Double(loss.item) - losses[step]) < 1e-4 * losses[step], "step \(step)")
      optimizer.update(loss.backward())
    }
  }

  /// Several forward passes of a step add up to the loss and the gradients of one.
  @Test(arguments: ["bert-multi", "bert-regression-3", "llama-token", "qwen2-question"])
  func accumulationEqualsALargeBatch(_ name: String) throws {
    let run = try run(name)
    let examples = try goldenExamples(
      try SafetensorsFile(TestData.golden("tasks/\(name)/input.safetensors")), prefix: "")
    func pass(_ parts: [[Example]]) throws -> (Double, [Tensor]) {
      let batches = parts.map { Batch($0) }
      let count = batches.reduce(0) { $0 + run.objective.labelCount($1) }
      var (sum, gradients) = (0.0, Gradients())
      for batch in batches {
        let loss = try #require(
          try run.objective.loss(batch, ForwardContext(batch.tokens.layout), count: count))
        sum += Double(loss.item)
        gradients.add(loss.backward())
      }
      return (sum, run.model.trainableTensors.compactMap { gradients[$0.parameter] })
    }
    let whole = try pass([examples])
    let parts = try pass([[examples[0]], Array(examples[1...])])
    #expect(abs(whole.0 - parts.0) < 1e-5 * whole.0)
    let largest = whole.1.map(\.maximumMagnitude).max() ?? 0
    for (a, b) in zip(whole.1, parts.1) {
      let difference = zip(a.scalars, b.scalars).map { abs($0 - $1) }.max() ?? 0
      #expect(difference < 1e-4 * max(a.maximumMagnitude, 1e-3 * largest))
    }
  }
}
