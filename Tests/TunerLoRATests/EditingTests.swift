import LayerTestSupport
import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// What is done to adapters that are on a model: exchange, names, states, injection. Expected
/// outputs are those of the same adapters put on a fresh model; texts are peft's where it has one
/// (conformance cases 56, 59, 62, 68).
struct EditingTests {
  /// A folder with a random adapter, and its output on a fresh model.
  private static func adapter(
    _ config: LoRAConfig, seed: UInt64, in folder: String
  ) throws -> Tensor {
    let peft = try FileGoldenTests.load()
    var config = config
    config.initialization = .random
    try peft.add("default", config, seed: seed)
    try peft.save(folder)
    return try peft.logits()
  }

  static let targets = TargetSelection(.list(["q_proj", "down_proj"]))

  // MARK: Hot swap

  @Test(arguments: [(2, 3.0), (7, 3.0), (2, 9.0)])
  func exchangesWeightsOfAnyRank(_ rank: Int, _ alpha: Double) throws {
    let folder = try TemporaryFolder()
    let old = try Self.adapter(
      LoRAConfig(rank: 4, alpha: 3, targets: Self.targets), seed: 1, in: folder("old"))
    let new = try Self.adapter(
      LoRAConfig(rank: rank, alpha: alpha, targets: Self.targets), seed: 2, in: folder("new"))
    let peft = try FileGoldenTests.load()
    try peft.load(folder("old"), as: "a")
    #expect(relativeError(try peft.logits(), old) < 1e-6)
    try peft.setTrainable(["a"], false)
    let report = try peft.hotSwap("a", from: folder("new"))
    #expect(report.missing.isEmpty && report.matched.count == 8)
    #expect(relativeError(try peft.logits(), new) < 1e-6)
    #expect(peft.activeAdapters == ["a"] && peft.trainableTensors.isEmpty)
    #expect((try peft.config("a") as? LoRAConfig)?.rank == rank)
    try peft.hotSwap("a", from: folder("old"))
    #expect(relativeError(try peft.logits(), old) < 1e-6)
  }

  /// Layers that the new adapter lacks change nothing, until another one has them again.
  @Test func layersThatAreMissingBecomeEmpty() throws {
    let folder = try TemporaryFolder()
    let all = try Self.adapter(
      LoRAConfig(rank: 4, alpha: 3, targets: Self.targets), seed: 1, in: folder("all"))
    let few = try Self.adapter(
      LoRAConfig(rank: 4, alpha: 3, targets: TargetSelection(.list(["q_proj"]))), seed: 2,
      in: folder("few"))
    let peft = try FileGoldenTests.load()
    try peft.load(folder("all"), as: "a")
    let report = try peft.hotSwap("a", from: folder("few"))
    #expect(report.missing.count == 4 && report.matched.count == 4)
    #expect(relativeError(try peft.logits(), few) < 1e-6)
    try peft.hotSwap("a", from: folder("all"))
    #expect(relativeError(try peft.logits(), all) < 1e-6)
  }

  /// Also where the change is measured from initial values, which peft takes out of the base.
  @Test func emptyLayersOfPiSSAChangeNothing() throws {
    let folder = try TemporaryFolder()
    func adapter(_ targets: [String], _ name: String) throws -> Tensor {
      let peft = try FileGoldenTests.load()
      try peft.add(
        "default",
        LoRAConfig(
          rank: 2, alpha: 3, targets: TargetSelection(.list(targets)), initialization: .pissa))
      for tensor in try peft.tensors(of: "default") {
        tensor.parameter.update { value in
          value = value + Tensor(repeating: 0.1, shape: value.shape)
        }
      }
      try peft.save(folder(name), form: .trained)
      return try peft.logits()
    }
    _ = try adapter(["q_proj", "down_proj"], "all")
    let few = try adapter(["q_proj"], "few")
    let peft = try FileGoldenTests.load()
    try peft.load(folder("all"), as: "a")
    #expect(try peft.hotSwap("a", from: folder("few")).missing.count == 4)
    #expect(relativeError(try peft.logits(), few) < 1e-5)
  }

