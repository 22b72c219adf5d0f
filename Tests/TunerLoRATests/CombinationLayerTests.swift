import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Combinations on a model with every kind of layer that LoRA adapts.
struct CombinationLayerTests {
  /// All but those with DoRA adapters, which LoRA's tuner does not put on a model, and the one of which nothing is left.
  static let cases = CombinationGoldenTests.cases.filter {
    $0.error == nil && !$0.name.hasPrefix("dora") && $0.name != "dare-empty"
  }

  /// The change of every weight is that of peft's new adapter (Tests/Goldens/combine).
  @Test(arguments: cases)
  func equalsPeftOnAModel(_ golden: CombinationCase) throws {
    let peft = try CombinedLayers.model()
    for name in Set(golden.adapters) {
      try peft.load(CombinationCase.path("adapters/\(name)"), as: name)
    }
    try peft.combine(
      golden.adapters, weights: golden.weights, into: "new", try golden.combination(.peft))
    let file = try SafetensorsFile(CombinationCase.path("\(golden.name).safetensors"))
    let layers = try peft.adaptedLayers(of: "new")
    #expect(Set(layers.map(\.path)) == Set(golden.result["scaling"]?.object?.keys ?? []))
    for layer in layers {
      let expected = try file.tensor("delta.\(layer.path)")
      let matrix = expected.reshaped([expected.shape[0], expected.count / expected.shape[0]])
      let oriented = layer.path == "gpt2" ? matrix.transposed() : matrix
      expectClose(
        try layer.fullChange().scalars, oriented.scalars.map { Double($0) }, 1e-5,
        "\(golden.name): \(layer.path)")
    }
  }

  /// Where ranks differ from module to module, as by default, the new adapter is saved and read again.
  @Test(arguments: [
    "pattern-linear", "pattern-svd", "ranks-ties-svd", "svd-rank-8", "expression-list",
  ])
  func roundTrips(_ name: String) throws {
    let golden = try #require(CombinationGoldenTests.cases.first { $0.name == name })
    let peft = try CombinedLayers.model()
    for name in Set(golden.adapters) {
      try peft.load(CombinationCase.path("adapters/\(name)"), as: name)
    }
    try peft.combine(
      golden.adapters, weights: golden.weights, into: "new", try golden.combination(.exact))
    let folder = try TemporaryFolder()
    try peft.save(folder("new"), adapter: "new")
    let again = try CombinedLayers.model()
    let report = try again.load(folder("new"), as: "new")
    #expect(report.missing.isEmpty && report.unexpected.isEmpty)
    for (old, new) in zip(try peft.adaptedLayers(of: "new"), try again.adaptedLayers(of: "new")) {
      #expect(old.path == new.path)
      #expect(try old.fullChange().scalars == new.fullChange().scalars)
    }
  }

