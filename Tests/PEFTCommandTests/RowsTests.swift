import PEFT
import TestSupport
import Testing

@testable import PEFTCommand

/// `--rows`: each row of a batch with its own adapter. The expected numbers are peft's for each
/// adapter alone (Tests/Goldens/make_goldens.py).
struct RowsTests {
  @Test(arguments: ["bert", "llama", "qwen2"])
  func rowsOfAForwardPass(_ model: String) throws {
    let folder = try TemporaryFolder()
    let output = folder.file("out.safetensors")
    try Tool.succeed([
      "forward", "--model", golden("\(model)/model"), "--adapter",
      "\(golden("\(model)/adapter_a"))=a", "--adapter", "\(golden("\(model)/adapter_b"))=b",
      "--rows", "b, __base__,a", "--input", golden("\(model)/input.safetensors"), "--output",
      output,
    ])
    let expected = try SafetensorsFile(golden("\(model)/expected.safetensors"))
    let input = try SafetensorsFile(golden("\(model)/input.safetensors"))
    let (shape, mask) = try input.integers("attention_mask")
    let found = try SafetensorsFile(output).tensor("logits")
    for (row, name) in ["b", "base", "a"].enumerated() {
      let wanted = try expected.tensor("logits.\(name)")
      #expect(found.shape == wanted.shape)
      let places =
        wanted.shape.count == 2
        ? [Int32(row)]
        : (row * shape[1]..<(row + 1) * shape[1]).filter { mask[$0] == 1 }.map { Int32($0) }
      func rows(_ tensor: Tensor) -> Tensor {
        tensor.reshaped([tensor.rows, tensor.columns]).selectRows(places)
      }
      #expect(relativeError(rows(found), rows(wanted)) < 1e-5, "\(name)")
    }
  }

  /// Every text is what its adapter alone generates.
  @Test func rowsOfAGeneration() throws {
    guard let model = TestData.path("stories260k") else { return }
    let folder = try TemporaryFolder()
    let peft = PeftModel(try ModelLoader.load(model))
    for (seed, name) in ["a", "b"].enumerated() {
      try peft.add(
        name, LoRAConfig(taskType: .causalLM, initialization: .random), seed: UInt64(seed))
      try peft.save(folder.file(name), adapter: name)
    }
    func text(_ arguments: [String], prompt: String = "Lily") throws -> String {
      try Tool.succeed(
        ["generate", "--model", model, "--max-new-tokens", "20", "--prompt", prompt] + arguments
      ).output
    }
    let adapters = ["a", "b"].flatMap { ["--adapter", "\(folder.file($0))=\($0)"] }
    let own = try ["a", "b", ""].map { try text(adapters + ["--active", $0]) }
    #expect(Set(own).count == 3)
    #expect(
      try text(adapters + ["--rows", "b,__base__,a,b"])
        == "[1 b]\n\(own[1])[2 __base__]\n\(own[2])[3 a]\n\(own[0])[4 b]\n\(own[1])")
    // Several prompts, with rows and without.
    let other = try text(adapters + ["--active", "b"], prompt: "Once")
    #expect(
      try text(adapters + ["--prompt", "Once", "--rows", "a,b"])
        == "[1 a]\n\(own[0])[2 b]\n\(other)")
    #expect(
      try text(adapters + ["--prompt", "Once", "--active", "b"]) == "[1]\n\(own[1])[2]\n\(other)")
  }

  @Test func wrongRowsAreNamed() throws {
    let folder = try TemporaryFolder()
    let model = golden("llama/model")
    let adapters = ["a", "b"].flatMap { ["--adapter", "\(golden("llama/adapter_\($0)"))=\($0)"] }
    let forward =
      [
        "forward", "--model", model, "--input", golden("llama/input.safetensors"), "--output",
        folder.file("out"),
      ] + adapters
    for (arguments, text) in [
      (
        ["--rows", "a,zebra,ant"],
        "--rows: Trying to infer with non-existing adapter(s): ant, zebra. There are: a, b."
      ),
      (["--rows", "a,b"], "--rows: 2 names for a batch of 3 rows"),
      (["--rows", "a,,b"], "--rows: Trying to infer with non-existing adapter(s): "),
      (["--rows", "a,b,a", "--merge"], "--rows gives each row its own adapter: remove --merge"),
      (
        ["--rows", "a,b,a", "--gradients", folder.file("g")],
        "--rows gives each row its own adapter: remove --gradients"
      ),
    ] {
      let outcome = try Tool.run(forward + arguments)
      #expect(outcome.status != 0 && outcome.errors.contains(text), "\(outcome.errors)")
      #expect(folder.names.isEmpty)
    }
  }
}
