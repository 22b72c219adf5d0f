import BLASKernels
import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// What LoRA's settings and layers refuse, with the key or the module, and the model as it was.
struct LoRAErrorTests {
  private let peft: PeftModel
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    let tree = AdapterTree()
    tree.add("lin", Self.linear(10, 8, 1))
    tree.add("part.fused", Self.linear(10, 12, 2))
    tree.add(
      "emb",
      Embedding(
        HostParameters(weight: .matrix(Self.matrix(11, 6, 3)), bias: nil), count: 11, width: 6))
    tree.add(
      "conv",
      Convolution(
        Self.matrix(8, 36, 4), bias: nil, ConvolutionSettings(4, 8, kernel: [3, 3])))
    tree.add(
      "sealed",
      Linear(
        HostParameters(weight: .matrix(SealedMatrix(Self.matrix(8, 10, 5))), bias: nil),
        inputFeatures: 10, outputFeatures: 8))
    peft = PeftModel(
      tree, info: BaseModelInfo(modelType: "toy"), registry: AdapterTree.registry)
    // One that is active, and not trained though it is.
    try peft.add("first", Self.config("lin"))
    try peft.setTrainable(["first"], false)
  }

  private static func matrix(_ rows: Int, _ columns: Int, _ stream: UInt64) -> DenseMatrix {
    DenseMatrix(.normal([rows, columns], deviation: 1, key: DropoutKey(seed: 3, stream: stream)))
  }

  private static func linear(_ inputs: Int, _ outputs: Int, _ stream: UInt64) -> Linear {
    Linear(
      HostParameters(weight: .matrix(matrix(outputs, inputs, stream)), bias: nil),
      inputFeatures: inputs, outputFeatures: outputs)
  }

  private static func config(
    _ targets: String..., rank: Int = 2, _ change: (inout LoRAConfig) -> Void = { _ in }
  ) -> LoRAConfig {
    var config = LoRAConfig(rank: rank, targets: TargetSelection(.list(targets)))
    change(&config)
    return config
  }

  @Test func partsOfFusedLayers() throws {
    try peft.refuses(
      "'enable_lora' enables no part; at least one was expected", .invalidConfiguration
    ) {
      try peft.add("second", Self.config("part.fused") { $0.enabledParts = [false, false] })
    }
    try peft.refuses(
      "'enable_lora': 5 parts of 12 outputs; the length of enable_lora must divide out_features",
      .invalidConfiguration, at: "part.fused"
    ) {
      try peft.add(
        "second",
        Self.config("part.fused") { $0.enabledParts = [true, false, true, false, false] })
    }
    for (key, change) in [
      ("lora_bias", { $0.usesLoRABias = true }), ("use_dora", { $0.usesDoRA = true }),
      ("init_lora_weights", { $0.initialization = .pissa }),
    ] as [(String, (inout LoRAConfig) -> Void)] {
      try peft.refuses("'\(key)' is not supported together with 'enable_lora'", .unsupported) {
        try peft.add(
          "second",
          Self.config("part.fused") {
            $0.enabledParts = [true, false]
            change(&$0)
          })
      }
    }
    try peft.refuses(
      "'enable_lora' is for fused linear layers, not for Conv2d", .unsupported, at: "conv"
    ) {
      try peft.add("second", Self.config("part.fused", "conv") { $0.enabledParts = [true, false] })
    }
    try peft.refuses("the adapter 'first' has no parts ('enable_lora')", .invalidAdapter) {
      try peft.expandParts(of: "first", as: "second")
    }
  }

  @Test(arguments: [
    (LoRAConfig.Initialization.pissa, "\"pissa\""), (.olora, "\"olora\""),
    (.orthogonal, "\"orthogonal\""), (.loftq(LoftQSettings()), "\"loftq\""),
  ])
  func initialisationsOfParameters(
    _ initialization: LoRAConfig.Initialization, _ name: String
  ) throws {
    try peft.refuses(
      "'init_lora_weights': \(name) is not supported for parameters", .unsupported,
      at: "part.fused"
    ) {
      try peft.add(
        "second",
        Self.config {
          $0.targetParameters = ["part.fused.weight"]
          $0.initialization = initialization
        })
    }
  }

  /// In peft's words (cases 5, 6).
  @Test func initialisationsThatDoNotFitALayer() throws {
    for (initialization, name) in [
      (LoRAConfig.Initialization.pissa, "pissa"), (.olora, "olora"), (.orthogonal, "orthogonal"),
    ] {
      try peft.refuses(
        "Unknown initialization init_lora_weights='\(name)'", .invalidConfiguration, at: "conv",
        isPefts: true
      ) {
        try peft.add("second", Self.config("lin", "conv") { $0.initialization = initialization })
      }
    }
    // The layer before it has another rank, and is made.
    try peft.refuses(
      "Orthogonal initialization requires the LoRA rank to be even, got 7 instead.",
      .invalidConfiguration, at: "part.fused", isPefts: true
    ) {
      try peft.add(
        "second",
        Self.config("lin", "part.fused", rank: 7) {
          $0.initialization = .orthogonal
          $0.rankPattern = SuffixPatterns([.init("lin", 4)])
        })
    }
  }

  @Test func loftQ() throws {
    let loftq = LoRAConfig.Initialization.loftq(LoftQSettings())
    for (path, kind) in [("emb", "Embedding"), ("conv", "Conv2d")] {
      try peft.refuses(
        "LoftQ rounds the weights of linear layers, not of \(kind)", .unsupported, at: path
      ) { try peft.add("second", Self.config("lin", path) { $0.initialization = loftq }) }
    }
    try peft.refuses(
      "a weight in the format 'sealed' cannot take rounded values", .unsupported, at: "sealed"
    ) { try peft.add("second", Self.config("lin", "sealed") { $0.initialization = loftq }) }

    // Its change is not of the base as it is, so it has no other form than its own.
    try peft.add("rounded", Self.config("lin") { $0.initialization = loftq })
    let text =
      "the adapter goes with a base of rounded weights (LoftQ); it has no form for the base as it is"
    for call in [
      { try peft.save(folder("x"), adapter: "rounded", form: .plain) },
      { _ = try peft.convertToLoRA("rounded", rank: .fixed(1)) },
      { try peft.saveAsLoRA(folder("x"), adapter: "rounded", rank: .fixed(1)) },
      {
        try peft.combine(["rounded", "first"], weights: [1, 1], into: "sum", Combination(.cat))
      },
    ] as [() throws -> Void] {
      try peft.refuses(text, .unsupported, at: "lin", call)
    }
    #expect(folder.names.isEmpty)
  }

  /// Whatever divides singular values by the scaling.
  @Test(arguments: [
    LoRAConfig.Initialization.pissa, .randomizedPiSSA(iterations: 2), .loftq(LoftQSettings()),
  ])
  func scalingsThatNothingCanBeDividedBy(_ initialization: LoRAConfig.Initialization) throws {
    for (alpha, text) in [(0.0, "0.0"), (-4, "-2.0")] {
      try peft.refuses(
        "the scaling is \(text); the singular values are divided by it", .invalidConfiguration,
        at: "part.fused"
      ) {
        try peft.add(
          "second",
          Self.config("lin", "part.fused") {
            $0.alphaPattern = SuffixPatterns([.init("fused", alpha)])
            $0.initialization = initialization
          })
      }
    }
  }

  /// The settings of an initialisation, wherever they come from.
  @Test func settingsOfInitialisations() throws {
    var rho = EVASettings()
    var tau = EVASettings()
    for wrong in [0.5, .nan, .infinity] {
      rho.rho = wrong
      tau.tau = wrong == 0.5 ? -wrong : wrong
      for (initialization, text, place) in [
        (LoRAConfig.Initialization.eva(rho), "`rho` must be >= 1.0", "eva_config"),
        (.eva(tau), "`tau` must be between 0.0 and 1.0.", "eva_config"),
      ] {
        try peft.refuses(text, .invalidConfiguration, at: "'\(place)'") {
          try peft.add("second", Self.config("lin") { $0.initialization = initialization })
        }
      }
    }
    for gamma in [0, -1, Double.nan] {
      try peft.refuses(
        "'stable_gamma' is \(gamma), a positive number was expected", .invalidConfiguration,
        at: "'lora_ga_config'"
      ) {
        try peft.add(
          "second",
          Self.config("lin") {
            $0.initialization = .loraGA(LoRAGASettings(stableGamma: gamma))
          })
      }
    }
    try peft.refuses(
      "'loftq_bits' is 3; only nf2, nf4 and int8 quantization is supported",
      .invalidConfiguration, at: "'loftq_config'"
    ) {
      try peft.add(
        "second", Self.config("lin") { $0.initialization = .loftq(LoftQSettings(bits: 3)) })
    }
    try peft.refuses(
      "Number of iterations must be greater than 0", .invalidConfiguration, at: "'loftq_config'"
    ) {
      try peft.add(
        "second", Self.config("lin") { $0.initialization = .loftq(LoftQSettings(iterations: 0)) })
    }
  }

  /// In peft's words (cases 5b, 16).
  @Test(arguments: [
    (
      #"{"init_lora_weights": "nonsense"}"#, "Unknown initialization init_lora_weights='nonsense'",
      PEFTError.Code.invalidConfiguration
    ),
    (
      #"{"init_lora_weights": "EVA"}"#, "Unknown initialization init_lora_weights='EVA'",
      .invalidConfiguration
    ),
    (
      #"{"init_lora_weights": "LoftQ"}"#, "Unknown initialization init_lora_weights='LoftQ'",
      .invalidConfiguration
    ),
    (
      #"{"init_lora_weights": "pissa_16"}"#,
      "init_lora_weights should be 'pissa' or 'pissa_niter_[number of iters]', got pissa_16 instead.",
      .invalidConfiguration
    ),
    (
      #"{"use_dora": true, "megatron_config": {"a": 1}}"#,
      "DoRA does not support megatron_core, please set `use_dora=False`.", .unsupported
    ),
    (
      #"{"use_dora": true, "lora_bias": true}"#,
      "The argument lora_bias=True is not supported for DoRA, please pass use_dora=False",
      .invalidConfiguration
    ),
  ])
  func settings(_ text: String, _ message: String, _ code: PEFTError.Code) throws {
    let object = try #require(try JSONValue(parsing: text).object)
    expectError(message, code, isPefts: true) { _ = try LoRAConfig(object) }
  }
}

/// A weight in a format that takes no changes.
private struct SealedMatrix: WeightMatrix {
  private struct Failure: Error {}
  private let matrix: DenseMatrix

  init(_ matrix: DenseMatrix) { self.matrix = matrix }

  var rows: Int { matrix.rows }
  var columns: Int { matrix.columns }
  var format: String { "sealed" }
  var byteCount: Int { matrix.byteCount }

  func multiply(_ x: Slice<Float>, count n: Int, beta: Float, into y: MutableSlice<Float>) {
    matrix.multiply(x, count: n, beta: beta, into: y)
  }

  func multiplyTransposed(
    _ y: Slice<Float>, count n: Int, beta: Float, into x: MutableSlice<Float>
  ) { matrix.multiplyTransposed(y, count: n, beta: beta, into: x) }

  func gatherRows(_ ids: [Int32], into output: MutableSlice<Float>) {
    matrix.gatherRows(ids, into: output)
  }

  func dequantized(rows range: Range<Int>) -> Tensor { matrix.dequantized(rows: range) }
  func squaredRowNorms() -> Tensor { matrix.squaredRowNorms() }
  func merging(_ delta: WeightDelta) throws -> any WeightMatrix { throw Failure() }
}
