import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// Ranks of converted adapters, and how near they come. Expected numbers are the formulas named at each
/// test.
struct ConversionRankTests {
  /// A weight with 8 singular values, and one with 3.
  private final class Pair: Module {
    let first = Pair.linear(1, 8)
    let second = Pair.linear(2, 3)
    let typeName = "Pair"
    var children: [(name: String, module: any Module)] {
      [("first", first), ("second", second)]
    }

    private static func linear(_ seed: UInt64, _ outputs: Int) -> Linear {
      let weight = Tensor.normal(
        [outputs, 12], deviation: 0.4, key: DropoutKey(seed: seed, stream: 1))
      return Linear(
        HostParameters(weight: .matrix(DenseMatrix(weight)), bias: nil), inputFeatures: 12,
        outputFeatures: outputs)
    }
  }

  private static func model() -> PeftModel {
    PeftModel(Pair(), info: BaseModelInfo(modelType: "toy"), registry: GoldenTests.registry)
  }

  private static func lora(
    rank: Int, _ pattern: [(String, Double)] = [], _ change: (inout LoRAConfig) -> Void = { _ in }
  ) -> LoRAConfig {
    var config = LoRAConfig(
      rank: rank, alpha: 5, targets: TargetSelection(.list(["first", "second"])),
      rankPattern: SuffixPatterns(pattern.map { .init($0.0, $0.1) }), initialization: .random)
    change(&config)
    return config
  }

  private static func ranks(_ peft: PeftModel, _ name: String) throws -> [Int] {
    try peft.adaptedLayers(of: name).map { try #require($0.layer as? any LoRAFactors).rank }
  }

  /// Modules keep their own ranks; a weight gets no more than it has singular values, and loses nothing
  /// by that.
  @Test(
    arguments: [
      (2, [("second", 3.0)], nil, [2, 3]), (8, [("second", 2)], nil, [8, 2]), (5, [], nil, [5, 3]),
      (1, [("first", 2), ("second", 7)], nil, [2, 3]), (2, [("first", 3)], 4, [4, 3]),
      (2, [], 20, [8, 3]),
    ] as [(Int, [(String, Double)], Int?, [Int])])
  func ranksAreKept(
    _ rank: Int, _ pattern: [(String, Double)], _ wanted: Int?, _ expected: [Int]
  ) throws {
    let peft = Self.model()
    try peft.add(
      "old",
      Self.lora(rank: rank, pattern) {
        $0.usesDoRA = true
        $0.usesRSLoRA = true
        $0.alphaPattern = SuffixPatterns([.init("first", 7)])
      }, seed: 1)
    for tensor in try peft.tensors(of: "old") where tensor.key.hasSuffix("magnitude_vector") {
      tensor.parameter.update { $0 = $0.scaled(by: 1.3) }
    }
    let report = try peft.convert("old", to: .lora, as: "new", rank: wanted)
    #expect(try Self.ranks(peft, "new") == expected)
    // The squares of the singular values that are left out.
    var (lost, whole) = (0.0, 0.0)
    for (layer, rank) in zip(try peft.adaptedLayers(of: "old"), expected) {
      let squares = try layer.fullChange().decomposed().s.map { Double($0 * $0) }
      lost += squares.dropFirst(rank).reduce(0, +)
      whole += squares.reduce(0, +)
    }
    #expect(abs(report.relativeError - (lost / whole).squareRoot()) < 1e-4)
    // The file says what the layers are.
    let config = try #require(try peft.config("new") as? LoRAConfig)
    #expect(try ["first", "second"].map { try config.rank($0) } == expected)
    #expect(
      try zip(["first", "second"], expected).allSatisfy {
        try config.scaling($0, rank: $1) == 1
      })
    if wanted == nil, expected == [rank, Int(pattern.first?.1 ?? 0)] {
      #expect(config.rankPattern == SuffixPatterns(pattern.map { .init($0.0, $0.1) }))
    }
  }

  /// The magnitude that LoRA gets as EDoRA leaves each row of the weight's difference at right angles to
  /// the row of V = W + s·B·R·A, which makes it the smallest that any magnitude does.
  @Test(arguments: [1, 3, 8], [0.5, 8, 60])
  func noChangeIsNeverNearer(_ rank: Int, _ alpha: Double) throws {
    let peft = Self.model()
    try peft.add(
      "old",
      LoRAConfig(
        rank: rank, alpha: alpha, targets: TargetSelection(.list(["first"])),
        initialization: .random), seed: 1)
    let report = try peft.convert("old", to: .edora, as: "new")
    #expect(report.relativeError <= 1)
    let (old, new) = (
      try #require(try peft.adaptedLayers(of: "old").first),
      try #require(try peft.adaptedLayers(of: "new").first)
    )
    let layer = try #require(new.layer as? EDoRALayer)
    let (change, weight) = (try old.fullChange(), old.base.dequantized())
    let lost = try new.fullChange() + change.scaled(by: -1)
    #expect(
      abs(report.relativeError - (lost.sumOfSquares / change.sumOfSquares).squareRoot()) < 1e-6)
    let low = linear(
      linear(layer.a.value.transposed(), try #require(layer.latent).value), layer.b.value)
    let direction = weight + low.transposed().scaled(by: Float(layer.scaling))
    for row in 0..<8 {
      let (one, other) = (
        direction.rowRange(row..<row + 1), (lost.rowRange(row..<row + 1))
      )
      let product = zip(one.scalars, other.scalars).reduce(0.0) { $0 + Double($1.0 * $1.1) }
      let size = (one.sumOfSquares * (weight + change).rowRange(row..<row + 1).sumOfSquares)
        .squareRoot()
      #expect(abs(product) < 1e-5 * size, "row \(row)")
    }
    // With the norms of W + ΔW, small magnitudes aside, the result would be worse.
    guard rank == 1, alpha == 60 else { return }
    let magnitude = try #require(layer.weight).magnitude
    let changed = DenseMatrix(weight + change)
    magnitude.assign(EDoRALayer.norms(of: HostParameters(weight: .matrix(changed), bias: nil)))
    let worse = try new.fullChange() + change.scaled(by: -1)
    #expect(worse.sumOfSquares > change.sumOfSquares)
  }
}
