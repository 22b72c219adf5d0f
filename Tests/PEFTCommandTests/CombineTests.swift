import PEFT
import TestSupport
import Testing

@testable import PEFTCommand

struct CombineTests {
  private func combine(_ arguments: String..., into output: String) throws -> Tool.Outcome {
    try Tool.run(["combine"] + arguments + ["--output", output])
  }

  /// Both adapters at once and their sum are the same model (peft's logits, Tests/Goldens).
  @Test(arguments: ["linear", "cat", "svd"])
  func theSumIsBothAdapters(_ type: String) throws {
    let folder = try TemporaryFolder()
    let output = folder.file("sum")
    let outcome = try combine(
      "--adapter", golden("llama/adapter_a"), "--adapter", "\(golden("llama/adapter_b"))=1",
      "--type", type, "--svd-rank", "40", into: output)
    #expect(outcome.status == 0, "\(outcome.errors)")
    #expect(outcome.output.hasPrefix("\(output): 21 modules of rank "), "\(outcome.output)")
    #expect(
      try FileSystem.list(output) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
      ])
    #expect(folder.names == ["sum"])
    let input = golden("llama/input.safetensors")
    let both = try MergeTests.logits(
      golden("llama/model"), input: input,
      [
        "--adapter", "\(golden("llama/adapter_a"))=a", "--adapter",
        "\(golden("llama/adapter_b"))=b", "--active", "a,b",
      ])
    let sum = try MergeTests.logits(golden("llama/model"), input: input, ["--adapter", output])
    #expect(relativeError(sum, both) < 1e-5)
  }

  /// The factors that peft's `add_weighted_adapter` makes (Tests/Goldens/combine), without a model.
  @Test func reproducesPeft() throws {
    let folder = try TemporaryFolder()
    for (name, type, weights) in [
      ("linear", "linear", ["0.7", "0.4"]), ("cat", "cat", ["0.7", "0.4"]),
    ] {
      let output = folder.file(name)
      let outcome = try combine(
        "--adapter", "\(golden("combine/adapters/a"))=\(weights[0])", "--adapter",
        "\(golden("combine/adapters/b"))=\(weights[1])", "--type", type, "--compatibility", "peft",
        into: output)
      #expect(outcome.status == 0, "\(outcome.errors)")
      let made = try SafetensorsFile("\(output)/adapter_model.safetensors")
      let expected = try SafetensorsFile(golden("combine/\(name).safetensors"))
      for module in ["linear", "gpt2", "conv", "pointwise"] {
        for side in ["A", "B"] {
          let own = try made.tensor("base_model.model.\(module).lora_\(side).weight")
          let peft = try expected.tensor("\(side).\(module)")
          #expect(own.shape == peft.shape)
          #expect(relativeError(own, peft) < 1e-5, "\(name): \(side) of \(module)")
        }
      }
    }
  }

  /// Weights of the base are found with and without the prefix of the bare model.
  @Test func readsBaseWeights() throws {
    let file = try SafetensorsFile(golden("bert-base/model/model.safetensors"))
    let base = try BaseFolder(golden("bert-base/model"), adapters: [])
    for path in ["encoder.layer.0.output.dense", "bert.encoder.layer.0.output.dense"] {
      let expected = try file.tensor("encoder.layer.0.output.dense.weight")
      let found = try base.weights(
        path, outputs: expected.shape[0], inputs: expected.shape[1], isEmbedding: false)
      #expect(found.scalars == expected.scalars)
    }
    let words = try file.tensor("embeddings.word_embeddings.weight")
    let turned = try base.weights(
      "embeddings.word_embeddings", outputs: words.shape[1], inputs: words.shape[0],
      isEmbedding: true)
    #expect(turned.scalars == words.transposed().scalars)
    #expect(throws: PEFTError.self) {
      try base.weights("encoder.layer.9.output.dense", outputs: 3, inputs: 3, isEmbedding: false)
    }
    #expect(throws: PEFTError.self) {
      try base.weights("encoder.layer.0.output.dense", outputs: 3, inputs: 3, isEmbedding: false)
    }
  }

  /// Folders that are broken in one way or another: the message names the file, nothing is written.
  @Test func refusesBrokenFolders() throws {
    let folder = try TemporaryFolder()
    func expect(
      _ part: String, _ text: String, breaking: (String) throws -> Void
    ) throws {
      let copy = try folder.copy(golden("llama/adapter_a"), as: "copy")
      defer { FileSystem.removeTree(copy) }
      try breaking(copy)
      let outcome = try combine(
        "--adapter", golden("llama/adapter_b"), "--adapter", copy, into: folder.file("new"))
      #expect(outcome.status == 1)
      #expect(outcome.errors.contains(copy + part), "\(outcome.errors)")
      #expect(outcome.errors.contains(text), "\(outcome.errors)")
      #expect(folder.names == ["copy"])
    }
    let (config, weights) = ("/adapter_config.json", "/adapter_model.safetensors")
    func edit(_ folder: String, _ key: String, _ value: JSONValue?) throws {
      var object = try #require(try FileSystem.readJSON(folder + config).object)
      object[key] = value
      try FileSystem.write(folder + config, JSONValue.object(object).text())
    }
    func rewrite(_ folder: String, _ change: (String, Tensor) -> Tensor?) throws {
      let file = try SafetensorsFile(folder + weights)
      let items = try file.names.compactMap { name in
        change(name, try file.tensor(name)).map { SafetensorsItem(name, $0) }
      }
      FileSystem.removeTree(folder + weights)
      try SafetensorsWriter.write(items, to: folder + weights)
    }
    try expect("", "Can't find 'adapter_config.json'") { FileSystem.removeTree($0 + config) }
    try expect(config, "not valid JSON") { try FileSystem.write($0 + config, "{\"r\": 8,") }
    try expect(config, "no registered tuner handles peft_type 'IA3'") {
      try edit($0, "peft_type", "IA3")
    }
    try expect(config, "'r'") { try edit($0, "r", "eight") }
    try expect("", "has no adapter_model.safetensors") { FileSystem.removeTree($0 + weights) }
    try expect(weights, "not a valid safetensors file") {
      let bytes = try FileSystem.read($0 + weights)
      try FileSystem.write($0 + weights, String(decoding: bytes.prefix(100), as: UTF8.self))
    }
    try expect("", "has no lora_B.weight") {
      try rewrite($0) { $0.hasSuffix("layers.1.mlp.up_proj.lora_B.weight") ? nil : $1 }
    }
    try expect("", "has values that are not finite, in lora_A.weight") {
      try rewrite($0) { name, value in
        name.hasSuffix("layers.1.mlp.up_proj.lora_A.weight")
          ? Tensor(repeating: .infinity, shape: value.shape) : value
      }
    }
    try expect("", "factors of shapes") {
      try rewrite($0) { name, value in
        name.hasSuffix("layers.1.mlp.up_proj.lora_A.weight")
          ? .zeros([value.shape[0] + 1, value.shape[1]]) : value
      }
    }
  }

  /// The weights of DoRA's base come from a folder: the files are those of the same combination in
  /// the library, which is tested by formula.
  @Test func addsDoRAAdapters() throws {
    let folder = try TemporaryFolder()
    let base = folder.file("base")
    try FileSystem.createDirectory(base)
    let weights = try SafetensorsFile(golden("combine/base.safetensors"))
    try SafetensorsWriter.write(
      try weights.names.map { SafetensorsItem($0, try weights.tensor($0)) },
      to: "\(base)/model.safetensors")
    let adapters = ["dora", "dora2"].map { golden("combine/adapters/\($0)") }
    let output = folder.file("sum")
    let outcome = try combine(
      "--adapter", "\(adapters[0])=0.7", "--adapter", "\(adapters[1])=-0.4", "--type", "cat",
      "--base", base, into: output)
    #expect(outcome.status == 0, "\(outcome.errors)")
    var sources: [CombinationSource] = []
    for (path, weight) in zip(adapters, [0.7, -0.4]) {
      let state = try AdapterValues(folder: AdapterFolder(path), registry: .standard)
      sources.append(CombinationSource(state, weight: weight))
    }
    let expected = try TunerRegistry.standard.combine(
      sources, Combination(.cat),
      base: BaseWeights { (path, outputs, inputs, isEmbedding) throws(PEFTError) in
        try BaseWeights.oriented(
          try weights.tensor("\(path).weight"), outputs: outputs, inputs: inputs,
          isTransposed: isEmbedding ? true : nil, at: path)
      }
    ).state
    let made = try AdapterFolder(output)
    #expect(made.config["use_dora"] == true)
    #expect(Set(made.tensors.names) == Set(expected.tensors.map(\.key)))
    #expect(made.tensors.names.contains { $0.hasSuffix("lora_magnitude_vector") })
    for (key, value) in expected.tensors {
      #expect(try made.tensors.tensor(key).scalars == value.scalars, "\(key)")
    }
  }

  /// Published adapters for different models (s is 2 in both): each module has w·s·B·A, and a warning
  /// says that the models differ.
  @Test func combinesPublishedAdapters() throws {
    guard let first = TestData.path("adapters/dialogpt-small-synthetic"),
      let second = TestData.path("adapters/gpt-neo-125m-movies")
    else { return }
    let folder = try TemporaryFolder()
    let outcome = try combine(
      "--adapter", "\(first)=0.5", "--adapter", "\(second)=-0.25", "--type", "linear",
      into: folder.file("new"))
    #expect(outcome.status == 0, "\(outcome.errors)")
    #expect(outcome.errors.contains("different base models"))
    let made = try AdapterFolder(folder.file("new"))
    #expect(made.config["r"] == 8 && made.config["lora_alpha"] == 8)
    #expect(made.config["target_modules"] == ["c_attn", "c_proj", "q_proj", "v_proj"])
    var count = 0
    for (path, gain) in [(first, 1.0), (second, -0.5)] {
      let source = try AdapterFolder(path).tensors
      for key in source.names where key.hasSuffix("lora_A.weight") {
        let other = key.replacing("lora_A", with: "lora_B")
        let own = try FactoredChange(
          a: made.tensors.tensor(key), b: made.tensors.tensor(other))
        let expected = try FactoredChange(a: source.tensor(key), b: source.tensor(other))
        #expect(relativeError(own.product(), expected.product(scale: gain)) < 1e-5, "\(key)")
        count += 2
      }
    }
    #expect(count == made.tensors.names.count)
    // An adapter minus itself is nothing, at a rank that it still has room for.
    let nothing = try combine(
      "--adapter", "\(first)=1", "--adapter", "\(first)=-1", "--type", "cat",
      into: folder.file("nothing"))
    #expect(nothing.status == 0, "\(nothing.errors)")
    let zeros = try AdapterFolder(folder.file("nothing")).tensors
    for key in zeros.names where key.hasSuffix("lora_A.weight") {
      let change = try FactoredChange(
        a: zeros.tensor(key), b: zeros.tensor(key.replacing("lora_A", with: "lora_B")))
      #expect(change.rank == 16 && change.product().maximumMagnitude < 1e-6, "\(key)")
    }
  }

  /// Labels and settings come from the adapter whose classifier the new one has.
  @Test func keepsWhatTheTrainingLeft() throws {
    let folder = try TemporaryFolder()
    let head = try folder.copy(golden("bert/adapter_a"), as: "head")
    try FileSystem.write("\(head)/labels.json", #"["a", "b", "c", "d", "e"]"#)
    try record(modelConfig: JSONValue.object(JSONObject()), in: head)
    let other = try folder.copy(golden("bert/adapter_c"), as: "other")
    try FileSystem.write("\(other)/labels.json", #"["wrong", "labels"]"#)
    let output = folder.file("sum")
    let outcome = try combine("--adapter", other, "--adapter", head, "--type", "cat", into: output)
    #expect(outcome.status == 0, "\(outcome.errors)")
    for name in ["labels.json", "training_config.json"] {
      #expect(try FileSystem.read("\(output)/\(name)") == FileSystem.read("\(head)/\(name)"))
    }
    // Without a head the settings are kept too, as they say what model the adapter is for.
    let (a, b) = (golden("llama/adapter_a"), try folder.copy(golden("llama/adapter_b"), as: "b"))
    try record(modelConfig: ["rms_norm_eps": 0.5], in: b)
    let differs = try combine("--adapter", a, "--adapter", b, into: folder.file("two"))
    #expect(differs.status == 1)
    #expect(differs.errors.hasPrefix("error: \(b): the model's 'rms_norm_eps' was 0.5"))
    #expect(differs.errors.contains("'\(a)'"), "\(differs.errors)")
    #expect(!FileSystem.exists(folder.file("two")))
    let alone = try combine("--adapter", "\(b)=0.5", into: folder.file("two"))
    #expect(alone.status == 0, "\(alone.errors)")
    #expect(
      try AdapterFolder(folder.file("two")).trainingFiles().map(\.name) == ["training_config.json"])
  }

  @Test func drawsWithTheSeed() throws {
    let folder = try TemporaryFolder()
    func bytes(_ name: String, _ seed: String) throws -> [UInt8] {
      let outcome = try combine(
        "--adapter", "\(golden("llama/adapter_a"))=0.5", "--adapter",
        "\(golden("llama/adapter_a"))=-0.2", "--type", "dare_ties_svd", "--density", "0.5",
        "--seed", seed, into: folder.file(name))
      #expect(outcome.status == 0, "\(outcome.errors)")
      let file = try SafetensorsFile("\(folder.file(name))/adapter_model.safetensors")
      return try file.bytes(file.names[0])
    }
    let first = try bytes("one", "1")
    #expect(try bytes("same", "1") == first)
    #expect(try bytes("two", "2") != first)
  }

  @Test func refusesWrongInput() throws {
    let folder = try TemporaryFolder()
    let a = golden("llama/adapter_a")
    let b = golden("llama/adapter_b")
    func expect(_ arguments: [String], _ text: String) throws {
      let outcome = try Tool.run(["combine", "--output", folder.file("new")] + arguments)
      #expect(outcome.status == 1, "\(arguments)")
      #expect(outcome.errors.hasPrefix("error: \(text)"), "\(outcome.errors)")
      #expect(folder.names.isEmpty)
    }
    let both = ["--adapter", a, "--adapter", b]
    try expect(both + ["--type", "mean"], "--type: Invalid combination_type: mean")
    try expect(
      both + ["--type", "ties"], "'density' is missing, combination_type ties needs it")
    try expect(
      both + ["--type", "ties", "--density=-0.5"], "Density should be >= 0, got -0.5")
    try expect(
      both + ["--majority-sign-method", "mean"],
      "--majority-sign-method: Unimplemented mask method \"mean\"")
    try expect(["--adapter", "\(a)=heavy"], "--adapter: 'heavy' is not a weight")
    try expect(
      ["--adapter", folder.file("none")], "\(folder.file("none")): no such adapter folder")
    try expect(
      both + ["--type", "ties", "--density", "0.5"],
      "model.layers.0.mlp.down_proj: All adapters must have the same r value")
    try expect(
      ["--adapter", golden("bert/adapter_a"), "--adapter", golden("bert/adapter_b")],
      "Cannot add weighted adapters if they target the same module with modules_to_save")
    try expect(
      ["--adapter", golden("bert/adapter_a"), "--compatibility", "peft"],
      "\(golden("bert/adapter_a")): 'modules_to_save'")
    try expect(
      ["--adapter", golden("edora/linear/adapter"), "--adapter", a],
      "adapters of the methods EDORA, LORA cannot be combined")
    try expect(
      ["--adapter", golden("combine/adapters/dora"), "--adapter", golden("combine/adapters/a")],
      "linear: combining DoRA adapters needs the weights of the base model")
    try expect(
      ["--adapter", a, "--adapter", golden("combine/adapters/a"), "--svd-rank", "0"],
      "'svd_rank' is 0")
    try expect(both + ["--svd-clamp", "2"], "'svd_clamp' is 2.0")
    try expect(both + ["--base", folder.file("none")], "\(folder.file("none")): ")
    let copy = try folder.copy(a, as: "copy")
    let outcome = try Tool.run(
      ["combine", "--adapter", copy, "--output", copy, "--overwrite"])
    #expect(outcome.errors.hasPrefix("error: --output: '\(copy)' is one of the inputs"))
    let base = try folder.copy(golden("llama/model"), as: "base")
    let onBase = try Tool.run(
      ["combine", "--adapter", a, "--base", base, "--output", base, "--overwrite"])
    #expect(onBase.errors.hasPrefix("error: --output: '\(base)' is one of the inputs"))
    #expect(try FileSystem.list(base) == FileSystem.list(golden("llama/model")))
    let taken = try Tool.run(["combine", "--adapter", a, "--output", copy])
    #expect(taken.errors.hasPrefix("error: --output: '\(copy)' exists and is not empty"))
    #expect(try FileSystem.list(copy) == FileSystem.list(a))
  }
}
