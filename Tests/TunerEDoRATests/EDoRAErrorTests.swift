import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// What EDoRA and LoRA-XS refuse, with the key or the module, and the model as it was.
struct EDoRAErrorTests {
  private let peft: PeftModel
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    peft = Self.model(seed: 1)
    try peft.add("first", Self.config())
    try peft.setTrainable(["first"], false)
  }

  private static func model(seed: UInt64) -> PeftModel {
    let weight = Tensor.normal([8, 12], deviation: 0.4, key: DropoutKey(seed: seed, stream: 1))
    let host = Linear(
      HostParameters(weight: .matrix(DenseMatrix(weight)), bias: nil), inputFeatures: 12,
      outputFeatures: 8)
    return PeftModel(
      SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: GoldenTests.registry)
  }

  private static func config(
    rank: Int = 3, _ change: (inout EDoRAConfig) -> Void = { _ in }
  ) -> EDoRAConfig {
    var config = EDoRAConfig(
      rank: rank, alpha: 6, targets: TargetSelection(.list(["layer"])), sigma: 0.3)
    change(&config)
    return config
  }

  @Test func settings() throws {
    let part = "'reconstruct_config'"
    for (text, message, code, location) in [
      (
        #""peft_type": "LORA""#, "'peft_type' is 'LORA', EDORA or LORA_XS was expected",
        .invalidConfiguration, nil
      ),
      (
        #""init_lora_weights": "pissa""#,
        "'init_lora_weights': \"pissa\" is not supported by this method", .unsupported, nil
      ),
      (
        #""init_sigma": -1"#,
        "'init_sigma' is -1.0, a finite number that is not negative was expected",
        .invalidConfiguration, nil
      ),
      (
        #""compact": true, "reconstruct_config": {"r_squared": false}"#,
        "'compact' needs 'r_squared': true", .invalidConfiguration, nil
      ),
      (
        #""lora_bias": true"#, "'lora_bias' is not supported by this method", .unsupported, nil
      ),
      (
        #""enable_lora": [true, false]"#, "'enable_lora' is not supported by this method",
        .unsupported, nil
      ),
      (
        #""reconstruct_config": {"reconstruction_type": "qr"}"#,
        "'reconstruction_type': \"qr\" is not supported", .unsupported, part
      ),
      (
        #""reconstruct_config": {"reconstr_mode": "combined"}"#,
        "'reconstr_mode': \"combined\" is not supported", .unsupported, part
      ),
      (
        #""reconstruct_config": {"svd": {"n_iter": -1}}"#,
        "'svd.n_iter' is -1, it cannot be negative", .invalidConfiguration, part
      ),
      (
        #""reconstruct_config": {"svd": {"n_itr": 1}}"#, "unknown key 'svd.n_itr'",
        .invalidConfiguration, part
      ),
      (
        #""use_dora": false"#, "'use_dora' is false, which EDORA does not go with",
        .invalidConfiguration, nil
      ),
      (
        #""peft_type": "LORA_XS", "use_dora": true"#,
        "'use_dora' is true, which LORA_XS does not go with", .invalidConfiguration, nil
      ),
      (
        #""peft_type": "LORA_XS", "dora_detach_norm": false"#,
        "'dora_detach_norm' is false, but the adapter has no magnitude, whose norm it is about",
        .invalidConfiguration, nil
      ),
      (
        #""init_sigma": 0.5, "reconstruct_config": {"init_sigma": 0.25}"#,
        "'init_sigma' is 0.25, but 0.5 beside the recipe", .invalidConfiguration, part
      ),
      (
        #""r": 4, "reconstruct_config": {"svd": {"rank": 8}}"#, "'svd.rank' is 8, but 'r' is 4",
        .invalidConfiguration, part
      ),
      (
        #""init_sigma": 1e300"#, "'init_sigma' is 1e+300, which 32 bits do not hold",
        .invalidConfiguration, nil
      ),
    ] as [(String, String, PEFTError.Code, String?)] {
      let object = try #require(try JSONValue(parsing: "{\(text)}").object)
      expectError(message, code, at: location) { _ = try EDoRAConfig(object) }
    }
  }

  /// The same where they come from a program.
  @Test func adaptersThatCannotBeAdded() throws {
    try peft.refuses(
      "'r' is 9, but a weight [8, 12] has only 8 singular vectors", .invalidConfiguration,
      at: "layer"
    ) { try peft.add("second", Self.config(rank: 9)) }
    for sigma in [-0.5, Double.nan, .infinity] {
      try peft.refuses(
        "'init_sigma' is \(sigma), a finite number that is not negative was expected",
        .invalidConfiguration
      ) { try peft.add("second", Self.config { $0.sigma = sigma }) }
    }
    try peft.refuses(
      "'init_sigma' is 1e+300, which 32 bits do not hold", .invalidConfiguration
    ) { try peft.add("second", Self.config { $0.sigma = 1e300 }) }
    try peft.refuses(
      "'svd.n_iter' is -1, it cannot be negative", .invalidConfiguration,
      at: "'reconstruct_config'"
    ) {
      try peft.add(
        "second", Self.config { $0.reconstruction.decomposition = .randomized(iterations: -1) })
    }
    try peft.refuses(
      "'dora_detach_norm' is false, but the adapter has no magnitude, whose norm it is about",
      .invalidConfiguration
    ) {
      try peft.add(
        "second",
        Self.config {
          $0.method = .loraXS
          $0.lora.detachesNorm = false
        })
    }
    try peft.refuses("'compact' needs 'r_squared': true", .invalidConfiguration) {
      try peft.add(
        "second",
        Self.config {
          $0.isCompact = true
          $0.reconstruction.hasLatent = false
        })
    }
    for (key, change) in [
      ("lora_bias", { $0.lora.usesLoRABias = true }),
      ("enable_lora", { $0.lora.enabledParts = [true, false] }),
    ] as [(String, (inout EDoRAConfig) -> Void)] {
      try peft.refuses("'\(key)' is not supported by this method", .unsupported) {
        try peft.add("second", Self.config(change))
      }
    }
  }

  /// The recipe that the repositories have beside the config.
  @Test func recipesThatAreNone() throws {
    let path = folder("adapter")
    try peft.save(path, adapter: "first")
    let recipe = FileSystem.join(path, EDoRAConfig.reconstructionFile)
    try FileSystem.write(recipe, "[]")
    try peft.refuses("is not a JSON object", .malformedFile, at: recipe) {
      try peft.load(path, as: "second")
    }
    try FileSystem.write(recipe, #"{"svd": 3}"#)
    let error = #expect(throws: PEFTError.self) { try peft.load(path, as: "second") }
    #expect(error?.message == "'svd' is an integer (3), a mapping was expected")
    #expect(peft.adapterNames == ["first"])
  }

  /// Writes the tensors of a file anew as they are changed; `nil` leaves one out.
  private static func rewrite(
    _ path: String, _ change: (_ name: String, _ value: Tensor) -> Tensor?
  ) throws {
    let file = try SafetensorsFile(path)
    var items: [SafetensorsItem] = []
    for name in file.names {
      guard let value = change(name, try file.tensor(name)) else { continue }
      // A copy, as the file that the values are mapped from is replaced.
      items.append(SafetensorsItem(name, Tensor(shape: value.shape, scalars: value.scalars)))
    }
    try SafetensorsWriter.write(items, to: path)
  }

  /// A program that does not know R keeps the recipe beside the weights that it writes again without R:
  /// B·A alone, W's leading part, would be added.
  @Test(arguments: EDoRAConfig.Method.allCases)
  func filesThatLostTheirR(_ method: EDoRAConfig.Method) throws {
    let path = folder("lost")
    try peft.add("whole", Self.config { $0.method = method })
    try peft.save(path, adapter: "whole")
    let weights = FileSystem.join(path, AdapterFolder.weightsName)
    try Self.rewrite(weights) { name, value in name.contains("latent") ? nil : value }
    try peft.refuses(
      "the adapter's tensors do not fit the model; missing: "
        + "'base_model.model.layer_lora_latent_mapping.weight'", .missingTensor, at: weights
    ) { try peft.load(path, as: "second") }
    // A recipe that does not say so goes by the tensors.
    let recipe = FileSystem.join(path, EDoRAConfig.reconstructionFile)
    for text in ["{}", #"{"r_squared": null}"#, #"{"r_squared": false}"#] {
      try FileSystem.write(recipe, text)
      try peft.load(path, as: "second")
      let config = try #require(try peft.config("second") as? EDoRAConfig)
      #expect(!config.reconstruction.hasLatent)
      try peft.delete("second")
    }
  }

  /// What says nothing in a file is no reason not to load it: the rank that a recipe was made with, and a
  /// norm's setting in an adapter that had a magnitude before.
  @Test func filesWithSettingsThatMeanNothing() throws {
    let path = folder("xs")
    try peft.add("xs", Self.config { $0.method = .loraXS })
    try peft.save(path, adapter: "xs")
    try peft.add(
      "lora", LoRAConfig(rank: 3, targets: TargetSelection(.list(["layer"]))))
    try peft.save(folder("lora"), adapter: "lora")
    func set(_ file: String, _ key: String, _ value: JSONValue) throws {
      var object = try #require(try FileSystem.readJSON(folder(file)).object)
      object[key] = value
      try FileSystem.write(folder(file), JSONValue.object(object).text())
    }
    try set("xs/\(EDoRAConfig.reconstructionFile)", "svd", ["rank": 8])
    for name in ["xs", "lora"] {
      try set("\(name)/\(AdapterFolder.configName)", "dora_detach_norm", false)
      try peft.load(folder(name), as: "\(name)-again")
      #expect(
        try peft.tensors(of: name).map(\.parameter.value.scalars)
          == peft.tensors(of: "\(name)-again").map(\.parameter.value.scalars))
    }
    // Nor is it written by a conversion.
    try peft.add("detached", Self.config { $0.lora.detachesNorm = false })
    for form in [AdapterForm.lora, .loraXS] {
      try peft.convert("detached", to: form, as: form.rawValue + "-new")
      #expect(try peft.config(form.rawValue + "-new").object["dora_detach_norm"] == nil)
    }
    try peft.convert("detached", to: .dora, as: "dora")
    #expect(try peft.config("dora").object["dora_detach_norm"] == false)
  }

  /// Files without A and B: for another base, or from where A and B came out differently.
  @Test(arguments: EDoRAConfig.Method.allCases)
  func compactFiles(_ method: EDoRAConfig.Method) throws {
    try peft.add(
      "small",
      Self.config {
        $0.method = method
        $0.isCompact = true
      })
    let path = folder("small")
    try peft.save(path, adapter: "small")
    let weights = FileSystem.join(path, AdapterFolder.weightsName)
    let place = "\(weights), 'layer'"

    let other = Self.model(seed: 2)
    try other.refuses(
      "the compact adapter was made for another base model: this module's weight is another one",
      .invalidAdapter, at: place
    ) { try other.load(path, as: "again") }
    try other.add("first", Self.config())
    try other.refuses(
      "the compact adapter was made for another base model: this module's weight is another one",
      .invalidAdapter, at: place
    ) { try other.load(path, as: "again") }

    try Self.rewrite(weights) { name, value in
      var value = value
      // After the hash: products of A, then of B, with fixed vectors.
      if name.hasSuffix("base_fingerprint") { value.withMutableSlice { $0[5] += 1 } }
      return value
    }
    try peft.refuses(
      "the compact adapter's A and B cannot be made again on this machine: the decomposition of this "
        + "module's weight comes out differently", .invalidAdapter, at: place
    ) { try peft.load(path, as: "again") }
  }
}
