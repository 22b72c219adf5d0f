import PEFT
import Testing

@testable import PEFTCommand
@testable import Tensors

/// Trees and counts as transformers and peft print them (Tests/Goldens/generator/inspection.py).
struct InspectTests {
  static func text(_ arguments: [String]) throws -> String {
    try Inspect.parse(arguments).text()
  }

  static func expected(_ relative: String) throws -> String {
    let text = String(decoding: try FileSystem.read(golden("inspect/\(relative)")), as: UTF8.self)
    return String(text.reversed().drop { $0 == "\n" }.reversed())
  }

  @Test(
    arguments: [
      ("qwen2-0.5b-instruct", nil), ("stories260k", nil), ("minilm-seq-cls", "SEQ_CLS"),
    ] as [(String, String?)])
  func treesEqualPeft(_ name: String, _ task: String?) throws {
    let folder = golden("inspect/\(name)")
    let plain = try Self.text([folder] + (task.map { ["--task", $0] } ?? []))
    let (tree, count) = Self.splitLast(plain)
    #expect(tree == (try Self.expected("\(name)/before.txt")))
    #expect(count.hasPrefix("all params: "))

    let adapted = try Self.text([folder, "--lora", "\(folder)/lora.json"])
    let (adaptedTree, report) = Self.splitLast(adapted)
    #expect(adaptedTree == (try Self.expected("\(name)/after.txt")))
    #expect(report == (try Self.expected("\(name)/parameters.txt")))
  }

  /// DoRA as peft prints it, whether the method or the setting says so.
  @Test func showsDoRA() throws {
    let folder = golden("inspect/stories260k")
    let expected = try ["after-dora", "parameters-dora"].map {
      try Self.expected("stories260k/\($0).txt")
    }
    for arguments in [
      ["--lora", "\(folder)/lora.json", "--method", "dora"],
      [
        "--lora",
        #"{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_dora": true}"#,
      ],
    ] {
      #expect(try Self.text([folder] + arguments) == expected.joined(separator: "\n"))
    }
  }

