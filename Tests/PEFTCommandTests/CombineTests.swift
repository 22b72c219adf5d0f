import PEFT
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
    // An input is never the output, and what is there stays.
    let copy = try folder.copy(a, as: "copy")
    let outcome = try Tool.run(
      ["combine", "--adapter", copy, "--output", copy, "--overwrite"])
    #expect(outcome.errors.hasPrefix("error: --output: '\(copy)' is one of the inputs"))
    let taken = try Tool.run(["combine", "--adapter", a, "--output", copy])
    #expect(taken.errors.hasPrefix("error: --output: '\(copy)' exists and is not empty"))
    #expect(try FileSystem.list(copy) == FileSystem.list(a))
  }
}
