import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import PEFTCore

/// Adapter folders.
struct FileTests {
  let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  private func saved() throws -> (path: String, output: [Float]) {
    let fixture = try Fixture()
    var config = DeltaConfig(.list(["up", "down"]), gain: 0.5, taskType: "SEQ_CLS")
    config.unknownKeys["invented_later"] = ["x": 1]
    try fixture.peft.add("a", config, seed: 3)
    for tensor in fixture.peft.trainableTensors {
      tensor.parameter.update { $0.withMutableSlice { $0[0] += 1 } }
    }
    let path = folder("adapter")
    try fixture.peft.save(path, extraFiles: [("extra.txt", "more")])
    return (path, fixture.output())
  }

  @Test func savedAdaptersLoadToTheBit() throws {
    let (path, output) = try saved()
    let fixture = try Fixture()
    let base = fixture.output()
    let report = try fixture.peft.load(path, as: "mine")
    #expect(report.matched.count == 4 && report.missing.isEmpty && report.unexpected.isEmpty)
    #expect(report.summary == "4 tensors loaded, 0 missing, 0 unused")
    #expect(fixture.output() == output && output != base)
    #expect(fixture.peft.activeAdapters == ["mine"])
    #expect(try fixture.peft.config("mine").unknownKeys["invented_later"] == ["x": 1])
    // Saving what was loaded gives the same files.
    try fixture.peft.save(folder("again"))
    for name in ["adapter_config.json", "adapter_model.safetensors", "README.md"] {
      #expect(try FileSystem.read("\(path)/\(name)") == FileSystem.read(folder("again/\(name)")))
    }
  }

