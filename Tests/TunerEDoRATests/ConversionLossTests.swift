import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// What conversions must not lose: changed scalings, B's biases, magnitudes. Expected values are the
/// source's outputs, and the formulas named at each test.
struct ConversionLossTests {
  private let host: Linear
  private let peft: PeftModel
  private let x = Tensor.normal([5, 12], deviation: 1, key: DropoutKey(seed: 4, stream: 4))
  private static let weight = Tensor.normal(
    [8, 12], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))

  init() {
    host = Linear(
      HostParameters(
        weight: .matrix(DenseMatrix(Self.weight)), bias: Parameter(Tensor.zeros([8]))),
      inputFeatures: 12, outputFeatures: 8)
    peft = PeftModel(
      SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: GoldenTests.registry)
  }

  private static func lora(_ change: (inout LoRAConfig) -> Void = { _ in }) -> LoRAConfig {
    var config = LoRAConfig(
      rank: 2, alpha: 3, targets: TargetSelection(.list(["layer"])), initialization: .random)
    change(&config)
    return config
  }

  private func output(_ adapter: String) throws -> Tensor {
    try peft.setActive([adapter])
    return withoutGradients {
      host.run(.features(x), ForwardContext(SequenceLayout(lengths: [5])))
    }
  }

  private func fill(_ adapter: String, _ part: String, _ deviation: Float) throws {
    let tensor = try #require(try peft.tensors(of: adapter).first { $0.key.contains(part) })
    tensor.parameter.assign(
      .normal(tensor.parameter.shape, deviation: deviation, key: DropoutKey(seed: 7, stream: 7)))
  }

  /// A scaling that was changed on the model is part of the change; the new config has the old one.
  @Test(arguments: [AdapterForm.lora, .dora], [0.5, 3, 0])
  func changedScalingsAreKept(_ form: AdapterForm, _ factor: Double) throws {
    try peft.add("old", Self.lora { $0.usesLoRABias = form == .lora }, seed: 1)
    if form == .lora { try fill("old", "lora_B.bias", 0.5) }
    let before = try output("old")
    try peft.setScale("old", factor)
    let expected = try output("old")
    #expect(relativeError(before, expected) > 1e-2)
    #expect(try peft.convert("old", to: form, as: "new").relativeError == 0)
    #expect(relativeError(try output("new"), expected) < 1e-5)
  }

  /// LoRA with a bias of B stays what it is; the other methods have none.
  @Test func biasesOfBAreKeptOrRefused() throws {
    try peft.add("old", Self.lora { $0.usesLoRABias = true }, seed: 1)
    try fill("old", "lora_B.bias", 0.5)
    #expect(try peft.convert("old", to: .lora, as: "new").relativeError == 0)
    #expect(try output("new").scalars == output("old").scalars)
    for form in [AdapterForm.dora, .edora, .loraXS] {
      try peft.refuses(
        "B has biases ('lora_bias'), which an adapter of \(form.rawValue) cannot hold",
        .unsupported, at: "old",
        remedy: "Convert an adapter without 'lora_bias', or merge this one into the base model."
      ) { try peft.convert("old", to: form, as: "other") }
    }
  }

  /// A model has trained biases of the base for one adapter.
  @Test(arguments: [BiasTraining.all, .adaptedOnly])
  func trainedBiasesAreRefusedByName(_ bias: BiasTraining) throws {
    try peft.add("old", Self.lora { $0.bias = bias }, seed: 1)
    for form in AdapterForm.allCases {
      try peft.refuses(
        "the adapter trains biases of the base ('bias': \"\(bias.rawValue)\"), which a model keeps "
          + "for one adapter only, so there is no place for those of the new one", .unsupported,
        at: "old",
        remedy: "Merge it into the base model, which keeps the biases, or train it with 'bias': "
          + "\"none\"."
      ) { try peft.convert("old", to: form, as: "new") }
    }
    // The way round that the remedy names.
    try fill("old", "bias", 0.5)
    let expected = try output("old")
    try peft.mergeAndUnload()
    let merged = withoutGradients {
      host.run(.features(x), ForwardContext(SequenceLayout(lengths: [5])))
    }
    #expect(relativeError(merged, expected) < 1e-5)
  }

  /// With B = 0 and m = 1.5·‖W‖ the change is W/2, of which the span of the r largest singular
  /// vectors holds all but √(Σ_{i>r} σᵢ²/Σσᵢ²).
  @Test(arguments: [1, 3, 8])
  func magnitudesAreProjectedWithTheUpdate(_ rank: Int) throws {
    try peft.add(
      "old",
      Self.lora {
        $0.usesDoRA = true
        $0.initialization = .standard
      }, seed: 1)
    let magnitude = try #require(try peft.tensors(of: "old").last).parameter
    magnitude.update { $0 = $0.scaled(by: 1.5) }
    let squares = try Self.weight.decomposed(rank: 8).s.map { Double($0 * $0) }
    let expected = (squares[rank...].reduce(0, +) / squares.reduce(0, +)).squareRoot()
    let report = try peft.convert("old", to: .loraXS, as: "xs", rank: rank)
    #expect(abs(report.relativeError - expected) < 1e-4, "\(report.relativeError)")
    // EDoRA has a place for it.
    #expect(try peft.convert("old", to: .edora, as: "e", rank: rank).relativeError < 1e-5)
    #expect(relativeError(try output("e"), try output("old")) < 1e-5)
  }

  /// The nearest change of a span differs from the old one by nothing of the span: Bᵀ(ΔW′ − ΔW)Aᵀ = 0.
  @Test(arguments: [AdapterForm.dora, .edora])
  func whatIsLostIsOutsideTheSpan(_ form: AdapterForm) throws {
    let config: any TunerConfig =
      form == .dora
      ? Self.lora { $0.usesDoRA = true }
      : EDoRAConfig(
        rank: 3, alpha: 6, targets: TargetSelection(.list(["layer"])), sigma: 0.3,
        reconstruction: Reconstruction(isRandom: true))
    try peft.add("old", any: config, seed: 1)
    try fill("old", "magnitude", 1)
    let report = try peft.convert("old", to: .loraXS, as: "xs")
    let (old, new) = (
      try #require(try peft.adaptedLayers(of: "old").first),
      try #require(try peft.adaptedLayers(of: "xs").first)
    )
    let layer = try #require(new.layer as? EDoRALayer)
    let change = try old.fullChange()
    let lost = try new.fullChange() + change.scaled(by: -1)
    let wanted = (lost.sumOfSquares / change.sumOfSquares).squareRoot()
    #expect(report.relativeError == wanted && wanted > 0.1 && wanted < 1)
    let b = layer.b.value.transposed()
    let inSpan = linear(linear(b, lost.transposed()), layer.a.value)
    let whole = linear(linear(b, change.transposed()), layer.a.value)
    #expect(inSpan.maximumMagnitude < 1e-5 * whole.maximumMagnitude)
  }

  /// A copy in full takes A and B as they are: none are computed from the weight, which here has no
  /// decomposition.
  @Test(arguments: EDoRAConfig.Method.allCases)
  func copiesComputeNoFactors(_ method: EDoRAConfig.Method) throws {
    try peft.add(
      "old",
      EDoRAConfig(
        method, rank: 3, alpha: 6, targets: TargetSelection(.list(["layer"])), sigma: 0.3),
      seed: 1)
    let values = try peft.values(of: "old")
    let broken = Linear(
      HostParameters(
        weight: .matrix(DenseMatrix(Tensor(repeating: .nan, shape: [8, 12]))), bias: nil),
      inputFeatures: 12, outputFeatures: 8)
    let other = PeftModel(
      SingleLayer(broken), info: BaseModelInfo(modelType: "toy"), registry: GoldenTests.registry)
    try other.add("old", values)
    let report = try other.convert(
      "old", to: method == .edora ? .edora : .loraXS, as: "new")
    #expect(report.relativeError == 0)
    #expect(report.trainedParameters == (method == .edora ? 17 : 9))
    let (one, two) = (try other.tensors(of: "old"), try other.tensors(of: "new"))
    #expect(one.map(\.key) == two.map(\.key))
    #expect(one.map(\.parameter.value.scalars) == two.map(\.parameter.value.scalars))
  }
}
