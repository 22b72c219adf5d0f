import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// What combinations and conversions refuse, with the adapter or the module; on a model, which stays
/// as it was, and on values alone.
struct CombinationErrorTests {
  private let peft: PeftModel
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    let tree = AdapterTree()
    for (path, outputs) in [("lin", 8), ("part.fused", 12)] {
      let weight = Tensor.normal(
        [outputs, 10], deviation: 1, key: DropoutKey(seed: 3, stream: UInt64(outputs)))
      tree.add(
        path,
        Linear(
          HostParameters(weight: .matrix(DenseMatrix(weight)), bias: Parameter(.zeros([outputs]))),
          inputFeatures: 10, outputFeatures: outputs))
    }
    peft = PeftModel(
      tree, info: BaseModelInfo(modelType: "toy"), registry: AdapterTree.registry)
    for name in ["first", "second"] { try peft.add(name, Self.config("lin", "part.fused")) }
    try peft.setTrainable(["first"], false)
  }

  private static func config(
    _ targets: String..., rank: Int = 2, change: (inout LoRAConfig) -> Void = { _ in }
  ) -> LoRAConfig {
    var config = LoRAConfig(
      rank: rank, targets: TargetSelection(.list(targets)), initialization: .random)
    change(&config)
    return config
  }

  /// An adapter of `lin`, 3 → 4, as a file has it.
  private static func values(
    _ name: String, isEmbedding: Bool = false, others: [(key: String, value: Tensor)] = [],
    _ change: (inout LoRAConfig) -> Void = { _ in }
  ) -> AdapterValues {
    func factor(_ shape: [Int], _ stream: UInt64) -> Tensor {
      .normal(shape, deviation: 1, key: DropoutKey(seed: siteID(name), stream: stream))
    }
    let suffixes =
      isEmbedding ? ["lora_embedding_A", "lora_embedding_B"] : ["lora_A.weight", "lora_B.weight"]
    return AdapterValues(
      name: name, config: config("lin", change: change).object,
      tensors: [
        ("base_model.model.lin.\(suffixes[0])", factor([2, 3], 1)),
        ("base_model.model.lin.\(suffixes[1])", factor([4, 2], 2)),
      ] + others)
  }

  private static var base: BaseWeights {
    BaseWeights { (_, outputs, inputs, _) throws(PEFTError) in
      .normal([outputs, inputs], deviation: 1, key: DropoutKey(seed: 1, stream: 1))
    }
  }

  private func refuses(
    _ text: String, _ code: PEFTError.Code, at location: String? = nil,
    _ adapters: [AdapterValues], sourceLocation: SourceLocation = #_sourceLocation
  ) {
    expectError(text, code, at: location, sourceLocation: sourceLocation) {
      _ = try AdapterTree.registry.combine(
        adapters.map { CombinationSource($0, weight: 1) }, Combination(.cat), base: Self.base)
    }
  }

  // MARK: Values alone

  @Test func adaptersThatDoNotGoTogether() {
    let plain = Self.values("a")
    refuses(
      "is an embedding to the adapter 'b' and none to 'a'", .shapeMismatch, at: "lin",
      [plain, Self.values("b", isEmbedding: true)])
    refuses(
      "is an embedding to the adapter 'b' and none to 'a'", .shapeMismatch, at: "lin",
      [Self.values("b", isEmbedding: true), plain])
    refuses(
      "'bias': \"all\": biases of the base that were trained cannot be combined", .unsupported,
      at: "b", [plain, Self.values("b") { $0.bias = .all }])
    for (initialization, name) in [
      (LoRAConfig.Initialization.pissa, "pissa"),
      (.randomizedPiSSA(iterations: 4), "pissa_niter_4"), (.olora, "olora"),
      (.corda(CorDASettings()), "corda"), (.loraGA(LoRAGASettings()), "lora_ga"),
      (.loftq(LoftQSettings()), "loftq"),
    ] {
      refuses(
        "'init_lora_weights': \"\(name)\": the adapter belongs to a changed base, so its factors "
          + "alone cannot be combined", .unsupported, at: "b",
        [plain, Self.values("b") { $0.initialization = initialization }])
    }
    for (key, change) in [
      ("layer_replication", { $0.layerReplication = [0..<1, 0..<1] }),
      ("trainable_token_indices", { $0.trainableTokens = .inputEmbedding([1, 2]) }),
      ("enable_lora", { $0.enabledParts = [true, false] }),
    ] as [(String, (inout LoRAConfig) -> Void)] {
      refuses(
        "'\(key)' differs between the adapters 'a' and 'c', so they cannot be combined",
        .unsupported, [plain, Self.values("b"), Self.values("c", change)])
    }
    // A whole module, and one around another.
    for path in ["lin", "outer"] {
      let saved = Self.values(
        "b", others: [("base_model.model.\(path).weight", .zeros([4, 3]))]
      ) { $0.modulesToSave = [path] }
      var other = plain
      if path == "outer" {
        other.tensors = plain.tensors.map {
          ($0.key.replacing(".lin.", with: ".outer.lin."), $0.value)
        }
      }
      refuses(
        "the adapter 'b' trains '\(path)' in full, 'a' adapts it", .unsupported,
        at: path == "lin" ? "lin" : "outer.lin", [other, saved])
    }
  }

  @Test func adaptersThatAreBroken() {
    let plain = Self.values("a")
    let key = "base_model.model.lin.lora_C.weight"
    refuses(
      "'\(key)' is not a tensor of LoRA or DoRA, so it cannot be combined", .unsupported, at: "b",
      [plain, Self.values("b", others: [(key, .zeros([1]))])])
    var empty = Self.values("b")
    empty.tensors = []
    refuses("the adapter has no factors A and B", .missingTensor, at: "b", [plain, empty])
    var odd = Self.values("b")
    odd.tensors[0].value = .zeros([3, 3])
    refuses(
      "'lin': factors of shapes [3, 3] and [4, 2] have no product", .shapeMismatch, at: "b",
      [plain, odd])
    for (place, suffix) in ["lora_A.weight", "lora_B.weight"].enumerated() {
      var half = Self.values("b")
      half.tensors.remove(at: place)
      refuses("'lin' has no \(suffix)", .missingTensor, at: "b", [plain, half])
      for value in [Float.nan, .infinity] {
        var broken = Self.values("b")
        var scalars = broken.tensors[place].value.scalars
        scalars[3] = value
        broken.tensors[place].value = Tensor(
          shape: broken.tensors[place].value.shape, scalars: scalars)
        refuses(
          "'lin' has values that are not finite, in \(suffix)", .numericalFailure, at: "b",
          [plain, broken])
      }
    }
  }

  @Test func doraAdapters() {
    let magnitude = "base_model.model.lin.lora_magnitude_vector"
    func dora(_ value: Tensor) -> AdapterValues {
      Self.values("b", others: [(magnitude, value)]) { $0.usesDoRA = true }
    }
    let biased = Self.values(
      "a", others: [("base_model.model.lin.lora_B.bias", .zeros([4]))]
    ) { $0.usesLoRABias = true }
    refuses(
      "adapters with 'lora_bias' cannot be combined with DoRA adapters", .unsupported, at: "lin",
      [biased, dora(Tensor(repeating: 1, shape: [4]))])
    refuses(
      "'lora_magnitude_vector' of the adapter 'b' has shape [5], 4 elements were expected",
      .shapeMismatch, at: "lin", [Self.values("a"), dora(Tensor(repeating: 1, shape: [5]))])
    refuses(
      "'lin' has no lora_magnitude_vector", .missingTensor, at: "b",
      [Self.values("a"), Self.values("b") { $0.usesDoRA = true }])
    // A row of length 0 takes all of the base's row away.
    refuses(
      "the weights of the DoRA adapters cancel row 2 of the base's weight", .numericalFailure,
      at: "lin", [Self.values("a"), dora(Tensor(shape: [4], scalars: [1, 1, 0, 1]))])
  }

  // MARK: On a model

  @Test func combinationsOnAModel() throws {
    func combine(_ other: String) throws {
      try peft.combine(["first", other], weights: [1, 1], into: "sum", Combination(.cat))
    }
    let tensor = try #require(try peft.tensors(of: "second").last).parameter
    let good = tensor.value
    var scalars = good.scalars
    scalars[5] = .nan
    tensor.assign(Tensor(shape: good.shape, scalars: scalars))
    try peft.refuses(
      "'part.fused' has values that are not finite, in lora_B.weight", .numericalFailure,
      at: "second"
    ) { try combine("second") }
    tensor.assign(good)

    try peft.add("fused", Self.config("part.fused") { $0.enabledParts = [true, false] })
    try peft.refuses(
      "'enable_lora' differs between the adapters 'first' and 'fused', so they cannot be combined",
      .unsupported
    ) { try combine("fused") }
    try peft.add("biases", Self.config("lin") { $0.bias = .all })
    try peft.refuses(
      "'bias': \"all\": biases of the base that were trained cannot be combined", .unsupported,
      at: "biases"
    ) { try combine("biases") }
    // In peft they are dropped.
    try peft.combine(
      ["first", "biases"], weights: [1, 1], into: "sum", Combination(.cat, compatibility: .peft))
    #expect(try peft.tensors(of: "sum").count == 4)
  }

  /// In peft's words (case 72).
  @Test func conversions() throws {
    func convert(_ adapter: String, _ rank: LoRAConversion.Rank) throws {
      try peft.saveAsLoRA(folder("x"), adapter: adapter, rank: rank)
    }
    for share in [0.0, 1.5, -0.5, .nan, .infinity] {
      try peft.refuses(
        "If rank is a float, it is interpreted as a threshold. It must be between 0 and 1 but got "
          + "\(share).", .invalidConfiguration, isPefts: [0, 1.5].contains(share)
      ) { try convert("first", .energy(share)) }
    }
    try peft.refuses(
      "Passing a rank of 0 doesn't make sense, please pass a valid value.", .invalidConfiguration,
      isPefts: true
    ) { try convert("first", .fixed(0)) }
    try peft.refuses(
      "the rank is -1, a positive number was expected", .invalidConfiguration
    ) { try convert("first", .fixed(-1)) }
    try peft.refuses(
      "The chosen rank 9 is larger than the weight shape (8), please choose a lower rank.",
      .invalidConfiguration, at: "lin", isPefts: true
    ) { try convert("first", .fixed(9)) }
    try peft.refuses("Adapter nobody not found.", .invalidAdapter) {
      try convert("nobody", .fixed(2))
    }
    try peft.add("biases", Self.config("lin") { $0.bias = .all })
    try peft.refuses(
      "The adapter's config sets bias=all, this is not supported right now.", .unsupported,
      at: "biases", isPefts: true
    ) { try convert("biases", .fixed(2)) }
    try peft.add("biased", Self.config("lin") { $0.usesLoRABias = true })
    try peft.refuses(
      "The adapter's config sets lora_bias=true, which cannot be converted.", .unsupported,
      at: "biased"
    ) { try convert("biased", .fixed(2)) }
    #expect(folder.names.isEmpty)
  }
}
