import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

/// A golden model with an adapter, its objective and its batches.
struct GoldenRun {
  let model: PeftModel
  let loaded: LoadedModel
  let objective: any Objective
  let batches: SafetensorsFile
  let keepsPadding: Bool

  /// Loads an adapter on the model of a golden folder.
  ///
  /// - Parameters:
  ///   - folder: The golden folder that holds `model`.
  ///   - adapter: The adapter's golden folder; names its task.
  ///   - batches: The file of ten batches.
  ///   - overrides: Members that replace those of config.json.
  ///   - keepsPadding: Whether hidden tokens stay, where transformers' loss depends on them.
  init(
    _ folder: String, adapter: String, batches: String? = nil,
    overrides: JSONObject = JSONObject(), keepsPadding: Bool = false
  ) throws {
    let content = try AdapterFolder(TestData.golden(adapter))
    let task = try #require(try content.task(standardRegistry))
    var options = ModelOptions()
    options.overrides = overrides
    let problem = overrides["problem_type"]?.string.flatMap { ProblemType(rawValue: $0) }
    let built = try TaskModel(
      TestData.golden("\(folder)/model"), task: task, labelCount: content.classCount ?? 0,
      context: TaskContext(problem: problem ?? .singleLabel), options: options,
      registry: standardRegistry)
    (model, loaded, objective) = (built.model, built.loaded, built.objective)
    try model.load(content.path)
    self.batches = try SafetensorsFile(TestData.golden(batches ?? "\(folder)/batches.safetensors"))
    self.keepsPadding = keepsPadding
  }

  /// A batch by the start of its tensors' names.
  func batch(_ prefix: String, of file: SafetensorsFile? = nil) throws -> Batch {
    try Batch(goldenExamples(file ?? batches, prefix: prefix, keepsPadding: keepsPadding))
  }

  /// Trains ten steps and compares the losses before each of them, and gradient norms.
  func expect(_ losses: [Double], norms: [Double]? = nil, _ optimizer: any Optimizer) throws {
    try #require(losses.count == 10)
    for step in 0..<10 {
      let batch = try batch("\(step).")
      let count = objective.labelCount(batch)
      let loss = try #require(
        try objective.loss(batch, ForwardContext(batch.tokens.layout), count: count))
      let value = Double(loss.item)
      let bound = 1e-4 * max(abs(losses[step]), 1e-2)
      #expect(abs(value - losses[step]) < bound, "step \(step): \(value), \(losses[step])")
      let gradients = loss.backward()
      if let norms {
        let norm = optimizer.norm(of: gradients)
        #expect(abs(norm - norms[step]) < 1e-3 * norms[step], "step \(step), norm")
      }
      optimizer.update(gradients)
    }
  }
}

/// The rows of a padded batch as examples.
func goldenExamples(
  _ file: SafetensorsFile, prefix: String, keepsPadding: Bool = false
) throws -> [Example] {
  let (shape, ids) = try file.integers("\(prefix)input_ids")
  let (_, mask) = try file.integers("\(prefix)attention_mask")
  func integers(_ name: String) throws -> (shape: [Int], values: [Int32])? {
    guard let entry = file[prefix + name], entry.type == .int64 else { return nil }
    return try file.integers(prefix + name)
  }
  let types = try integers("token_type_ids")?.values
  let labels = try integers("labels")
  let targets =
    labels == nil && file["\(prefix)labels"] != nil ? try file.tensor("\(prefix)labels") : nil
  let starts = try integers("start_positions")?.values
  let ends = try integers("end_positions")?.values
  return (0..<shape[0]).map { row in
    let all = row * shape[1]..<(row + 1) * shape[1]
    let places = keepsPadding ? Array(all) : all.filter { mask[$0] == 1 }
    var example = Example(
      tokenIDs: places.map { ids[$0] }, typeIDs: types.map { types in places.map { types[$0] } },
      labels: [])
    if keepsPadding { example.mask = places.map { UInt8(mask[$0]) } }
    if let labels {
      example.labels =
        labels.shape.count == 2 ? places.map { labels.values[$0] } : [labels.values[row]]
    }
    if let targets {
      let columns = targets.columns
      example.targets = Array(targets.scalars[row * columns..<(row + 1) * columns])
    }
    if let starts, let ends { example.labels = [starts[row], ends[row]] }
    return example
  }
}