  /// A layer with A and no B would be another adapter than the file's.
  @Test func layersThatAreThereInPartAreRefused() throws {
    let folder = try TemporaryFolder()
    let config = LoRAConfig(rank: 4, alpha: 3, targets: Self.targets)
    _ = try Self.adapter(config, seed: 1, in: folder("old"))
    _ = try Self.adapter(config, seed: 2, in: folder("new"))
    let peft = try FileGoldenTests.load()
    try peft.load(folder("old"), as: "a")
    let weights = folder("new/\(AdapterFolder.weightsName)")
    let key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    let file = try SafetensorsFile(weights)
    try SafetensorsWriter.write(
      try file.names.filter { $0 != key }.map { SafetensorsItem($0, try file.tensor($0)) },
      to: weights)
    try peft.refuses(
      "the tensors of the layer 'model.layers.1.mlp.down_proj' are incomplete, missing: '\(key)'",
      .missingTensor, at: weights
    ) { try peft.hotSwap("a", from: folder("new")) }
  }

  @Test func exchangesThatCannotWorkAreRefused() throws {
    let folder = try TemporaryFolder()
    let plain = LoRAConfig(rank: 4, alpha: 3, targets: Self.targets)
    let output = try Self.adapter(plain, seed: 1, in: folder("old"))
    let peft = try FileGoldenTests.load()
    try peft.load(folder("old"), as: "a")
    func fails(_ name: String, _ text: String, _ code: PEFTError.Code) throws {
      let error = #expect(throws: PEFTError.self) {
        try peft.hotSwap("a", from: folder(name))
      }
      #expect(error?.message == text && error?.code == code, "\(error!)")
      #expect(relativeError(try peft.logits(), output) < 1e-6)
    }
    func make(_ name: String, _ change: (inout LoRAConfig) -> Void) throws {
      var config = plain
      change(&config)
      _ = try Self.adapter(config, seed: 2, in: folder(name))
    }
    let text = "Configs are incompatible: for"
    try make("rs") { $0.usesRSLoRA = true }
    try fails("rs", "\(text) use_rslora, False != True", .invalidConfiguration)
    try make("dropout") { $0.dropout = 0.5 }
    try fails("dropout", "\(text) lora_dropout, 0.0 != 0.5", .invalidConfiguration)
    try make("alpha") { $0.alphaPattern = SuffixPatterns([.init("q_proj", 9)]) }
    try fails("alpha", "\(text) alpha_pattern, {} != {'q_proj': 9}", .invalidConfiguration)
    try make("rows") { $0.trainableTokens = .inputEmbedding([7, 8]) }
    try fails(
      "rows", "\(text) trainable_token_indices, None != [7, 8]", .invalidConfiguration)
    try make("biases") { $0.bias = .adaptedOnly }
    try fails("biases", "\(text) bias, 'none' != 'lora_only'", .invalidConfiguration)
    try make("more") { $0.targets.modules = .list(["q_proj", "down_proj", "v_proj"]) }
    let keys = (0..<2).flatMap { layer in
      ["A", "B"].map {
        "base_model.model.model.layers.\(layer).self_attn.v_proj.lora_\($0).a.weight"
      }
    }
    let error = #expect(throws: PEFTError.self) { try peft.hotSwap("a", from: folder("more")) }
    let start = "Hot swapping the adapter did not succeed, unexpected keys found: "
    #expect(error?.message.hasPrefix(start) == true)
    #expect(keys.allSatisfy { error?.message.contains($0) == true })
    try FileSystem.write(
      folder("rs/adapter_config.json"), #"{"peft_type": "IA3", "target_modules": ["q_proj"]}"#)
    try fails("rs", "Incompatible PEFT types found: LORA and IA3", .invalidConfiguration)
    try make("other") { $0.rank = 5 }
    let unknown = #expect(throws: PEFTError.self) { try peft.hotSwap("b", from: folder("other")) }
    #expect(unknown?.description == "Adapter b not found. There are: a.")
    try peft.merge()
    try fails(
      "other",
      "Cannot hot-swap adapter 'a' because it is currently merged into the base weights.",
      .invalidState)
  }

  // MARK: Rows

