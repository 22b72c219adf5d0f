import PEFT
import Testing

@testable import PEFTCommand

struct MergeTests {
  /// Runs `peft forward` on the golden input and returns the logits.
  static func logits(
    _ model: String, input: String, _ arguments: [String] = []
  ) throws -> Tensor {
    let folder = try TemporaryFolder()
    let output = folder.file("out.safetensors")
    try Tool.succeed(
      ["forward", "--model", model, "--input", input, "--output", output] + arguments)
    return try SafetensorsFile(output).tensor("logits")
  }

  /// The written folder, read as a plain model, must give what peft's merged model gives
  /// (Tests/Goldens/make_goldens.py), and hold the base's tensors, names and types.
  @Test(arguments: [
    ("bert", "a"), ("bert-base", "cls"), ("llama", "a"), ("llama-bias", "b"), ("qwen2", "b"),
  ])
  func mergedFoldersEqualPeft(_ name: String, _ adapter: String) throws {
    let folder = try TemporaryFolder()
    let merged = folder.file("merged")
    let outcome = try Tool.succeed([
      "merge", "--model", golden("\(name)/model"), "--adapter",
      golden("\(name)/adapter_\(adapter)"), "--output", merged,
    ])
    #expect(outcome.output.contains("max |Δlogit|"))
    #expect(folder.names == ["merged"])

    let logits = try Self.logits(merged, input: golden("\(name)/input.safetensors"))
    let input = try SafetensorsFile(golden("\(name)/input.safetensors"))
    let expected = try SafetensorsFile(golden("\(name)/expected.safetensors"))
      .tensor("logits.\(adapter)_merged")
    let mask = try input.integers("attention_mask").values
    let rows = mask.indices.filter { expected.shape.count == 2 || mask[$0] == 1 }
      .map { Int32($0) }.prefix(expected.shape.count == 2 ? expected.rows : .max)
    func visible(_ tensor: Tensor) -> Tensor {
      tensor.reshaped([tensor.rows, tensor.columns]).selectRows(Array(rows))
    }
    #expect(relativeError(visible(logits), visible(expected)) < 1e-5)

    let written = try SafetensorsFile("\(merged)/model.safetensors")
    #expect(written.metadata["format"] == "pt")
    let base = try SafetensorsFile(golden("\(name)/model/model.safetensors"))
    if name == "bert-base" {
      #expect(
        Set(written.names)
          == Set(base.names.map { "bert.\($0)" })
          .union(["classifier.weight", "classifier.bias"]))
      let config = try FileSystem.readJSON("\(merged)/config.json")
      #expect(config["architectures"] == ["BertForSequenceClassification"])
      #expect(config["id2label"]?.object?.members.count == 4)
    } else {
      #expect(Set(written.names) == Set(base.names))
      for entry in base.entries {
        #expect(written[entry.name]?.shape == entry.shape)
        #expect(written[entry.name]?.type == entry.type)
      }
    }
  }

  /// An embedding that changes must not drag the tied head along: the merged model computes what
  /// the adapters computed, so the head is written and the config says that it is untied.
  @Test(arguments: ["lm_head", "embed_tokens"])
  func untiesWhatDiffers(_ target: String) throws {
    let folder = try TemporaryFolder()
    let model = golden("llama/model")
    let peft = PeftModel(try ModelLoader.load(model))
    try peft.add(
      "default",
      LoRAConfig(
        rank: 4, alpha: 8, targets: TargetSelection(.list([target, "q_proj"])),
        taskType: .causalLM, initialization: .random))
    let adapter = folder.file("adapter")
    try peft.save(adapter)
    let merged = folder.file("merged")
    try Tool.succeed(["merge", "--model", model, "--adapter", adapter, "--output", merged])
    #expect(try FileSystem.readJSON("\(merged)/config.json")["tie_word_embeddings"] == false)
    #expect(try SafetensorsFile("\(merged)/model.safetensors")["lm_head.weight"] != nil)
    let input = golden("llama/input.safetensors")
    let expected = try Self.logits(model, input: input, ["--adapter", adapter])
    #expect(relativeError(try Self.logits(merged, input: input), expected) < 1e-5)
  }

  /// What a training run replaced of config.json goes where its adapter goes: the same as a model
  /// whose config.json says so.
  @Test func keepsWhatTheTrainingReplaced() throws {
    let folder = try TemporaryFolder()
    let (model, input) = (golden("llama/model"), golden("llama/input.safetensors"))
    let other = try folder.copy(model, as: "other")
    var config = try #require(try FileSystem.readJSON("\(other)/config.json").object)
    config["rms_norm_eps"] = 0.5
    try FileSystem.write("\(other)/config.json", JSONValue.object(config).text())
    let adapter = try folder.copy(golden("llama/adapter_a"), as: "adapter")
    try record(modelConfig: ["rms_norm_eps": 0.5, "attention_dropout": 0.25], in: adapter)
    let expected = try Self.logits(
      other, input: input, ["--adapter", golden("llama/adapter_a")])
    let logits = try Self.logits(model, input: input, ["--adapter", adapter])
    #expect(logits.scalars == expected.scalars)
    let merged = folder.file("merged")
    try Tool.succeed(["merge", "--model", model, "--adapter", adapter, "--output", merged])
    let written = try FileSystem.readJSON("\(merged)/config.json")
    #expect(written["rms_norm_eps"] == 0.5 && written["attention_dropout"] == 0.0)
    #expect(relativeError(try Self.logits(merged, input: input), expected) < 1e-5)

    // Adapters for different models do not work together, unless config.json agrees with both.
    let both = ["--adapter", adapter, "--adapter", "\(golden("llama/adapter_b"))=b"]
    let output = ["--input", input, "--output", folder.file("out.safetensors")]
    let outcome = try Tool.run(["forward", "--model", model] + both + output)
    #expect(outcome.status == 1)
    for part in ["error: \(golden("llama/adapter_b")): ", "'rms_norm_eps'", "'\(adapter)'"] {
      #expect(outcome.errors.contains(part), "\(outcome.errors)")
    }
    #expect(!FileSystem.exists(folder.file("out.safetensors")))
    try Tool.succeed(["forward", "--model", other] + both + output)
  }

  @Test func keepsTheTypeOfTheFiles() throws {
    let folder = try TemporaryFolder()
    let model = try folder.copy(golden("qwen2/model"), as: "model")
    let path = "\(model)/model.safetensors"
    let file = try SafetensorsFile(path)
    let items = try file.names.map { SafetensorsItem($0, try file.tensor($0), as: .bfloat16) }
    try SafetensorsWriter.write(items, to: path)
    let merged = folder.file("merged")
    try Tool.succeed([
      "merge", "--model", model, "--adapter", golden("qwen2/adapter_a"), "--output", merged,
    ])
    let written = try SafetensorsFile("\(merged)/model.safetensors")
    #expect(Set(written.entries.map(\.type)) == [.bfloat16])
    // What no adapter touches is the same to the bit.
    for name in ["model.norm.weight", "model.embed_tokens.weight"] {
      #expect(try written.bytes(name) == SafetensorsFile(path).bytes(name))
    }
  }

  @Test func copiesTheTokenizer() throws {
    let folder = try TemporaryFolder()
    let model = try folder.copy(golden("llama/model"), as: "model")
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "notes.txt"] {
      try FileSystem.write("\(model)/\(name)", "{\"name\": \"\(name)\"}")
    }
    let merged = folder.file("merged")
    let arguments = [
      "merge", "--model", model, "--adapter", golden("llama/adapter_a"), "--adapter",
      "\(golden("llama/adapter_b"))=b", "--output", merged,
    ]
    try Tool.succeed(arguments)
    #expect(
      try FileSystem.list(merged) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
      ])
    // A second run replaces nothing unless it is told to.
    let again = try Tool.run(arguments)
    #expect(again.status != 0)
    #expect(again.errors.hasPrefix("error: --output: '\(merged)' exists"), "\(again.errors)")
    try Tool.succeed(arguments + ["--overwrite"])
    #expect(folder.names == ["merged", "model"])
  }
}
