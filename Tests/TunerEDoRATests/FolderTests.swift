import LayerTestSupport
import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// Adapter folders on a whole model: exchange, precisions, what stays in a folder. Expected outputs are
/// those of the same adapters on a fresh model.
struct FolderTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  private static func load() throws -> PeftModel { try SmallModel.load(GoldenTests.registry) }

  private static func config(
    _ method: EDoRAConfig.Method, _ targets: [String] = ["q_proj", "down_proj"],
    isCompact: Bool = false
  ) -> EDoRAConfig {
    EDoRAConfig(
      method, rank: 4, alpha: 6, targets: TargetSelection(.list(targets)), sigma: 0.3,
      isCompact: isCompact)
  }

  private func save(
    _ config: EDoRAConfig, _ name: String, seed: UInt64, as type: ElementType = .float32
  ) throws -> Tensor {
    let peft = try Self.load()
    try peft.add("default", config, seed: seed)
    for tensor in try peft.tensors(of: "default") where tensor.key.hasSuffix("magnitude_vector") {
      tensor.parameter.update { value in value = value.scaled(by: 1.2) }
    }
    try peft.save(folder(name), as: type)
    return try peft.logits()
  }

  /// Layers that the new adapter lacks change nothing, until another one has them again; in the form
  /// of the repositories, which the config alone does not tell from DoRA and LoRA, and in the compact.
  @Test(arguments: EDoRAConfig.Method.allCases, [false, true])
  func layersThatAreMissingBecomeEmpty(_ method: EDoRAConfig.Method, _ isCompact: Bool) throws {
    let all = try save(Self.config(method, isCompact: isCompact), "all", seed: 1)
    let few = try save(Self.config(method, ["q_proj"], isCompact: isCompact), "few", seed: 2)
    #expect(relativeError(all, few) > 0.01)
    let peft = try Self.load()
    try peft.load(folder("all"), as: "a")
    let report = try peft.hotSwap("a", from: folder("few"))
    #expect(!report.missing.isEmpty && report.missing.count == report.matched.count)
    #expect(relativeError(try peft.logits(), few) < 1e-5)
    try peft.save(folder("again"))
    let again = try Self.load()
    try again.load(folder("again"))
    #expect(relativeError(try again.logits(), few) < 1e-5)
    try peft.hotSwap("a", from: folder("all"))
    #expect(relativeError(try peft.logits(), all) < 1e-5)
  }

  /// DoRA's folders have the same `adapter_config.json`, and are refused all the same.
  @Test func foldersOfOtherMethodsAreRefused() throws {
    var config = LoRAConfig(
      rank: 4, alpha: 6, targets: Self.config(.edora).targets, initialization: .random)
    config.usesDoRA = true
    let source = try Self.load()
    try source.add("default", config)
    try source.save(folder("dora"))
    let peft = try Self.load()
    try peft.add("a", Self.config(.edora))
    try peft.refuses(
      "Incompatible PEFT types found: EDORA and LORA", .invalidConfiguration,
      at: folder("dora/adapter_config.json")
    ) { try peft.hotSwap("a", from: folder("dora")) }
  }

  /// The fingerprint has numbers of 16 bits, which 16 bits of a float do not hold.
  @Test(arguments: EDoRAConfig.Method.allCases, [ElementType.bfloat16, .float16])
  func compactFilesOfHalfPrecision(_ method: EDoRAConfig.Method, _ type: ElementType) throws {
    let expected = try save(Self.config(method, isCompact: true), "half", seed: 1, as: type)
    let file = try SafetensorsFile(folder("half/\(AdapterFolder.weightsName)"))
    for entry in file.entries {
      #expect(entry.type == (entry.name.hasSuffix("fingerprint") ? .float32 : type))
    }
    let peft = try Self.load()
    try peft.load(folder("half"))
    // R and m are rounded.
    #expect(relativeError(try peft.logits(), expected) < 0.02)
  }

  /// A recipe that an EDoRA adapter left would make another method of the adapter after it.
  @Test func recipesOfOldAdaptersAreRemoved() throws {
    let peft = try Self.load()
    try peft.add("edora", Self.config(.edora))
    try peft.add(
      "lora",
      LoRAConfig(
        rank: 4, alpha: 3, targets: TargetSelection(.list(["q_proj"])), initialization: .random))
    let path = folder("adapter")
    try FileSystem.createDirectory(path)
    try FileSystem.write(folder("adapter/notes.txt"), "mine")
    try peft.write(into: path, adapter: "edora")
    #expect(FileSystem.exists(folder("adapter/\(EDoRAConfig.reconstructionFile)")))
    try peft.write(into: path, adapter: "lora")
    #expect(
      try FileSystem.list(path)
        == ["README.md", "adapter_config.json", "adapter_model.safetensors", "notes.txt"])
    let registry = GoldenTests.registry
    #expect(try registry.config(of: AdapterFolder(path)) is LoRAConfig)
    try peft.write(into: path, adapter: "edora")
    #expect(try registry.config(of: AdapterFolder(path)) is EDoRAConfig)
  }
}