  @Test func rowsNameAdaptersThatExist() throws {
    let peft = try FileGoldenTests.load()
    for name in ["first", "second"] {
      try peft.add(name, LoRAConfig(targets: Self.targets))
    }
    let unknown = #expect(throws: PEFTError.self) {
      try peft.sequenceAdapters(["first", "zebra", "ant", "__base__", "ant"])
    }
    #expect(unknown?.code == .invalidAdapter)
    #expect(
      unknown?.description
        == "Trying to infer with non-existing adapter(s): ant, zebra. There are: first, second.")
    let count = #expect(throws: PEFTError.self) {
      try peft.sequenceAdapters(["first", "second"], count: 3)
    }
    #expect(
      count?.message
        == "Length of `adapter_names` should be the same as the number of inputs, but got 2 and 3 "
        + "respectively.")
  }

  /// Rows of several adapters at once equal each adapter alone, also where ranks differ, where
  /// adapters lack a layer, and after another one has been deleted and its place taken.
  @Test func mixedRowsEqualSeparateRuns() throws {
    let peft = try FileGoldenTests.load()
    for (index, name) in ["a", "b", "c", "d"].enumerated() {
      var config = LoRAConfig(rank: [8, 3, 16, 1][index], alpha: 5, targets: Self.targets)
      if name == "c" { config.targets.modules = .list(["down_proj", "v_proj"]) }
      config.initialization = .random
      try peft.add(name, config, seed: UInt64(index))
    }
    try peft.delete("b")
    var config = LoRAConfig(rank: 5, alpha: 2, targets: TargetSelection(.list(["o_proj"])))
    config.initialization = .random
    try peft.add("e", config, seed: 9)
    for rows in [["a", "c"], ["d", "e"], ["__base__", "a"], ["e", "e"], ["c", "__base__"]] {
      let mixed = try peft.logits(rows: rows)
      for (row, name) in rows.enumerated() {
        try peft.setActive(name == "__base__" ? [] : [name])
        let own = try peft.logits().rowRange(row * 5..<row * 5 + 5)
        let error = relativeError(mixed.rowRange(row * 5..<row * 5 + 5), own)
        #expect(error < 1e-5, "\(rows), \(name): \(error)")
      }
    }
  }

  // MARK: Names and trainability

  @Test func renamingChecksBothNames() throws {
    let peft = try FileGoldenTests.load()
    for name in ["a", "b"] { try peft.add(name, LoRAConfig(targets: Self.targets)) }
    for (old, new, text) in [
      ("x", "y", "Adapter x not found."), ("a", "b", "Adapter with name 'b' already exists."),
      ("a", "a.b", "'a.b' cannot be the name of an adapter"),
    ] {
      let error = #expect(throws: PEFTError.self) { try peft.rename(old, to: new) }
      #expect(error?.message == text && peft.adapterNames == ["a", "b"])
    }
    try peft.merge(["a"])
    try peft.rename("a", to: "c")
    #expect(peft.adapterNames == ["c", "b"] && peft.activeAdapters == ["c"])
    #expect(peft.mergedAdapters == ["c"])
    let error = #expect(throws: PEFTError.self) { try peft.delete("c") }
    #expect(error?.code == .invalidState)
    peft.unmerge()
    try peft.delete("c")
    try peft.add("a", LoRAConfig(targets: Self.targets))
    #expect(peft.adapterNames == ["b", "a"])
  }

  @Test func trainabilityIsSetForEachAdapter() throws {
    let peft = try FileGoldenTests.load()
    for name in ["a", "b"] { try peft.add(name, LoRAConfig(targets: Self.targets)) }
    func trainable(_ name: String) throws -> Bool {
      let flags = Set(try peft.tensors(of: name).map(\.parameter.isTrainable))
      #expect(flags.count == 1)
      return flags.contains(true)
    }
    #expect(try trainable("a"))
    #expect(try !trainable("b"))
    try peft.setTrainable(["a"], false)
    try peft.setTrainable(["b"], true)
    #expect(try !trainable("a"))
    #expect(try trainable("b"))
    let error = #expect(throws: PEFTError.self) { try peft.setTrainable(["b", "nobody"], false) }
    #expect(error?.message == "Adapter nobody not found.")
    #expect(try trainable("b"))
    // Activation decides anew.
    try peft.setActive(["a", "b"])
    #expect(try trainable("a"))
    #expect(try trainable("b"))
    #expect(peft.base.namedParameters().filter { $0.info.isTrainable }.count == 16)
  }

  // MARK: States and injection

  @Test func statesGoFromOneModelToAnother() throws {
    let source = try FileGoldenTests.load()
    var config = LoRAConfig(rank: 2, targets: Self.targets)
    config.initialization = .random
    try source.add("mlp", config, seed: 4)
    let expected = try source.logits()
    let state = try source.state(of: "mlp")
    let keys = state.names
    #expect(
      keys.first == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        && keys.count == 8)

    // Without a wrapper: the prefix may be there or not, and what is given has none.
    let tree = try FileGoldenTests.load().base
    let adapters = InjectedAdapters(in: tree, registry: AdapterTree.registry)
    try adapters.inject(LoRAConfig(rank: 2, targets: Self.targets))
    for form in [AdapterKeyForm.file, .injected] {
      let report = try adapters.setState(try source.state(of: "mlp", form: form))
      #expect(report.matched.count == 8 && report.missing.isEmpty && report.unexpected.isEmpty)
    }
    #expect(relativeError(try adapters.model.logits(), expected) < 1e-6)
    #expect(
      try adapters.state().names == keys.map { String($0.dropFirst("base_model.model.".count)) })
    // Another view of the same tree finds the same adapters, and adds to them.
    let again = InjectedAdapters(in: tree, registry: AdapterTree.registry)
    #expect(again.names == ["default"])
    try again.inject(LoRAConfig(rank: 2, targets: Self.targets), as: "second")
    #expect(adapters.names == ["default", "second"])
    try adapters.delete("default")
    try again.delete("second")
    #expect(InjectedAdapters(in: tree, registry: AdapterTree.registry).names.isEmpty)

    // A wrapped model takes keys with the prefix alone.
    let wrapped = try FileGoldenTests.load()
    try wrapped.add("default", LoRAConfig(rank: 2, targets: Self.targets))
    let report = try wrapped.setState(try source.state(of: "mlp", form: .injected), of: "default")
    #expect(report.matched.isEmpty && report.missing == keys && report.unexpected.count == 8)
  }

  @Test func otherShapesAreRefusedOrReported() throws {
    let source = try FileGoldenTests.load()
    var config = LoRAConfig(rank: 3, targets: Self.targets)
    try source.add("default", config)
    let target = try FileGoldenTests.load()
    config.rank = 2
    try target.add("default", config)
    let before = try target.state(of: "default")
    let error = #expect(throws: PEFTError.self) {
      try target.setState(try source.state(of: "default"), of: "default")
    }
    let key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    #expect(error?.code == .shapeMismatch)
    #expect(
      error?.description
        == "the state of 'default': '\(key)' has shape [3, 16], the model needs [2, 16]. "
        + "The adapter was made for another base model or rank.")
    let report = try target.setState(
      try source.state(of: "default"), of: "default", ignoringMismatchedSizes: true)
    #expect(report.mismatched.count == 8 && report.matched.isEmpty && report.missing.isEmpty)
    #expect(report.mismatched[0] == (key, [3, 16], [2, 16]))
    for name in before.names {
      #expect(try before.bytes(name) == target.state(of: "default").bytes(name))
    }
  }

  @Test func keysDecideWhereAdaptersGo() throws {
    let keys = [0, 1].flatMap { layer in
      ["A", "B"].map { "model.layers.\(layer).mlp.down_proj.lora_\($0).weight" }
    }
    func inject(_ targets: [String]) throws -> (TargetReport, [String]) {
      let adapters = InjectedAdapters(
        in: try FileGoldenTests.load().base, registry: AdapterTree.registry)
      let report = try adapters.inject(
        LoRAConfig(rank: 2, targets: TargetSelection(.list(targets))), stateKeys: keys)
      return (report, try adapters.state().names)
    }
    let down = (0..<2).map { "model.layers.\($0).mlp.down_proj" }
    var (report, names) = try inject(["down_proj"])
    #expect(report.matched == down && names == keys)
    #expect(report.additionalInConfig.isEmpty && report.additionalInState.isEmpty)
    (report, names) = try inject(["layers.0.mlp.down_proj"])
    #expect(names == keys && report.additionalInState == [down[1]])
    (report, names) = try inject(["lm_head"])
    #expect(names == keys && report.additionalInState == down)
    #expect(report.additionalInConfig == ["lm_head"])
    // Rows of an embedding that are trained name no layer for LoRA.
    let rows = InjectedAdapters(
      in: try FileGoldenTests.load().base, registry: AdapterTree.registry)
    try rows.inject(
      LoRAConfig(rank: 2, targets: Self.targets),
      stateKeys: keys + ["model.embed_tokens.token_adapter.trainable_tokens_delta"])
    #expect(try rows.state().names == keys)
    (report, names) = try inject(["nothing"])
    #expect(names == keys && report.additionalInConfig.isEmpty)
    let adapters = InjectedAdapters(
      in: try FileGoldenTests.load().base, registry: AdapterTree.registry)
    let error = #expect(throws: PEFTError.self) {
      try adapters.inject(LoRAConfig(), stateKeys: keys)
    }
    #expect(error?.message.hasPrefix("Please specify `target_modules`") == true)
    #expect(throws: PEFTError.self) {
      try adapters.inject(LoRAConfig(targets: Self.targets), stateKeys: ["x.lora_A.weight"])
    }
    #expect(adapters.names.isEmpty)
  }
}
