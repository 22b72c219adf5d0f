import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Models

/// Folders of models as they are found, with other names and odd settings.
struct LoadingTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  /// A copy of a golden's model with changed settings.
  private func model(_ name: String, _ changes: [String: JSONValue]) throws -> String {
    let source = TestData.golden("\(name)/model")
    var configuration = try #require(try FileSystem.readJSON("\(source)/config.json").object)
    for (key, value) in changes { configuration[key] = value }
    try FileSystem.write(folder("config.json"), JSONValue.object(configuration).text())
    let weights = try SafetensorsFile("\(source)/model.safetensors")
    try SafetensorsWriter.write(
      try weights.names.map { SafetensorsItem($0, try weights.tensor($0)) },
      to: folder("model.safetensors"))
    return folder.path
  }

  /// The first BERT files call a norm's weight gamma and its bias beta, as TensorFlow does;
  /// transformers renames them (conversion_mapping.py).
  @Test func oldNamesOfNorms() throws {
    let path = try model("bert", [:])
    let file = try SafetensorsFile(folder("model.safetensors"))
    let items = try file.names.map { name in
      let old = name.replacing("LayerNorm.weight", with: "LayerNorm.gamma")
        .replacing("LayerNorm.bias", with: "LayerNorm.beta")
      return SafetensorsItem(old, try file.tensor(name))
    }
    #expect(items.contains { $0.name.hasSuffix("LayerNorm.beta") })
    try SafetensorsWriter.write(items, to: folder("model.safetensors"))
    func values(_ path: String) throws -> [String: [Float]] {
      let model = try ModelLoader.load(path, head: .sequenceClassification(labels: 5)).model
      return Dictionary(
        uniqueKeysWithValues: model.namedParameters().compactMap { name, info in
          info.parameter.map { (name, $0.value.scalars) }
        })
    }
    let (new, old) = (try values(TestData.golden("bert/model")), try values(path))
    #expect(new == old && new.keys.contains { $0.hasSuffix("LayerNorm.bias") })
  }

  @Test func settingsThatNoModelHasAreErrors() throws {
    let scaling: JSONValue = ["rope_type": "llama3", "factor": 8, "rope_theta": 1e4]
    let cases: [(String, [String: JSONValue], String)] = [
      ("llama", ["num_attention_heads": .int(1 << 62)], "'num_attention_heads' is"),
      ("llama", ["head_dim": .int(1 << 20)], "heads of width 1048576"),
      ("llama", ["rope_parameters": scaling], "'low_freq_factor'"),
      (
        "llama", ["rope_parameters": ["rope_type": "linear", "rope_theta": 1e4]], "'factor'"
      ),
      (
        "llama", ["rope_parameters": ["rope_type": "linear", "factor": 0, "rope_theta": 1e4]],
        "'factor' is 0"
      ),
      (
        "llama",
        [
          "rope_parameters": [
            "rope_type": "llama3", "factor": 8, "rope_theta": 1e4, "low_freq_factor": 4,
            "high_freq_factor": 4, "original_max_position_embeddings": 64,
          ]
        ], "'low_freq_factor' is 4"
      ),
      ("bert", ["is_decoder": true], "'is_decoder': true is not supported"),
    ]
    for (name, changes, text) in cases {
      let path = try model(name, changes)
      let error = #expect(throws: PEFTError.self) { try ModelLoader.load(path) }
      #expect(error?.message.contains(text) == true, "\(changes): \(error!)")
    }
  }
}
