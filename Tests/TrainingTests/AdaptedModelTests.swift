import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

/// What an adapter needs of the model that it was trained on, on the golden BERT: evaluations of the
/// written adapter must be those that the run itself made of it.
struct AdaptedModelTests {
  private let run: TinyRun

  init() throws { run = try TinyRun() }

  /// Settings of a run on a model in files, with an evaluation at its end.
  private func changes(
    _ model: String, _ others: [String: JSONValue] = [:]
  ) -> [String: JSONValue] {
    let common: [String: JSONValue] = [
      "model": .string(model), "random_weights": false, "max_steps": 4, "save_strategy": "no",
      "validation_file": .string(run.folder("validation.jsonl")),
    ]
    return common.merging(others) { $1 }
  }

  private func adapted(_ model: String, _ adapter: String) throws -> AdaptedModel {
    try AdaptedModel(model, adapter: adapter, registry: standardRegistry)
  }

  /// The golden BERT as an encoder with another head would have been saved.
  private func modelWithoutPooler() throws -> String {
    let model = run.folder("encoder")
    try FileSystem.createDirectory(model)
    let weights = try SafetensorsFile(TestData.golden("bert/model/model.safetensors"))
    let items = try weights.names.filter { !$0.contains("pooler") }.map {
      SafetensorsItem($0, try weights.tensor($0))
    }
    #expect(items.count == weights.names.count - 2)
    try SafetensorsWriter.write(items, to: "\(model)/model.safetensors")
    let config = try FileSystem.readJSON(TestData.golden("bert/model/config.json"))
    try FileSystem.write("\(model)/config.json", config.text())
    return model
  }

  @Test func aPoolerThatStaysRandomIsRefused() throws {
    let model = try modelWithoutPooler()
    let text = failure { try run.train(changes(model)) }
    #expect(text.contains("\(model): has no 'bert.pooler.dense.weight'"), "\(text)")
    #expect(text.contains("Add 'pooler.dense' to 'modules_to_save' of 'lora'"), "\(text)")
    #expect(!FileSystem.exists(run.folder("out")))
    // An adapter that was trained on a model with a pooler.
    let adapter = TestData.golden("bert/adapter_a")
    let other = failure { _ = try adapted(model, adapter) }
    #expect(other.hasPrefix("\(adapter): neither the model nor the adapter holds"), "\(other)")
    #expect(other.contains("'bert.pooler.dense.weight'"), "\(other)")
    let further = failure {
      try run.train(changes(model, ["init_adapter": .string(adapter), "lora": .null]))
    }
    #expect(further.contains("Begin with an adapter that has 'pooler.dense'"), "\(further)")
  }

  @Test(arguments: ["pooler", "pooler.dense"])
  func aPoolerThatIsTrainedInFullIsKept(_ name: String) throws {
    let model = try modelWithoutPooler()
    let summary = try run.train(changes(model, ["lora.modules_to_save": .array([.string(name)])]))
    let adapted = try adapted(model, run.folder("out"))
    let result = try adapted.evaluate(run.folder("validation.jsonl"), data: adapted.data)
    #expect(result.loss == summary.validation?.loss)
  }

  @Test func replacedMembersOfTheConfigBelongToTheAdapter() throws {
    let model = TestData.golden("bert/model")
    let summary = try run.train(
      changes(
        model, ["model_config.layer_norm_eps": 0.5, "model_config.hidden_dropout_prob": 0.25]))
    let adapted = try adapted(model, run.folder("out"))
    let result = try adapted.evaluate(run.folder("validation.jsonl"), data: adapted.data)
    #expect(result.loss == summary.validation?.loss)
    let config = adapted.base.model.configuration.object
    #expect(config["layer_norm_eps"] == 0.5 && config["hidden_dropout_prob"] == 0.0)

    // Training further goes on with the same model, unless told otherwise.
    let initial: [String: JSONValue] = [
      "init_adapter": .string(run.folder("out")), "lora": .null,
      "output_dir": .string(run.folder("further")),
    ]
    let further = try run.prepare(changes(model, initial))
    #expect(further.base.model.configuration.object["layer_norm_eps"] == 0.5)
    #expect(further.configuration.modelConfig == JSONObject([("layer_norm_eps", 0.5)]))
    #expect(
      further.notices == [
        "'model_config.layer_norm_eps' is 0.5, as 'init_adapter' was trained with"
      ]
    )
    let other = try run.prepare(
      changes(model, initial.merging(["model_config.layer_norm_eps": 0.25]) { $1 }))
    #expect(other.base.model.configuration.object["layer_norm_eps"] == 0.25)
    #expect(other.notices.isEmpty)
  }
}
