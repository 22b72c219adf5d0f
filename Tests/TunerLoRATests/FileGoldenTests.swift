import LayerTestSupport
import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// The forms that adapter and model files come in. The expected logits are what transformers and
/// peft compute after loading each of them (Tests/Goldens/generator/files.py).
struct FileGoldenTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var folder: String
    var testDescription: String { name }
    /// A base rather than an adapter.
    var isBase: Bool { name == "sharded" || name == "pickled" }
  }

  static let cases: [Case] = {
    let object = try? FileSystem.readJSON(TestData.golden("files/cases.json")).object
    return object?.members.map {
      Case(name: $0.key, folder: TestData.golden("files/\($0.value["folder"]?.string ?? "")"))
    } ?? []
  }()

  static func load(_ folder: String = SmallModel.folder) throws -> PeftModel {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return try SmallModel.load(registry, from: folder)
  }

  private func logits(_ peft: PeftModel, rows: [String]? = nil) throws -> Tensor {
    let (shape, ids) = try expected.integers("input_ids")
    let batch = TokenBatch(
      (0..<shape[0]).map { Array(ids[$0 * shape[1]..<($0 + 1) * shape[1]]) })
    return try peft.logits(of: batch, rows: rows)
  }

  private let expected: SafetensorsFile

  init() throws { expected = try SafetensorsFile(TestData.golden("files/expected.safetensors")) }

  private func expect(_ peft: PeftModel, _ name: String) throws {
    let reference = try expected.tensor("logits.\(name)")
    let error = relativeError(try logits(peft).reshaped(reference.shape), reference)
    #expect(error < 1e-5, "\(name): \(error)")
  }

  @Test func everyCaseHasItsLogits() throws {
    #expect(Self.cases.count == 16)
    let names = Set(expected.names.map { $0.replacing("logits.", with: "") })
    #expect(names == Set(Self.cases.map(\.name) + ["base", "input_ids"]))
  }

  @Test(arguments: cases)
  func loadsAndComputesWhatPeftDoes(_ example: Case) throws {
    let peft = try Self.load(example.isBase ? example.folder : SmallModel.folder)
    if !example.isBase {
      let report = try peft.load(example.folder)
      #expect(report.missing.isEmpty && report.unexpected.isEmpty && !report.matched.isEmpty)
    }
    try expect(peft, example.name)
  }

  /// Names of modules, of parts of keys, of layers: all at once on one model, none in the others'
  /// way, and saved as peft saves each of them alone.
  @Test func adapterNamesDoNotCollideWithModuleNames() throws {
    let names = ["mlp", "0", "lora_A", "weight", "model", "self_attn"]
    let peft = try Self.load()
    for name in names { try peft.load(TestData.golden("files/named/\(name)"), as: name) }
    for name in names {
      try peft.setActive([name])
      try expect(peft, "named-\(name)")
    }
    let folder = try TemporaryFolder()
    try peft.saveAll(folder("out"))
    #expect(try FileSystem.list(folder("out")) == names.sorted())
    for name in names {
      let original = TestData.golden("files/named/\(name)/adapter_model.safetensors")
      #expect(
        try FileSystem.read(folder("out/\(name)/adapter_model.safetensors"))
          == FileSystem.read(original), "\(name)")
    }
    // Renaming changes nothing but the name.
    try peft.setActive(["mlp"])
    try peft.rename("mlp", to: "down_proj")
    #expect(peft.activeAdapters == ["down_proj"] && peft.adapterNames[0] == "down_proj")
    try expect(peft, "named-mlp")
    let mixed = try logits(peft, rows: ["down_proj", "0"])
    let half = try expected.tensor("logits.named-mlp")
    let first = half.reshaped([10, 40]).rowRange(0..<5)
    #expect(relativeError(mixed.rowRange(0..<5), first) < 1e-5)
    let second = try expected.tensor("logits.named-0").reshaped([10, 40]).rowRange(5..<10)
    #expect(relativeError(mixed.rowRange(5..<10), second) < 1e-5)
  }

  @Test(arguments: [
    ("plain", ElementType.float32, "plain"), ("bin", .float32, "plain"),
    ("bfloat16", .bfloat16, "bfloat16"), ("bin-bfloat16", .bfloat16, "bfloat16"),
    ("float16", .float16, "float16"), ("plain", .bfloat16, "bfloat16"),
  ])
  func writesTheTypeAskedFor(_ source: String, _ type: ElementType, _ result: String) throws {
    let peft = try Self.load()
    try peft.load(TestData.golden("files/\(source)"))
    let folder = try TemporaryFolder()
    try peft.save(folder("x"), as: type)
    #expect(
      try FileSystem.read(folder("x/adapter_model.safetensors"))
        == FileSystem.read(TestData.golden("files/\(result)/adapter_model.safetensors")))
  }

  /// The default adapter in the folder itself, the other one below it.
  @Test func severalAdaptersKeepTheirPlaces() throws {
    let source = TestData.golden("files/several")
    let peft = try Self.load()
    try peft.load(source)
    try peft.load("\(source)/other", as: "other")
    let folder = try TemporaryFolder()
    _ = try folder.write("note.txt", "not ours")
    for path in [folder.path, folder("new")] {
      try peft.saveAll(path)
      for part in ["", "other/"] {
        let name = "\(part)adapter_model.safetensors"
        #expect(
          try FileSystem.read("\(path)/\(name)") == FileSystem.read("\(source)/\(name)"))
        let written = try FileSystem.readJSON("\(path)/\(part)adapter_config.json")
        let original = try FileSystem.readJSON("\(source)/\(part)adapter_config.json")
        for key in ["r", "lora_alpha", "task_type", "peft_type", "inference_mode"] {
          #expect(written[key] == original[key], "\(key)")
        }
      }
    }
    #expect(FileSystem.exists(folder("note.txt")))
    let error = #expect(throws: (any Error).self) {
      try peft.saveAll(folder("none"), adapters: ["default", "nobody"])
    }
    #expect(
      (error as? PEFTError)?.message
        == "You passed an invalid `selected_adapters` arguments, current supported adapter names "
        + "are ['default', 'other'] - got ['default', 'nobody'].")
    #expect(!FileSystem.exists(folder("none")))
  }

  /// Keys that no version of today knows are written back.
  @Test func oldConfigurationsKeepTheirKeys() throws {
    let source = TestData.golden("files/old")
    let peft = try Self.load()
    try peft.load(source)
    let folder = try TemporaryFolder()
    try peft.save(folder("x"))
    let original = try #require(try FileSystem.readJSON("\(source)/adapter_config.json").object)
    let written = try #require(try FileSystem.readJSON(folder("x/adapter_config.json")).object)
    #expect(written.keys == written.keys.sorted())
    for (key, value) in original.members {
      switch value {
      case .array(let elements):
        #expect(
          Set(elements.compactMap(\.string)) == Set(written[key]?.array?.compactMap(\.string) ?? [])
        )
      default: #expect(written[key] == value, "\(key)")
      }
    }
  }

  /// An adapter of an encoder-decoder, whose architecture is not here, in a tree of its names.
  @Test func seq2seqAdaptersAreWrittenBackToTheByte() throws {
    let source = try AdapterFolder(TestData.golden("files/seq2seq"))
    let peft = PeftModel(
      AdapterTree.make(for: source.tensors), info: BaseModelInfo(modelType: "t5"),
      registry: AdapterTree.registry)
    let report = try peft.load(source)
    #expect(report.matched.count == 12 && report.missing.isEmpty && report.unexpected.isEmpty)
    #expect(try peft.taskType("default") == .seq2SeqLM)
    #expect(peft.printed.typeName == "PeftModelForSeq2SeqLM")
    let folder = try TemporaryFolder()
    try peft.save(folder("x"))
    for file in [AdapterFolder.configName, AdapterFolder.weightsName] {
      #expect(
        try FileSystem.read(folder("x/\(file)")) == FileSystem.read("\(source.path)/\(file)"),
        "\(file)")
    }
  }

  /// The front matter of peft's card, to the letter.
  @Test func theCardHasPeftsFrontMatter() throws {
    func front(_ path: String) throws -> [Substring] {
      let text = String(decoding: try FileSystem.read(path), as: UTF8.self)
      return Array(text.split(separator: "---", maxSplits: 2)[0].split(separator: "\n"))
    }
    let peft = try Self.load()
    try peft.load(TestData.golden("files/plain"))
    let folder = try TemporaryFolder()
    try peft.save(folder("x"))
    #expect(try front(folder("x/README.md")) == front(TestData.golden("files/card/README.md")))
    // A card that is there keeps its text and its own members.
    let card = "---\nlicense: mit\ntags:\n- old\n---\n\n# Mine\n\nText.\n"
    try FileSystem.write(folder("x/README.md"), card)
    try peft.save(folder("x"))
    let text = String(decoding: try FileSystem.read(folder("x/README.md")), as: UTF8.self)
    #expect(text.hasSuffix("---\n\n# Mine\n\nText.\n"))
    #expect(
      try front(folder("x/README.md")) == [
        "base_model: files/model", "library_name: peft", "license: mit",
        "pipeline_tag: text-generation", "tags:", "- base_model:adapter:files/model", "- lora",
        "- transformers",
      ])
  }
}