  /// Counts of the methods with an R: 5 layers, q_proj [64, 64] and v_proj [32, 64].
  @Test func showsEDoRAAndLoRAXS() throws {
    let folder = golden("inspect/stories260k")
    let settings = #"{"r": 4, "target_modules": ["q_proj", "v_proj"]}"#
    for (method, count) in [("edora", 5 * (2 * 16 + 64 + 32)), ("lora-xs", 5 * 2 * 16)] {
      let text = try Self.text([folder, "--lora", settings, "--method", method])
      #expect(text.contains("trainable params: \(grouped(count)) ||"), "\(method)")
      #expect(
        text.contains(
          "(default_lora_latent_mapping): Linear(in_features=4, out_features=4, bias=False)"))
      #expect(text.contains("DoraLinearLayer") == (method == "edora"))
    }
    let error = #expect(throws: PEFTError.self) {
      try Self.text([folder, "--lora", settings, "--method", "edorra"])
    }
    #expect(error?.description.contains("edora") == true)
  }

  /// A method is nothing without a new adapter, least of all an unknown one.
  @Test(arguments: ["dora", "edorra"])
  func refusesAMethodAlone(_ method: String) throws {
    for folder in [golden("inspect/stories260k"), golden("bert/adapter_b")] {
      let error = #expect(throws: (any Error).self) {
        try Inspect.parse([folder, "--method", method])
      }
      let text = error.map { Inspect.message(for: $0) } ?? ""
      #expect(text == "--method is that of a new adapter: give its settings with --lora")
    }
  }

  /// The task of a new adapter is the architecture's when nothing names one.
  @Test func takesSettingsInline() throws {
    let folder = golden("inspect/qwen2-0.5b-instruct")
    let settings = #"""
      {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules":
       ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
      """#
    let text = try Self.text([folder, "--lora", settings])
    let expected = try ["after", "parameters"].map {
      try Self.expected("qwen2-0.5b-instruct/\($0).txt")
    }
    #expect(text == expected.joined(separator: "\n"))
  }

  @Test func showsAdaptersByName() throws {
    let text = try Self.text([
      golden("llama/model"), "--adapter", golden("llama/adapter_a"), "--adapter",
      "\(golden("llama/adapter_b"))=second",
    ])
    #expect(text.contains("(default): Linear(in_features=32, out_features=4, bias=False)"))
    #expect(text.contains("(second): Linear(in_features=32, out_features=6, bias=False)"))
    // Only the first is active, and only it counts as trainable: 3 layers of
    // 4·((32+32) + (32+16)·2 + (32+32) + (32+56)·3) parameters.
    #expect(text.contains("trainable params: \(grouped(3 * 4 * (64 + 96 + 64 + 264))) ||"))
  }

  /// What depends on the base's values cannot be looked at in a model that has none: the base of a
  /// compact adapter, an embedding that was saved along, the first values of trained rows.
  @Test func describedModelsTakeAdaptersThatKnowTheirBase() throws {
    let folder = try TemporaryFolder()
    let model = golden("llama/model")
    func save(_ name: String, _ config: any TunerConfig) throws -> String {
      let peft = PeftModel(try ModelLoader.load(model))
      try peft.add("default", any: config, seed: 1)
      try peft.save(folder.file(name))
      return folder.file(name)
    }
    let compact = try save(
      "compact",
      EDoRAConfig(
        rank: 2, targets: TargetSelection(.list(["q_proj"])), taskType: .causalLM, isCompact: true))
    var text = try Self.text([model, "--adapter", compact])
    // Three layers, R and m; the table beside them, [99, 32], has no parameter of its own.
    #expect(text.contains("trainable params: \(3 * (4 + 32)) ||"))
    let embedding = try save(
      "embedding",
      LoRAConfig(
        rank: 2, targets: TargetSelection(.list(["embed_tokens"])), taskType: .causalLM))
    #expect(
      try AdapterFolder(embedding).tensors.names.contains {
        $0.hasSuffix("embed_tokens.base_layer.weight")
      })
    text = try Self.text([model, "--adapter", embedding])
    #expect(text.contains("trainable params: \(2 * (99 + 32)) ||"))
    text = try Self.text([
      model, "--lora",
      #"{"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}"#,
    ])
    #expect(text.contains("TrainableTokensLayer"))
    #expect(text.contains("trainable params: \(3 * 4 * (32 + 32) + 2 * 32) ||"))
  }

  @Test func reportsAnAdapterFolder() throws {
    let path = golden("bert/adapter_b")
    let text = try Self.text([path])
    let expected = """
      \(path)
        method         LORA
        task           SEQ_CLS
        base model     bert/model
        rank           3
        alpha          6
        dropout        0.1
        targets        output.dense, query, value
        saved modules  classifier, score
        alpha_pattern  {"^bert.encoder.layer.2.output.dense": 8, "value": 3}
        exclude_modules  attention.output.dense
        rank_pattern
      """
    for line in expected.split(separator: "\n") {
      let words = line.split(separator: " ")
      #expect(
        text.split(separator: "\n").contains { $0.split(separator: " ").starts(with: words) },
        "\(line)")
    }
    let file = try SafetensorsFile("\(path)/adapter_model.safetensors")
    let count = file.entries.reduce(0) { $0 + $1.count }
    #expect(text.contains("\(grouped(count)) parameters in \(file.entries.count) tensors"))
    let line = "base_model.model.bert.encoder.layer.(0,2).attention.self.query.lora_A.weight"
    #expect(text.contains(line))
    #expect(text.contains("[3, 32]  2 x"))
  }

  /// Switches that are on by default, peft's `init_lora_weights` and this package's
  /// `dora_detach_norm`, say something where they are off; others where they are on.
  @Test func switchesAreShownWhereTheyAreNotAtTheirDefault() throws {
    let folder = try TemporaryFolder()
    let peft = PeftModel(try ModelLoader.load(golden("llama/model")))
    func shown(_ name: String, _ change: (inout LoRAConfig) -> Void) throws -> [String] {
      var config = LoRAConfig(
        rank: 2, targets: TargetSelection(.list(["q_proj"])), taskType: .causalLM)
      config.usesDoRA = true
      change(&config)
      try peft.add(name, config)
      try peft.save(folder.file(name), adapter: name)
      return try Self.text([folder.file(name)]).split(separator: "\n")
        .map { $0.split(separator: " ").joined(separator: " ") }
    }
    let keys = ["dora_detach_norm", "init_lora_weights", "use_rslora", "use_dora"]
    func about(_ lines: [String]) -> [String] {
      lines.filter { line in keys.contains { line.hasPrefix($0) } }
    }
    #expect(about(try shown("plain") { _ in }) == ["use_dora true"])
    let others = try shown("others") {
      $0.detachesNorm = false
      $0.initialization = .random
      $0.usesRSLoRA = true
    }
    #expect(
      about(others) == [
        "dora_detach_norm false", "init_lora_weights false", "use_dora true", "use_rslora true",
      ])
  }

  @Test func foldsLayers() {
    func entry(_ name: String, _ shape: [Int]) -> TensorEntry {
      TensorEntry(name: name, type: .float32, shape: shape)
    }
    let groups = TensorGroup.folding([
      entry("m.0.a", [2]), entry("m.1.a", [2]), entry("m.2.a", [3]), entry("m.4.a", [2]),
      entry("head", [5]), entry("m.0.b.1.c", [7]), entry("m.1.b.1.c", [7]),
    ])
    #expect(groups.map(\.name) == ["head", "m.(0-1).b.1.c", "m.(0-1,4).a", "m.2.a"])
    #expect(groups.map(\.count) == [1, 2, 3, 1])
  }

  private static func splitLast(_ text: String) -> (String, String) {
    var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    let last = lines.removeLast()
    return (lines.joined(separator: "\n"), String(last))
  }
}
