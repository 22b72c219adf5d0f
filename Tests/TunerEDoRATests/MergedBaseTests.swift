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

/// What an adapter begins from, and what its files are compared with, is the untouched weight.
/// Expected values are those of the same calls without another adapter merged into the base.
struct MergedBaseTests {
  private struct Fixture {
    let host: Linear
    let peft: PeftModel
    let isMerged: Bool

    /// A layer with an adapter that changes it much, merged or only there.
    init(isMerged: Bool) throws {
      let weight = Tensor.normal([8, 12], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))
      host = Linear(
        HostParameters(weight: .matrix(DenseMatrix(weight)), bias: nil), inputFeatures: 12,
        outputFeatures: 8)
      peft = PeftModel(
        SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: GoldenTests.registry)
      self.isMerged = isMerged
      try peft.add("first", MergedBaseTests.lora(.random), seed: 7)
      if isMerged { try peft.merge() }
    }

    /// Values and output of an adapter, with nothing merged any more.
    func result(_ adapter: String) throws -> (values: [[Float]], output: [Float]) {
      peft.unmerge()
      try peft.setActive([adapter])
      let x = Tensor.normal([5, 12], deviation: 1, key: DropoutKey(seed: 4, stream: 4))
      let output = withoutGradients {
        host.run(.features(x), ForwardContext(SequenceLayout(lengths: [x.rows])))
      }
      return (try peft.tensors(of: adapter).map(\.parameter.value.scalars), output.scalars)
    }
  }

  private static func lora(
    _ initialization: LoRAConfig.Initialization, isDecomposed: Bool = false
  ) -> LoRAConfig {
    var config = LoRAConfig(
      rank: 3, alpha: 6, targets: TargetSelection(.list(["layer"])),
      initialization: initialization)
    config.usesDoRA = isDecomposed
    return config
  }

  private static func edora(
    _ method: EDoRAConfig.Method, isCompact: Bool = false,
    _ reconstruction: Reconstruction = Reconstruction()
  ) -> EDoRAConfig {
    EDoRAConfig(
      method, lora: lora(.standard), sigma: 0.3, reconstruction: reconstruction,
      isCompact: isCompact)
  }

  static let configs: [(name: String, config: any TunerConfig)] = [
    ("edora", edora(.edora)), ("lora-xs", edora(.loraXS)),
    ("compact edora", edora(.edora, isCompact: true)),
    ("randomised edora", edora(.edora, Reconstruction(decomposition: .randomized(iterations: 3)))),
    ("edora without R", edora(.edora, Reconstruction(hasLatent: false))),
    ("dora", lora(.random, isDecomposed: true)), ("lora", lora(.gaussian)),
    ("pissa", lora(.pissa)), ("randomised pissa", lora(.randomizedPiSSA(iterations: 3))),
    ("olora", lora(.olora)), ("loftq", lora(.loftq(LoftQSettings()))),
  ]

  @Test(arguments: configs.map(\.name))
  func newAdaptersBeginFromTheUntouchedWeight(_ name: String) throws {
    let config = try #require(Self.configs.first { $0.name == name }).config
    let results = try [false, true].map { isMerged in
      let fixture = try Fixture(isMerged: isMerged)
      try fixture.peft.add("new", any: config, seed: 2)
      return try fixture.result("new")
    }
    #expect(results[0].values == results[1].values)
    #expect(results[0].output == results[1].output)
  }

  @Test(arguments: configs.map(\.name))
  func loadedAdaptersBelongToTheUntouchedWeight(_ name: String) throws {
    let config = try #require(Self.configs.first { $0.name == name }).config
    let folder = try TemporaryFolder()
    let source = try Fixture(isMerged: false)
    try source.peft.add("new", any: config, seed: 2)
    try source.peft.setActive(["new"])
    for (place, tensor) in source.peft.trainableTensors.enumerated() {
      let key = DropoutKey(seed: 9, stream: UInt64(place))
      tensor.parameter.assign(
        tensor.parameter.value + .normal(tensor.parameter.shape, deviation: 0.1, key: key))
    }
    try source.peft.save(folder("new"), adapter: "new", form: .trained)
    let results = try [false, true].map { isMerged in
      let fixture = try Fixture(isMerged: isMerged)
      try fixture.peft.load(folder("new"), as: "new")
      return try fixture.result("new")
    }
    #expect(results[0].values == results[1].values)
    #expect(results[0].output == results[1].output)
  }

  /// Magnitudes, projections and decompositions of a conversion.
  @Test(arguments: AdapterForm.allCases)
  func conversionsAreMadeOnTheUntouchedWeight(_ form: AdapterForm) throws {
    for name in ["edora", "dora", "lora", "pissa"] {
      let config = try #require(Self.configs.first { $0.name == name }).config
      let results = try [false, true].map { isMerged in
        let fixture = try Fixture(isMerged: isMerged)
        try fixture.peft.add("source", any: config, seed: 2)
        let tensors = try fixture.peft.tensors(of: "source")
        let a = try #require(tensors.first).parameter
        a.update { $0 = $0.scaled(by: 1.25) }
        let report = try fixture.peft.convert("source", to: form, as: "new")
        return (error: report.relativeError, result: try fixture.result("new"))
      }
      #expect(results[0].error == results[1].error, "\(name)")
      #expect(results[0].result.values == results[1].result.values, "\(name)")
      #expect(results[0].result.output == results[1].result.output, "\(name)")
    }
  }
}
