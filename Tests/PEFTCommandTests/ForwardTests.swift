import PEFT
import Testing

@testable import PEFTCommand

/// `peft forward` on the tiny golden models, run as a process; the expected numbers are what peft
/// and transformers compute in float32 (Tests/Goldens/make_goldens.py).
struct ForwardTests {
  /// A golden folder and one way to run it.
  struct Mode: Sendable, CustomTestStringConvertible {
    var folder: String
    /// The end of the expected tensors' names.
    var suffix: String
    var arguments: [String] = []
    /// The start of the expected gradients' names, where there are some.
    var gradients: String?

    var testDescription: String { "\(folder) \(suffix)" }
  }

  static let modes: [Mode] = {
    let adapters = [
      "bert": ["a", "b", "c"], "bert-base": ["a", "b"], "llama": ["a", "b"],
      "llama-bias": ["a", "b"], "qwen2": ["a", "b"],
    ]
    var modes: [Mode] = []
    for (folder, names) in adapters.sorted(by: { $0.key < $1.key }) {
      func adapter(_ name: String) -> [String] {
        ["--adapter", "\(golden("\(folder)/adapter_\(name)"))=\(name)"]
      }
      modes.append(Mode(folder: folder, suffix: "base"))
      for name in names {
        let prefix: String?
        switch (folder, name) {
        case ("bert-base", _), ("bert", "c"): prefix = nil
        case (_, "a"): prefix = "grad."
        default: prefix = "grad_\(name)."
        }
        let own = adapter(name)
        modes += [
          Mode(folder: folder, suffix: name, arguments: own, gradients: prefix),
          Mode(folder: folder, suffix: "\(name)_merged", arguments: own + ["--merge"]),
          Mode(folder: folder, suffix: "\(name)_disabled", arguments: own + ["--active", ""]),
        ]
      }
      let second = folder == "bert" ? "c" : "b"
      let two = adapter("a") + adapter(second) + ["--active", "a,\(second)"]
      modes += [
        Mode(folder: folder, suffix: "two", arguments: two),
        Mode(folder: folder, suffix: "two_merged", arguments: two + ["--merge"]),
      ]
    }
    // A classifier on a base without one: the adapter says how many labels there are.
    let head = ["--adapter", golden("bert-base/adapter_cls")]
    return modes + [
      Mode(folder: "bert-base", suffix: "cls", arguments: head, gradients: "grad_cls."),
      Mode(folder: "bert-base", suffix: "cls_merged", arguments: head + ["--merge"]),
      Mode(
        folder: "llama", suffix: "base",
        arguments: ["--adapter", golden("llama/adapter_a"), "--active", "__base__"]),
    ]
  }()

  @Test(arguments: modes)
  func outputsEqualPeft(_ mode: Mode) throws {
    let folder = try TemporaryFolder()
    let (output, slopes) = (folder.file("out.safetensors"), folder.file("grad.safetensors"))
    var arguments = [
      "forward", "--model", golden("\(mode.folder)/model"), "--input",
      golden("\(mode.folder)/input.safetensors"), "--output", output,
    ]
    if mode.gradients != nil { arguments += ["--gradients", slopes] }
    try Tool.succeed(arguments + mode.arguments)

    let expected = try SafetensorsFile(golden("\(mode.folder)/expected.safetensors"))
    let input = try SafetensorsFile(golden("\(mode.folder)/input.safetensors"))
    let (_, mask) = try input.integers("attention_mask")
    let found = try SafetensorsFile(output)
    #expect(found.names.contains { $0 == "logits" || $0 == "last_hidden_state" })
    for name in found.names {
      var actual = try found.tensor(name)
      var wanted = try expected.tensor("\(name).\(mode.suffix)")
      #expect(actual.shape == wanted.shape)
      if wanted.shape.count == 3 {
        let visible = mask.indices.filter { mask[$0] == 1 }.map { Int32($0) }
        actual = actual.reshaped([actual.rows, actual.columns]).selectRows(visible)
        wanted = wanted.reshaped([wanted.rows, wanted.columns]).selectRows(visible)
      }
      #expect(relativeError(actual, wanted) < 1e-5, "\(name)")
    }
    guard let prefix = mode.gradients else { return }
    let gradients = try SafetensorsFile(slopes)
    let keys = expected.names.filter { $0.hasPrefix(prefix) }.map { $0.dropFirst(prefix.count) }
    #expect(Set(gradients.names) == Set(keys.map(String.init)))
    for key in gradients.names {
      let error = relativeError(
        try gradients.tensor(key), try expected.tensor("\(prefix)\(key)"))
      #expect(error < 1e-4, "\(key): \(error)")
    }
  }