  /// Keys have neither the adapter's name nor `modules_to_save` in them: peft's layout.
  @Test func foldersHavePeftsLayout() throws {
    let (path, _) = try saved()
    #expect(
      try FileSystem.list(path)
        == ["README.md", "adapter_config.json", "adapter_model.safetensors", "extra.txt"])
    let file = try SafetensorsFile("\(path)/adapter_model.safetensors")
    #expect(file.metadata == ["format": "pt"])
    #expect(
      file.names == [
        "base_model.model.classifier.bias", "base_model.model.classifier.weight",
        "base_model.model.mlp.down.test_delta.weight", "base_model.model.mlp.up.test_delta.weight",
      ])
    let config = try #require(try FileSystem.readJSON("\(path)/adapter_config.json").object)
    #expect(config.keys == config.keys.sorted())
    #expect(config["peft_type"] == "TEST_DELTA" && config["inference_mode"] == true)
    #expect(config["base_model_name_or_path"] == "tiny/model")
    #expect(config["target_modules"] == ["down", "up"])
    #expect(config["modules_to_save"] == ["classifier", "score"])
    let card = String(decoding: try FileSystem.read("\(path)/README.md"), as: UTF8.self)
    #expect(
      card.hasPrefix(
        """
        ---
        base_model: tiny/model
        library_name: peft
        tags:
        - base_model:adapter:tiny/model
        - transformers
        ---

        """))
  }

  @Test func savingNeedsOneAdapter() throws {
    let peft = try Fixture().peft
    let none = #expect(throws: (any Error).self) { try peft.save(folder("x")) }
    #expect((none as? PEFTError)?.code == .invalidAdapter)
    try peft.add("a", DeltaConfig(.list(["up"])))
    try peft.add("b", DeltaConfig(.list(["down"])))
    try peft.setActive(["a", "b"])
    let several = #expect(throws: (any Error).self) { try peft.save(folder("x")) }
    #expect(
      "\(try #require(several))" == "several adapters are active: a, b. Name the one to save.")
    #expect(folder.names.isEmpty)
    try peft.save(folder("x"), adapter: "b")
    #expect(folder.names == ["x"])
  }

  @Test func failedLoadsLeaveTheModelAsItWas() throws {
    let (path, _) = try saved()
    let weights = "\(path)/adapter_model.safetensors"
    let good = try SafetensorsFile(weights)
    func items(_ change: (inout [String: Tensor]) -> Void) throws -> [SafetensorsItem] {
      var tensors: [String: Tensor] = [:]
      for name in good.names { tensors[name] = try good.tensor(name) }
      change(&tensors)
      return tensors.map { SafetensorsItem($0.key, $0.value) }
    }
    let up = "base_model.model.mlp.up.test_delta.weight"
    let fixture = try Fixture()
    try fixture.peft.add("other", DeltaConfig(.list(["up"])), seed: 9)
    try fixture.peft.setActive([])
    let before = fixture.output()
    func fails(_ code: PEFTError.Code, _ text: String, strict: Bool = true) {
      let error = #expect(throws: PEFTError.self) {
        try fixture.peft.load(path, as: "a", strict: strict)
      }
      #expect(error?.code == code && error?.description == text)
      #expect(fixture.peft.adapterNames == ["other"] && fixture.peft.activeAdapters.isEmpty)
      #expect(fixture.output() == before && fixture.model.down.adapters == nil)
      #expect(fixture.peft.trainableTensors.isEmpty && fixture.peft.parameterCounts.trainable == 0)
    }
    let remedy =
      "The adapter was made for another base model or task, or the file is incomplete."
    try SafetensorsWriter.write(items { $0[up] = nil }, to: weights)
    fails(
      .missingTensor,
      "\(weights): the adapter's tensors do not fit the model; missing: '\(up)'. \(remedy)")
    try SafetensorsWriter.write(items { $0["more"] = Tensor(1) }, to: weights)
    fails(
      .unexpectedTensor,
      "\(weights): the adapter's tensors do not fit the model; unused: 'more'. \(remedy)")
    try SafetensorsWriter.write(items { $0[up] = Tensor.zeros([6, 5]) }, to: weights)
    for strict in [true, false] {
      fails(
        .shapeMismatch,
        "\(weights): '\(up)' has shape [6, 5], the model needs [6, 4]. "
          + "The adapter was made for another base model or rank.", strict: strict)
    }
    _ = try FileSystem.write(weights, "short")
    fails(
      .malformedFile,
      "\(weights): not a valid safetensors file: 5 bytes are too few for a header. "
        + "Obtain the file again.")
    let config = "\(path)/adapter_config.json"
    try FileSystem.write(config, #"{"peft_type": "TEST_DELTA", "gain": "x"}"#)
    _ = try SafetensorsWriter.write([], to: weights)
    fails(
      .invalidConfiguration, "\(config): 'gain' is a string (\"x\"), a number was expected")
    try FileSystem.write(config, #"{"peft_type": "TEST_DELTA", "secret": true}"#)
    fails(
      .unsupported,
      "\(config): 'secret': true is not supported. Remove the key or set it to its default.")
    try FileSystem.write(config, "[]")
    fails(
      .malformedFile,
      "\(config): is not a JSON object. It has to hold the adapter's settings, { … }.")
  }

  @Test func looseLoadingReportsWhatIsMissingAndUnused() throws {
    let (path, _) = try saved()
    let weights = "\(path)/adapter_model.safetensors"
    try SafetensorsWriter.write([SafetensorsItem("more", Tensor(1))], to: weights)
    let report = try Fixture().peft.load(path, strict: false)
    #expect(report.summary == "0 tensors loaded, 4 missing, 1 unused")
    #expect(report.unexpected == ["more"])
  }

  @Test func valuesOfMergedAdaptersAreNotOverwritten() throws {
    let (path, _) = try saved()
    let peft = try Fixture().peft
    try peft.load(path, as: "a")
    let file = try SafetensorsFile("\(path)/adapter_model.safetensors")
    try peft.merge()
    let error = #expect(throws: PEFTError.self) { try peft.loadTensors(file, into: "a") }
    #expect(error?.code == .invalidState)
    peft.unmerge()
    #expect(try peft.loadTensors(file, into: "a").matched.count == 4)
  }

  @Test func incompleteFoldersAreNamed() throws {
    let peft = try Fixture().peft
    let missing = #expect(throws: PEFTError.self) { try peft.load(folder("none")) }
    #expect(missing?.description == "\(folder("none")): no such adapter folder. Check the path.")
    try FileSystem.createDirectory(folder("empty"))
    let config = #expect(throws: PEFTError.self) { try peft.load(folder("empty")) }
    #expect(config?.message == "Can't find 'adapter_config.json' at '\(folder("empty"))'")
    try FileSystem.write(folder("empty/adapter_config.json"), "{}")
    let weights = #expect(throws: PEFTError.self) { try peft.load(folder("empty")) }
    #expect(weights?.message == "has no adapter_model.safetensors")
    try FileSystem.write(folder("empty/adapter_model.bin"), "")
    let pickled = #expect(throws: PEFTError.self) { try peft.load(folder("empty")) }
    #expect(pickled?.message == "the file is empty")
  }
}
