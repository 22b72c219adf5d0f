import Foundation
import PEFT
import Testing

@testable import PEFTCommand

/// Bad input ends with a message that names the file, key or flag, a status that is not 0, and
/// nothing written.
struct ErrorTests {
  /// Runs the tool on a folder of its own; `@` in an argument is that folder, `%` the goldens'.
  private func expectFailure(
    _ line: String, _ parts: [String], in folder: TemporaryFolder,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let before = folder.names
    let arguments = line.split(separator: " ").map { word in
      String(word).replacing("@", with: folder.path).replacing("%/", with: golden(""))
    }
    let outcome = try Tool.run(arguments)
    #expect(outcome.status != 0, "\(line)", sourceLocation: sourceLocation)
    #expect(outcome.errors.contains("error: "), "\(outcome.errors)", sourceLocation: sourceLocation)
    for part in parts {
      #expect(
        outcome.errors.contains(part.replacing("@", with: folder.path)),
        "\(line): \(outcome.errors)", sourceLocation: sourceLocation)
    }
    #expect(folder.names == before, "\(line)", sourceLocation: sourceLocation)
  }

  private static let input = "--input %/llama/input.safetensors --output @/out"
  private static let forward = "forward --model %/llama/model " + input

  @Test(
    arguments: [
      ("forward --model @/none \(input)", ["@/none: no such model folder"]),
      (forward + " --adapter @/none", ["@/none: no such adapter folder"]),
      (
        "forward --model %/llama/model --input @/none --output @/out",
        ["@/none: ", "No such file"]
      ),
      (
        "forward --model %/llama/model --input %/llama/losses.json --output @/out",
        ["losses.json: not a valid safetensors file"]
      ),
      (
        "forward --model %/llama/model --input %/llama/expected.safetensors --output @/out",
        ["expected.safetensors: the tensor", "is not an input"]
      ),
      (
        "forward --model %/llama/model --input %/llama/input.safetensors --output @/no/out",
        ["@/no/out: cannot create"]
      ),
      ("forward --model %/bert/model \(input)", ["input.safetensors: 'labels' has shape [3, 9]"]),
      (forward + " --adapter %/qwen2/adapter_a", ["qwen2/adapter_a", "another base model"]),
      (forward + " --adapter %/bert/adapter_a", ["bert/adapter_a", "'target_modules' is {"]),
      (forward + " --adapter %/llama/adapter_a --active b", ["--active", "'b'"]),
      (forward + " --adapter %/llama/adapter_a --adapter %/llama/adapter_b=default", ["--adapter"]),
      (forward + " --task FOO", ["--task", "'FOO'", "SEQ_CLS"]),
      (forward + " --task SEQ_2_SEQ_LM", ["SEQ_2_SEQ_LM", "such as T5"]),
      (forward + " --precision float64", ["'float64'", "--precision"]),
      (forward + " --threads 0", ["--threads is 0"]),
      (forward + " --gradients @/g", ["--gradients", "no adapter is active"]),
      (
        forward + " --adapter %/llama/adapter_a=a --adapter %/llama/adapter_b=b --active a,b "
          + "--gradients @/g", ["--gradients", "2 adapters are active"]
      ),
      (
        forward + " --adapter %/llama/adapter_a --merge --gradients @/g",
        ["--gradients", "--merge"]
      ),
      ("inspect @/none", ["@/none: no such folder"]),
      ("inspect @", ["@: holds neither config.json nor adapter_config.json"]),
      ("inspect %/llama/model --lora {\"r\":0}", ["--lora: `r` should be a positive integer"]),
      (
        "inspect %/llama/model --lora {\"target_modules\":[\"foo\"]}",
        ["--lora: Target modules {'foo'} not found"]
      ),
      ("inspect %/llama/model --lora {\"lora_alfa\":4}", ["--lora: ", "'lora_alpha'"]),
      ("inspect %/llama/model --lora {\"r\":", ["--lora: not valid JSON"]),
      ("inspect %/llama/model --lora @/none.json", ["@/none.json: cannot open"]),
      ("inspect %/llama/adapter_a --lora {}", ["--lora: ", "is an adapter folder"]),
      ("merge --model %/llama/model --output @/out", ["--adapter: at least one"]),
      (
        "merge --model %/llama/model --adapter %/qwen2/adapter_a --output @/out",
        ["qwen2/adapter_a", "another base model"]
      ),
      (
        "merge --model %/bert/model --adapter %/bert/adapter_a=a --adapter %/bert/adapter_b=b "
          + "--output @/out", ["--adapter: ", "'classifier'"]
      ),
      (
        "merge --model %/llama/model --adapter %/llama/adapter_a --output %/llama/adapter_a "
          + "--overwrite", ["--output: ", "one of the inputs"]
      ),
      (
        "eval --model %/llama/model --data @/none --batch-size 9223372036854775807",
        ["--batch-size must be at most 2147483647"]
      ),
      (
        "predict --model %/llama/model --batch-size 2147483648 text",
        ["--batch-size must be at most 2147483647"]
      ),
      ("generate --model @/none --prompt a", ["@/none"]),
      ("generate --model %/llama/model --prompt a", ["llama/model: there is no tokenizer.json"]),
      ("generate --model %/llama/model --prompt a --top-p 2", ["top-p is 2.0"]),
      ("generate --model %/llama/model --prompt a --top-k 0", ["top-k is 0"]),
      ("generate --model %/llama/model --prompt a --temperature -1", ["temperature"]),
      (
        "generate --model %/llama/model --prompt a --max-new-tokens 0",
        ["--max-new-tokens is 0"]
      ),
    ] as [(String, [String])])
  func badArguments(_ line: String, _ parts: [String]) throws {
    try expectFailure(line, parts, in: try TemporaryFolder())
  }

  /// What a command reads is not overwritten.
  @Test func outputsDoNotReplaceInputs() throws {
    let folder = try TemporaryFolder()
    let model = try folder.copy(golden("llama/model"), as: "model")
    let adapter = try folder.copy(golden("llama/adapter_a"), as: "adapter")
    let input = try folder.copy(golden("llama/input.safetensors"), as: "input.safetensors")
    for (flag, path) in [
      ("--output", input), ("--output", "\(model)/model.safetensors"),
      ("--output", "\(model)/../adapter/adapter_model.safetensors"), ("--gradients", input),
    ] {
      let before = try FileSystem.read(path)
      var arguments = [
        "forward", "--model", model, "--adapter", adapter, "--input", input, flag, path,
      ]
      if flag != "--output" { arguments += ["--output", folder.file("out")] }
      let outcome = try Tool.run(arguments)
      #expect(outcome.status == 1 && outcome.errors.contains("\(flag): "), "\(outcome.errors)")
      #expect(try FileSystem.read(path) == before)
    }
    #expect(!folder.names.contains("out"))
    // What the tool wrote there itself is no input.
    for _ in 0..<2 {
      try Tool.succeed([
        "forward", "--model", model, "--input", input, "--output", "\(model)/out.safetensors",
      ])
    }
    let same = try Tool.run([
      "forward", "--model", model, "--adapter", adapter, "--input", input, "--output",
      folder.file("out"), "--gradients", "\(model)/../out",
    ])
    #expect(same.errors.contains("--gradients: names the same file as --output"), "\(same.errors)")
  }

  /// The weights are those of another model than config.json's.
  @Test func unusedTensorsAreTold() throws {
    let folder = try TemporaryFolder()
    let model = try folder.copy(golden("llama/model"), as: "model")
    let path = "\(model)/model.safetensors"
    let file = try SafetensorsFile(path)
    var items = try file.names.map { SafetensorsItem($0, try file.tensor($0)) }
    let name = "model.layers.0.self_attn.q_proj.bias"
    items += [
      SafetensorsItem(name, .zeros([4])),
      SafetensorsItem("model.layers.0.self_attn.rotary_emb.inv_freq", .zeros([4])),
    ]
    try SafetensorsWriter.write(items, to: path)
    let outcome = try Tool.succeed([
      "forward", "--model", model, "--input", golden("llama/input.safetensors"), "--output",
      folder.file("out"),
    ])
    #expect(
      outcome.errors.contains(
        "warning: \(model) holds '\(name)', which the model of its config.json does not have"),
      "\(outcome.errors)")
  }

  /// Headers that lie; the file's bytes are those of the golden model but for the header.
  @Test(arguments: [
    ("length", "its header claims"), ("truncated", "truncated"), ("overlap", "overlaps"),
    ("type", "needs"), ("missing", "the tensor 'model.norm.weight' is missing"),
    ("shape", "has shape [16, 64]"), ("json", "not valid JSON"),
  ])
  func corruptWeights(_ fault: String, _ message: String) throws {
    let folder = try TemporaryFolder()
    let model = try folder.copy(golden("llama/model"), as: "model")
    let path = "\(model)/model.safetensors"
    var bytes = try FileSystem.read(path)
    let length = (0..<8).reduce(0) { $0 | Int(bytes[$1]) << (8 * $1) }
    var header = String(decoding: bytes[8..<8 + length], as: UTF8.self)
    func replace(_ old: String, _ new: String) throws {
      try #require(header.contains(old))
      header = header.replacing(old, with: new, maxReplacements: 1)
    }
    let query = "\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":\"F32\","
    switch fault {
    case "length": bytes[5] = 1
    case "truncated": bytes.removeLast(100)
    case "overlap":
      let object = try #require(try JSONValue(parsing: header).object?["model.norm.weight"])
      let start = try #require(object["data_offsets"]?.array?.first?.int)
      try replace("[\(start),", "[\(start - 8),")
      try replace("\(start + 128)]", "\(start + 120)]")
    case "type": try replace(query, query.replacing("F32", with: "F64"))
    case "missing": try replace("model.norm.weight", "model.form.weight")
    case "shape": try replace(query + "\"shape\":[32,32]", query + "\"shape\":[16,64]")
    default: try replace("{\"dtype\"", "[\"dtype\"")
    }
    if fault != "length" { bytes.replaceSubrange(8..<8 + length, with: Array(header.utf8)) }
    try Data(bytes).write(to: URL(fileURLWithPath: path))
    try expectFailure(
      "forward --model @/model " + Self.input,
      [fault == "missing" ? "@/model" : "@/model/model.safetensors", message], in: folder)
    try expectFailure(
      "merge --model @/model --adapter %/llama/adapter_a --output @/out", [message], in: folder)
  }

  @Test func inputMustFitTheModel() throws {
    let folder = try TemporaryFolder()
    func write(_ name: String, _ items: [SafetensorsItem]) throws {
      try SafetensorsWriter.write(items, to: folder.file(name))
    }
    func ids(_ values: [Int64], _ shape: [Int]) -> SafetensorsItem {
      SafetensorsItem("input_ids", shape: shape, integers: values)
    }
    try write("none", [SafetensorsItem("labels", shape: [1], integers: [1])])
    try write("float", [SafetensorsItem("input_ids", Tensor.zeros([1, 2]))])
    try write("flat", [ids([1, 2], [2])])
    try write("large", [ids([1, 99], [1, 2])])
    try write(
      "mask",
      [ids([1, 2], [1, 2]), SafetensorsItem("attention_mask", shape: [2], integers: [1, 1])])
    try write(
      "label",
      [ids([1, 2], [1, 2]), SafetensorsItem("labels", shape: [1, 2], integers: [1, 99])])
    try write(
      "types",
      [ids([1, 2], [1, 2]), SafetensorsItem("token_type_ids", shape: [1, 2], integers: [0, 2])])
    try write("long", [ids([Int64](repeating: 1, count: 41), [1, 41])])
    try write("numbers", [ids([1, 2], [1, 2]), SafetensorsItem("labels", Tensor.zeros([1, 2]))])
    for (name, model, part) in [
      ("none", "llama", "'input_ids' is missing"), ("float", "llama", "F32"),
      ("flat", "llama", "[batch, tokens]"), ("large", "llama", "the token 99"),
      ("mask", "llama", "'attention_mask' has shape [2]"), ("label", "llama", "'labels' holds 99"),
      ("types", "bert-base", "'token_type_ids' holds 2"), ("long", "bert-base", "41 tokens"),
      ("numbers", "llama", "the labels are of another kind"),
    ] {
      try expectFailure(
        "forward --model %/\(model)/model --input @/\(name) --output @/out", ["@/\(name)", part],
        in: folder)
    }
  }

  @Test func outputsOfAForwardPassAreAllOrNone() throws {
    let folder = try TemporaryFolder()
    let line = "forward --model %/llama/model --adapter %/llama/adapter_a " + Self.input
    for (output, gradients) in [("@/no/out", "@/slopes"), ("@/out", "@/no/slopes")] {
      try expectFailure(
        line.replacing("@/out", with: output) + " --gradients \(gradients)", ["@/no"], in: folder)
      #expect(folder.names.isEmpty, "\(folder.names)")
    }
  }

  @Test func overwritingLosesNoInputs() throws {
    let folder = try TemporaryFolder()
    try FileSystem.createDirectory(folder.file("run"))
    _ = try folder.copy(golden("llama/adapter_a"), as: "run/checkpoint-1")
    _ = try folder.copy(golden("llama/adapter_a"), as: "run/adapter")
    try FileSystem.createDirectory(folder.file("notes"))
    try FileSystem.write(folder.file("notes/notes.txt"), "mine")
    for (adapter, output, message) in [
      ("%/llama/adapter_a", "@/notes", "neither a model nor an adapter"),
      ("@/run/checkpoint-1", "@/run", "holds the input"),
      ("@/run/checkpoint-1", "@/run/checkpoint-1", "one of the inputs"),
    ] {
      for command in ["merge --model %/llama/model", "combine --type cat"] {
        try expectFailure(
          "\(command) --adapter \(adapter) --output \(output) --overwrite",
          ["--output: ", message], in: folder)
      }
    }
    #expect(folder.names == ["notes", "run"])
    #expect(try FileSystem.list(folder.file("run")) == ["adapter", "checkpoint-1"])
  }

  /// The limit on a file's size stands in for a full disk: writing fails half-way.
  @Test func halfWrittenFilesAreRemoved() throws {
    let folder = try TemporaryFolder()
    for (command, limit) in [
      ("forward --model %/llama/model --input %/llama/input.safetensors --output @/out", 4),
      ("merge --model %/llama/model --adapter %/llama/adapter_a --output @/out", 40),
    ] {
      let line = command.replacing("@", with: folder.path).replacing("%/", with: golden(""))
      let process = Process()
      process.executableURL = URL(fileURLWithPath: "/bin/bash")
      let binary = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        .appendingPathComponent("peft").path
      process.arguments = ["-c", "trap '' XFSZ; ulimit -f \(limit); exec '\(binary)' \(line)"]
      let errors = Pipe()
      process.standardError = errors
      try process.run()
      let text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      #expect(process.terminationStatus != 0)
      #expect(text.contains("error: \(folder.path)/out"), "\(text)")
      #expect(folder.names.isEmpty, "\(folder.names)")
    }
  }
}