  /// OpenMP may give fewer threads than the tool asks for.
  @Test(arguments: [["OMP_THREAD_LIMIT": "1"], ["OMP_MAX_ACTIVE_LEVELS": "0"]])
  func limitsOnThreadsChangeNothing(_ limit: [String: String]) throws {
    let folder = try TemporaryFolder()
    let ids: [Int64] = (0..<160).map { (place: Int64) in place * 7 % 90 + 1 }
    let input = folder.file("input.safetensors")
    try SafetensorsWriter.write(
      [SafetensorsItem("input_ids", shape: [4, 40], integers: ids)], to: input)
    var outputs: [Tensor] = []
    for variables in [[:], limit] {
      let output = folder.file("out\(outputs.count).safetensors")
      try Tool.succeed(
        [
          "forward", "--model", golden("llama/model"), "--input", input, "--output", output,
          "--threads", "4",
        ], variables)
      outputs.append(try SafetensorsFile(output).tensor("logits"))
    }
    #expect(relativeError(outputs[1], outputs[0]) < 1e-5)
  }

  @Test func bfloat16IsNear() throws {
    let folder = try TemporaryFolder()
    let output = folder.file("out.safetensors")
    try Tool.succeed([
      "forward", "--model", golden("llama/model"), "--input",
      golden("llama/input.safetensors"), "--output", output, "--precision", "bfloat16",
    ])
    let loss = try SafetensorsFile(output).tensor("loss").item
    let exact = try SafetensorsFile(golden("llama/expected.safetensors")).tensor("loss.base").item
    // bf16 keeps 8 bits of a weight.
    #expect(loss != exact)
    #expect(abs(loss - exact) < 0.01 * exact)
  }

  /// A decoder classifies by the last token that is visible, or that is not the padding token, so
  /// a padded batch must give what each sequence gives alone.
  @Test(arguments: [true, false])
  func classifiesByTheLastToken(_ hasMask: Bool) throws {
    let folder = try TemporaryFolder()
    let model = try folder.copy(golden("llama/model"), as: "model")
    let path = FileSystem.join(model, "config.json")
    var config = try #require(try FileSystem.readJSON(path).object)
    config["pad_token_id"] = 0
    try FileSystem.write(path, JSONValue.object(config).text())
    let sequences: [[Int64]] = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]

    func logits(_ rows: [[Int64]], _ name: String) throws -> Tensor {
      let width = rows.map(\.count).max()!
      let ids = rows.flatMap { $0 + [Int64](repeating: 0, count: width - $0.count) }
      let mask = rows.flatMap { row in (0..<width).map { Int64($0 < row.count ? 1 : 0) } }
      var items = [SafetensorsItem("input_ids", shape: [rows.count, width], integers: ids)]
      if hasMask {
        items.append(
          SafetensorsItem("attention_mask", shape: [rows.count, width], integers: mask))
      }
      let (input, output) = (folder.file("\(name)-in"), folder.file("\(name)-out"))
      try SafetensorsWriter.write(items, to: input)
      try Tool.succeed([
        "forward", "--model", model, "--task", "SEQ_CLS", "--input", input, "--output", output,
      ])
      return try SafetensorsFile(output).tensor("logits")
    }
    let together = try logits(sequences, "all")
    #expect(together.shape == [3, 2])
    for (row, sequence) in sequences.enumerated() {
      let alone = try logits([sequence], "\(row)")
      #expect(relativeError(together.rowRange(row..<row + 1), alone) < 1e-5)
    }
  }
}
