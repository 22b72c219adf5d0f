import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Published adapters, whose base models are not here: every tensor finds its place in a tree of
/// the same names and widths, and is written back unchanged.
struct RealAdapterTests {
  @Test(arguments: ["dialogpt-small-synthetic", "gpt-neo-125m-movies"])
  func peftFoldersAreReadAndWrittenBack(_ name: String) throws {
    guard let path = TestData.path("adapters/\(name)") else { return }
    let source = try AdapterFolder(path)
    let tree = AdapterTree.make(for: source.tensors)
    let peft = PeftModel(
      tree, info: BaseModelInfo(modelType: "gpt2"), registry: AdapterTree.registry)
    let report = try peft.load(path)
    #expect(report.matched.count == source.tensors.entries.count && report.missing.isEmpty)
    #expect(report.unexpected.isEmpty)
    let folder = try TemporaryFolder()
    try peft.save(folder("x"))
    let written = try AdapterFolder(folder("x"))
    #expect(written.tensors.entries == source.tensors.entries)
    for tensor in source.tensors.names {
      #expect(try written.tensors.bytes(tensor) == source.tensors.bytes(tensor), "\(tensor)")
    }
    // To the byte, but for the line of metadata that one of them lacks.
    let original = try SafetensorsFile("\(path)/adapter_model.safetensors")
    let bytes = try FileSystem.read(original.path)
    let again = try FileSystem.read(folder("x/adapter_model.safetensors"))
    #expect(original.metadata.isEmpty ? again.count > bytes.count : again == bytes)
    // Settings of either version of the format survive.
    for (key, value) in source.config.members {
      if case .array(let elements) = value {
        let found = written.config[key]?.array?.compactMap(\.string) ?? []
        #expect(Set(elements.compactMap(\.string)) == Set(found), "\(key)")
      } else if key == "inference_mode" {
        #expect(written.config[key] == true)
      } else if let found = written.config[key] {
        #expect(found == value || value.double != nil && found.double == value.double, "\(key)")
      } else {
        // Left out: what is null, false or empty anyway, and defaults that peft always writes.
        let isSilent = value.isNull || value == false || value.object?.members.isEmpty == true
        let defaults = ["megatron_core", "qalora_group_size", "peft_version"]
        #expect(isSilent || defaults.contains(key), "\(key)")
      }
    }
  }

  /// The LoRA paper's RoBERTa adapter in loralib's form, pickled and as safetensors.
  @Test(arguments: ["bin", "safetensors"])
  func loralibFilesAreReadAndWrittenBack(_ kind: String) throws {
    guard let folder = TestData.path("adapters/loralib-roberta-base-mnli") else { return }
    let path = "\(folder)/roberta_base_lora_mnli.\(kind)"
    let source = try SafetensorsFile("\(folder)/roberta_base_lora_mnli.safetensors")
    let tree = AdapterTree.make(for: source)
    let peft = PeftModel(
      tree, info: BaseModelInfo(modelType: "roberta"), registry: AdapterTree.registry)
    let config = LoRAConfig(rank: 8, alpha: 16, taskType: .sequenceClassification)
    let report = try peft.loadLoralib(path, as: "mnli", config: config)
    #expect(report.matched.count == 52 && report.missing.isEmpty && report.unexpected.isEmpty)
    let targets = try peft.targetReport(of: "mnli")
    #expect(targets.matched.count == 24)
    #expect(targets.saved == ["classifier.dense", "classifier.out_proj"])
    #expect(try peft.config("mnli").targets.modules == .list(["query", "value"]))
    // Back in loralib's names, and in peft's.
    let temporary = try TemporaryFolder()
    try peft.state(of: "mnli", form: .loralib).write(to: temporary("back.safetensors"))
    let back = try SafetensorsFile(temporary("back.safetensors"))
    #expect(Set(back.names) == Set(source.names))
    for name in source.names { #expect(try back.bytes(name) == source.bytes(name), "\(name)") }
    try peft.save(temporary("peft"), adapter: "mnli")
    let saved = try AdapterFolder(temporary("peft")).tensors
    let layer = "roberta.encoder.layer.3.attention.self.query"
    #expect(
      try saved.bytes("base_model.model.\(layer).lora_A.weight") == source.bytes("\(layer).lora_A"))
    #expect(saved["base_model.model.classifier.dense.bias"]?.shape == [768])
  }

  /// With `bias: lora_only` the file has the biases of the adapted layers, under their own names.
  @Test func loralibFilesWithBiases() throws {
    let folder = try TemporaryFolder()
    let tree = AdapterTree()
    tree.add("a.query", AdapterTree.layer(4, 6, bias: true))
    tree.add("a.norm", AdapterTree.layer(4, 4, bias: true))
    let peft = PeftModel(
      tree, info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    let tensors = [("a.query.lora_A", [2, 4]), ("a.query.lora_B", [6, 2]), ("a.query.bias", [6])]
      .map { SafetensorsItem($0.0, Tensor(repeating: 0.5, shape: $0.1)) }
    let path = folder("file.safetensors")
    try SafetensorsWriter.write(tensors, to: path)
    var config = LoRAConfig(rank: 2)
    config.bias = .adaptedOnly
    try peft.loadLoralib(path, config: config)
    let bias = try #require(
      try peft.tensors(of: "default").first { $0.key.hasSuffix(".bias") })
    #expect(bias.value.scalars == [Float](repeating: 0.5, count: 6))
    let state = try peft.state(of: "default", form: .loralib)
    #expect(Set(state.names) == Set(tensors.map(\.name)))
  }

  @Test func loralibFilesThatDoNotFitAreRefused() throws {
    let folder = try TemporaryFolder()
    let path = folder("x.safetensors")
    let tree = AdapterTree()
    tree.add("a.query", AdapterTree.layer(4, 6))
    let peft = PeftModel(
      tree, info: BaseModelInfo(modelType: ""), registry: AdapterTree.registry)
    func fails(_ tensors: [String: [Int]], _ code: PEFTError.Code, _ text: String) throws {
      try SafetensorsWriter.write(
        tensors.map { SafetensorsItem($0.key, Tensor.zeros($0.value)) }, to: path)
      let error = #expect(throws: PEFTError.self) {
        try peft.loadLoralib(path, config: LoRAConfig(rank: 2))
      }
      #expect(error?.code == code && error?.message.contains(text) == true, "\(error!)")
      #expect(error?.location == path && peft.adapterNames.isEmpty)
    }
    try fails(["x": [1]], .missingTensor, "has no tensor whose name ends in lora_A")
    try fails(
      ["a.query.lora_A": [3, 4], "a.query.lora_B": [6, 3]], .shapeMismatch,
      "'a.query.lora_A' has shape [3, 4], the model needs [2, 4]")
    try fails(["a.query.lora_A": [2, 4]], .missingTensor, "missing: 'a.query.lora_B'")
    try fails(
      ["a.query.lora_A": [2, 4], "a.query.lora_B": [6, 2], "b.key.lora_A": [2, 4]],
      .unexpectedTensor, "unused: 'b.key.lora_A'")
    try fails(
      ["b.key.lora_A": [2, 4], "b.key.lora_B": [6, 2]], .noMatchingModule,
      "no key of the state belongs to a layer of the model")
  }
}