  /// A grouped convolution has no change of its weight, but the sum of two adapters acts as both.
  @Test(arguments: [Combination.Kind.linear, .cat, .svd])
  func groupedConvolutions(_ kind: Combination.Kind) throws {
    let host = Convolution(
      DenseMatrix(.normal([6, 2 * 9], deviation: 1, key: DropoutKey(seed: 1, stream: 1))),
      bias: nil, ConvolutionSettings(4, 6, kernel: [3, 3], groups: 2))
    let peft = CombinedLayers.wrap(Single(host))
    let x = Tensor.normal([2, 4, 5, 5], deviation: 1, key: DropoutKey(seed: 2, stream: 1))
    func output(_ adapters: [String]) throws -> Tensor {
      try peft.setActive(adapters)
      return withoutGradients { host(x, ForwardContext(SequenceLayout(lengths: [1, 1]))) }
    }
    for (name, rank) in [("a", 4), ("b", 2)] {
      try peft.add(
        name,
        LoRAConfig(
          rank: rank, alpha: 6, targets: TargetSelection(.list(["layer"])), initialization: .random),
        seed: UInt64(rank))
    }
    let both = try output(["a", "b"])
    try peft.combine(
      ["a", "b"], weights: [1, 1], into: "sum", Combination(kind, svdRank: kind == .svd ? 6 : nil))
    #expect(relativeError(try output(["sum"]), both) < 1e-5)
    // Its groups are decomposed one by one.
    let whole = try peft.convertToLoRA("sum", rank: .fixed(6))
    try peft.add("whole", whole.values)
    #expect(relativeError(try output(["whole"]), both) < 1e-5)
    let error = #expect(throws: PEFTError.self) { try peft.convertToLoRA("sum", rank: .fixed(8)) }
    #expect(
      error?.message
        == "The chosen rank 8 is larger than the weight shape (6), please choose a lower rank.")
  }

  /// The projections inside of packed attention have one line in the config and so one rank.
  @Test func packedAttention() throws {
    func values(_ shape: [Int], _ stream: UInt64) -> Tensor {
      .normal(shape, deviation: 0.5, key: DropoutKey(seed: 3, stream: stream))
    }
    let keys = [
      ("layer", 24), ("layer.base_layer.out_proj", 8),
    ]
    func adapter(_ name: String, _ rank: Int, _ seed: UInt64) -> AdapterValues {
      var tensors: [(key: String, value: Tensor)] = []
      for (place, (path, outputs)) in keys.enumerated() {
        let stream = seed + UInt64(place)
        tensors.append(
          ("base_model.model.\(path).lora_A.weight", values([rank, 8], 10 * stream)))
        tensors.append(
          ("base_model.model.\(path).lora_B.weight", values([outputs, rank], 10 * stream + 1)))
      }
      let config = LoRAConfig(
        rank: rank, alpha: Double(2 * rank), targets: TargetSelection(.list(["layer"])))
      return AdapterValues(name: name, config: config.object, tensors: tensors)
    }
    let sources = [adapter("a", 4, 1), adapter("b", 2, 5)]
    let made = try CombinationCase.registry.combine(
      sources.map { CombinationSource($0, weight: 0.5) }, Combination(.svd, svdRank: 12)
    ).state
    // Σ r = 6 is all that there is.
    #expect(made.config["r"] == 6)
    #expect(made.config["rank_pattern"] == [:])
    let parts = try LoRAParts(CombinationSource(made, weight: 1)).modules
    let own = try sources.map { try LoRAParts(CombinationSource($0, weight: 1)).modules }
    for (path, _) in keys {
      let part = try #require(parts[path])
      #expect(part.factors.rank == 6)
      let expected = zip(
        own[0][path]!.factors.product().scalars, own[1][path]!.factors.product().scalars
      )
      .map { Double($0) + Double($1) }
      expectClose(part.factors.product().scalars, expected, 1e-5, path)
    }
  }
}

/// The base of Tests/Goldens/combine.
final class CombinedLayers: Module {
  let children: [(name: String, module: any Module)]
  var typeName: String { "Model" }

  init() throws {
    let file = try SafetensorsFile(CombinationCase.path("base.safetensors"))
    func weight(_ name: String) throws -> DenseMatrix {
      let tensor = try file.tensor("\(name).weight")
      return DenseMatrix(tensor.reshaped([tensor.shape[0], tensor.count / tensor.shape[0]]))
    }
    func bias(_ name: String) throws -> Parameter { Parameter(try file.tensor("\(name).bias")) }
    func convolution(_ name: String, _ settings: ConvolutionSettings) throws -> Convolution {
      Convolution(try weight(name), bias: try bias(name), settings)
    }
    children = [
      (
        "linear",
        Linear(
          HostParameters(weight: .matrix(try weight("linear")), bias: try bias("linear")),
          inputFeatures: 9, outputFeatures: 7)
      ),
      ("gpt2", Conv1D(try weight("gpt2"), bias: try bias("gpt2"))),
      (
        "embed",
        Embedding(
          HostParameters(weight: .matrix(try weight("embed")), bias: nil), count: 11, width: 6,
          paddingIndex: nil)
      ),
      (
        "conv",
        try convolution(
          "conv", ConvolutionSettings(4, 6, kernel: [3, 3], padding: .symmetric([1, 1])))
      ),
      ("pointwise", try convolution("pointwise", ConvolutionSettings(7, 8, kernel: [1, 1]))),
      ("line", try convolution("line", ConvolutionSettings(4, 6, kernel: [3]))),
      ("volume", try convolution("volume", ConvolutionSettings(3, 5, kernel: [1, 2, 2]))),
    ]
  }

  static func model() throws -> PeftModel { wrap(try CombinedLayers()) }

  static func wrap(_ module: any Module) -> PeftModel {
    PeftModel(
      module, info: BaseModelInfo(modelType: "custom"), registry: CombinationCase.registry)
  }
}

/// One layer named `layer`.
private final class Single: Module {
  let layer: any Module
  init(_ layer: any Module) { self.layer = layer }
  var typeName: String { "Single" }
  var children: [(name: String, module: any Module)] { [("layer", layer)] }
}
