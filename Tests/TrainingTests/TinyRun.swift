import PEFTCore
import PEFTSupport
import TestSupport
import Testing
import TunerLoRA

@testable import Training

/// A run on a model of a few thousand random weights, in a folder of its own.
struct TinyRun {
  let folder: TemporaryFolder
  var settings: JSONObject

  /// Creates the model's folder, the data and the settings; dropout is on, so that its random
  /// numbers are part of every comparison.
  init(_ kind: Kind = .classifier, examples: Int = 22) throws {
    folder = try TemporaryFolder()
    let model = folder("model")
    try FileSystem.createDirectory(model)
    let configuration: JSONValue
    switch kind {
    case .classifier:
      configuration = [
        "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 24,
        "type_vocab_size": 2, "initializer_range": 0.3, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "architectures": ["BertForSequenceClassification"],
      ]
    case .languageModel:
      configuration = [
        "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 24, "initializer_range": 0.3, "tie_word_embeddings": true,
        "architectures": ["LlamaForCausalLM"],
      ]
    }
    try FileSystem.write(folder("model/config.json"), configuration.text(.indented))
    try FileSystem.write(
      folder("train.jsonl"), Self.lines(kind, count: examples, seed: 1))
    try FileSystem.write(folder("validation.jsonl"), Self.lines(kind, count: 9, seed: 2))
    settings = JSONObject([
      ("model", .string(model)), ("random_weights", true),
      ("train_file", .string(folder("train.jsonl"))),
      ("output_dir", .string(folder("out"))), ("num_train_epochs", 3),
      ("per_device_train_batch_size", 4), ("learning_rate", 0.01), ("warmup_steps", 2),
      ("seed", 3), ("num_threads", 1),
      ("lora", .object(Self.adapter(kind, Method.lora))),
    ])
  }

  enum Kind { case classifier, languageModel }

  /// The methods that runs are made with.
  enum Method: String, CaseIterable {
    case lora, dora, edora
    /// EDoRA whose files leave A and B out.
    case compactEDoRA = "compact edora"
    case loraXS = "lora-xs"

    /// The method's name in the settings.
    var key: String { self == .compactEDoRA ? "edora" : rawValue }
  }

  private static func adapter(_ kind: Kind, _ method: Method) -> JSONObject {
    let targets: JSONValue = kind == .classifier ? ["query", "dense"] : ["q_proj", "down_proj"]
    var object = JSONObject([("r", 2), ("lora_dropout", 0.2), ("target_modules", targets)])
    switch method {
    case .lora, .dora: object["init_lora_weights"] = false
    case .edora, .compactEDoRA, .loraXS: object["init_sigma"] = 0.3
    }
    if method == .compactEDoRA { object["compact"] = true }
    return object
  }

  /// The changes of the settings that choose a method.
  static func choosing(
    _ method: Method, _ kind: Kind = .classifier
  ) -> [String: JSONValue] {
    ["lora": .null].merging([method.key: .object(adapter(kind, method))]) { $1 }
  }

  /// Token ids with something to learn: the class follows from the first id, or each id from the
  /// one before.
  private static func lines(_ kind: Kind, count: Int, seed: UInt64) -> String {
    var random = SplitMix64(state: seed)
    var text = ""
    for _ in 0..<count {
      var ids = [Int.random(in: 0..<40, using: &random)]
      for _ in 0..<Int.random(in: 2...8, using: &random) {
        ids.append(
          kind == .classifier ? Int.random(in: 0..<40, using: &random) : (ids.last! * 3 + 1) % 40)
      }
      let list = JSONValue.array(ids.map { .int($0) })
      var members: [(String, JSONValue)] = [("input_ids", list)]
      members.append(
        kind == .classifier ? ("label", .int(ids[0] % 3)) : ("labels", list))
      text += JSONValue.object(JSONObject(members)).text() + "\n"
    }
    return text
  }

  /// Reads the data and builds the model.
  func prepare(_ changes: [String: JSONValue] = [:]) throws -> PreparedRun {
    var object = settings
    for (key, value) in changes { try object.set(key, to: value) }
    return try PreparedRun(
      RunConfiguration(object, registry: standardRegistry), registry: standardRegistry)
  }

  /// Trains; stops after a step where asked to.
  @discardableResult
  func train(
    _ changes: [String: JSONValue] = [:], stopAfter step: Int? = nil,
    observe: (TrainingEvent) throws -> Void = { _ in }
  ) throws -> TrainingSummary {
    var done = 0
    return try prepare(changes).makeTrainer().run(
      observe: { event in
        if case .step(let report) = event { done = report.step }
        try observe(event)
      }, shouldStop: { step.map { done >= $0 } ?? false })
  }

  /// The bytes of the weights of an adapter.
  func weights(_ name: String = "out") throws -> [UInt8] {
    try FileSystem.read(folder("\(name)/adapter_model.safetensors"))
  }

  /// The entries of metrics.jsonl.
  func metrics(_ name: String = "out") throws -> [JSONValue] {
    try FileSystem.read(folder("\(name)/metrics.jsonl")).split(separator: UInt8(ascii: "\n")).map {
      try JSONValue(parsing: Array($0))
    }
  }

  /// The losses of the steps in metrics.jsonl.
  func losses(_ name: String = "out") throws -> [Double] {
    try metrics(name).compactMap { $0["loss"]?.double }
  }
}

/// The description of the error that `body` throws.
func failure(_ body: () throws -> Void) -> String {
  do {
    try body()
    return "no error"
  } catch { return "\(error)" }
}
