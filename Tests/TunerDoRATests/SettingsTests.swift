import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerLoRA

@testable import TunerDoRA

/// DoRA's settings, and rows of a batch on every kind of layer.
struct SettingsTests {
  private final class Pair: Module {
    let first = Pair.linear(1)
    let second = Pair.linear(2)
    let typeName = "Pair"
    var children: [(name: String, module: any Module)] {
      [("first", first), ("second", second)]
    }

    private static func linear(_ seed: UInt64) -> Linear {
      let weight = Tensor.normal([6, 6], deviation: 0.4, key: DropoutKey(seed: seed, stream: 1))
      return Linear(
        HostParameters(weight: .matrix(DenseMatrix(weight)), bias: nil), inputFeatures: 6,
        outputFeatures: 6)
    }
  }

  private static var registry: TunerRegistry {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    return registry
  }

  private static let settings: [(String, JSONValue)] = [
    ("peft_type", "LORA"), ("use_dora", true), ("r", 2), ("lora_alpha", 6),
    ("target_modules", ["first", "second"]), ("init_lora_weights", false),
  ]

  /// Rank, alpha and rsLoRA of each module; s goes into the norms, so the magnitude tells it.
  @Test func patternsAndScalingAreEachModules() throws {
    let model = Pair()
    let peft = PeftModel(model, info: BaseModelInfo(modelType: "toy"), registry: Self.registry)
    let object = JSONObject(
      Self.settings + [
        ("rank_pattern", ["second": 4]), ("alpha_pattern", ["second": 3]), ("use_rslora", true),
      ])
    try peft.add("a", any: peft.registry.config(object), seed: 1)
    for (host, rank, scaling) in [
      (model.first, 2, 6 / 2.0.squareRoot()), (model.second, 4, 3 / 2.0),
    ] {
      let layer = try #require(host.stack?.layer("a") as? DoRALayer)
      #expect(layer.factors.rank == rank)
      let (a, b) = (layer.factors.a.value.scalars, layer.factors.b.value.scalars)
      let weight = host.parameters.matrix.dequantized().scalars
      for row in 0..<6 {
        let norm = (0..<6).reduce(0.0) { sum, column in
          let change = (0..<rank).reduce(0.0) {
            $0 + Double(b[row * rank + $1]) * Double(a[$1 * 6 + column])
          }
          let value = Double(weight[row * 6 + column]) + scaling * change
          return sum + value * value
        }.squareRoot()
        #expect(abs(Double(layer.weight.magnitude.value.scalars[row]) - norm) < 1e-5 * norm)
      }
    }
  }

  /// peft's words; the model stays as it was.
  @Test func biasOfBIsRefused() throws {
    let peft = PeftModel(Pair(), info: BaseModelInfo(modelType: "toy"), registry: Self.registry)
    let object = JSONObject(Self.settings + [("lora_bias", true)])
    let error = #expect(throws: PEFTError.self) {
      try peft.add("a", any: peft.registry.config(object), seed: 1)
    }
    #expect(error?.message.contains("lora_bias=True is not supported for DoRA") == true)
    #expect(peft.adapterNames.isEmpty)
  }

  /// A registry without this tuner does not take its files for LoRA's.
  @Test func withoutTheTunerFilesAreRefused() throws {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    #expect(throws: PEFTError.self) { try registry.config(JSONObject(Self.settings)) }
    #expect(throws: PEFTError.self) {
      _ = try LayerGolden("dora/linear", registry: registry).model()
    }
  }

  /// Each row as if it were alone with its adapter, on every kind of layer.
  @Test(
    arguments: GoldenTests.cases.filter { !$0.hasPrefix("two") && !$0.contains("bf16") })
  func rowsOnEveryKindOfLayer(_ name: String) throws {
    let golden = try GoldenTests.golden(name)
    let (host, peft) = try golden.model()
    var other = try #require(try peft.config("default") as? LoRAConfig)
    other.initialization = .random
    try peft.add("other", other, seed: 5)
    var plain = other
    plain.usesDoRA = false
    try peft.add("lora", plain, seed: 6)
    let input = try golden.makeInput().input
    let names = ["default", "__base__", "lora", "other", "default", "other"]
    let count = input.rows
    let assigned = (0..<count).map { names[$0 % names.count] }
    var context = ForwardContext(SequenceLayout(lengths: assigned.map { _ in 1 }))
    context.sequenceAdapters = try peft.sequenceAdapters(assigned)
    let mixed = withoutGradients { host.run(input, context) }
    let width = mixed.count / count
    for name in Set(assigned) {
      try peft.setActive(name == "__base__" ? [] : [name])
      let alone = withoutGradients { host.run(input, golden.context(input)) }
      for row in 0..<count where assigned[row] == name {
        let range = row * width..<(row + 1) * width
        let (one, expected) = (
          Tensor(shape: [width], scalars: Array(mixed.scalars[range])),
          Tensor(shape: [width], scalars: Array(alone.scalars[range]))
        )
        #expect(relativeError(one, expected) < 1e-5, "row \(row), \(name)")
      }
    }
  }
}
