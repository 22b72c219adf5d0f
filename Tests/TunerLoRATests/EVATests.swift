import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// EVA against peft with whole decompositions in place of randomised ones (`exact.…` in
/// Tests/Goldens/inits/eva…).
struct EVATests {
  static let cases = [
    "eva", "eva-drop", "eva-rho-1", "eva-whiten", "eva-fixed-scaling", "eva-pattern",
  ]

  /// first, relu, second, tanh, then third and fourth side by side.
  private final class Stack: Module {
    let layers: [(name: String, module: Linear)]

    init(_ base: SafetensorsFile) throws {
      layers = try ["first", "second", "third", "fourth"].map { name in
        let matrix = try base.matrix("\(name).weight")
        let bias = Parameter(try base.tensor("\(name).bias"), isTrainable: false)
        return (
          name,
          Linear(
            HostParameters(weight: .matrix(matrix), bias: bias), inputFeatures: matrix.columns,
            outputFeatures: matrix.rows)
        )
      }
    }

    var typeName: String { "Stack" }
    var children: [(name: String, module: any Module)] { layers.map { ($0.name, $0.module) } }

    func run(_ x: Tensor, _ observer: @escaping HostObserver) {
      var context = ForwardContext(SequenceLayout(lengths: [x.rows]))
      context.observer = observer
      var x = Activation.relu(layers[0].module(x, context))
      x = Activation.tanh(layers[1].module(x, context))
      _ = layers[2].module(x, context)
      _ = layers[3].module(x, context)
    }
  }

  @Test(arguments: cases)
  func componentsAndRanksEqualPeft(_ name: String) throws {
    let golden = try InitGolden(name)
    let stack = try Stack(golden.base)
    let calibration = Calibration(
      try (0..<4).map { try golden.input.tensor("batches.\($0)") }
    ) { (batch, observer) throws(PEFTError) in
      stack.run(batch, observer)
      return nil
    }
    var config = try golden.config
    config.targets.modules = .list(["first", "second", "third", "fourth"])
    let peft = PeftModel(
      stack, info: BaseModelInfo(modelType: "stack"), registry: InitGolden.registry)
    let report = try peft.add("default", config, calibration: calibration)
    try expect(peft, report, golden.json["exact_result"]!, golden.expected)
  }

  @Test func rowsWithoutLabelAreLeftOut() throws {
    let folder = TestData.golden("inits/eva-llama")
    let json = try FileSystem.readJSON("\(folder)/case.json")
    let golden = try GoldenCase("llama")
    let peft = try golden.loadModel()
    let file = try SafetensorsFile(golden.folder("batches.safetensors"))
    let batches = try (0..<10).map { try PaddedBatch(file, prefix: "\($0).") }
    let labels = try (0..<10).map { index in
      let values = try file.integers("\(index).labels").values
      return batches[index].visiblePlaces.map { values[Int($0)] }
    }
    let model = peft.base as! any TransformerModel
    let calibration = Calibration(
      zip(batches, labels), labels: { $0.1 }
    ) { (batch, observer) throws(PEFTError) in
      var context = ForwardContext(batch.0.packed.layout)
      context.observer = observer
      _ = model.lastHiddenState(batch.0.packed, context)
      return nil
    }
    var object = json["config"]!.object!
    object["peft_type"] = "LORA"
    let report = try peft.add("default", LoRAConfig(object), calibration: calibration)
    try expect(
      peft, report, json["exact_result"]!, SafetensorsFile("\(folder)/expected.safetensors"))
  }

  private func expect(
    _ peft: PeftModel, _ report: TargetReport, _ result: JSONValue, _ expected: SafetensorsFile
  ) throws {
    let config = try #require(peft.config("default") as? LoRAConfig)
    let targets = try #require(result["target_modules"]?.array).compactMap(\.string)
    #expect(report.matched.sorted() == targets)
    func dictionary(_ key: String) -> [String: Double] {
      (result[key]?.object?.members ?? []).reduce(into: [:]) { $0[$1.key] = $1.value.double }
    }
    func entries(_ patterns: SuffixPatterns) -> [String: Double] {
      patterns.entries.reduce(into: [:]) { $0[$1.key] = $1.value }
    }
    #expect(entries(config.rankPattern) == dictionary("rank_pattern"))
    #expect(entries(config.alphaPattern) == dictionary("alpha_pattern"))
    for (path, scaling) in dictionary("scaling") {
      #expect(abs(peft.lora(path).scaling - scaling) < 1e-12, "\(path)")
    }
    for path in targets {
      let key = "base_model.model.\(path).lora_A.weight"
      let name = expected["right.\(key)"] == nil ? "exact.\(key)" : "right.\(key)"
      let a = try expected.tensor(name)
      try #require(peft.lora(path).a.shape == a.shape, "\(path)")
      #expect(relativeError(peft.lora(path).a.value, a) < 1e-3, "\(path)")
      #expect(peft.lora(path).b.value.maximumMagnitude == 0)
    }
    // The settings that come of it match the same modules with the same ranks again.
    let again = try LoRAConfig(config.object)
    // A file has targets in order.
    #expect(again.object == config.object)
    for path in targets { #expect(try again.rank(path) == peft.lora(path).rank) }
  }

  /// Component by component against the whole decomposition of all rows at once.
  @Test func oneBatchGivesPrincipalComponents() throws {
    let rows = Tensor.normal([40, 6], deviation: 1, key: DropoutKey(seed: 1, stream: 1))
      .scalingColumns(by: Tensor(shape: [6], scalars: [5, 4, 3, 2, 1, 0.5]))
    var whole = IncrementalPCA(count: 6)
    try whole.add(rows)
    var parts = IncrementalPCA(count: 6)
    for start in stride(from: 0, to: 40, by: 10) {
      try parts.add(rows.rowRange(start..<start + 10))
    }
    // With all components kept nothing is lost on the way.
    #expect(relativeError(parts.components!, whole.components!) < 1e-4)
    #expect(zip(parts.varianceRatios, whole.varianceRatios).allSatisfy { abs($0 - $1) < 1e-5 })
    #expect(abs(whole.varianceRatios.reduce(0, +) - 1) < 1e-5)
  }

  @Test func whatCannotWorkIsRefused() throws {
    let golden = try InitGolden("eva")
    let stack = try Stack(golden.base)
    let peft = PeftModel(
      stack, info: BaseModelInfo(modelType: "stack"), registry: InitGolden.registry)
    var config = try golden.config
    config.targets.modules = .list(["first", "second"])
    func add(_ config: LoRAConfig, _ batches: [Tensor]?) -> PEFTError? {
      let calibration = batches.map {
        Calibration($0) { (batch, observer) throws(PEFTError) in
          stack.run(batch, observer)
          return nil
        }
      }
      let error = #expect(throws: PEFTError.self) {
        try peft.add("default", config, calibration: calibration)
      }
      #expect(peft.adapterNames.isEmpty && stack.layers.allSatisfy { $0.module.adapters == nil })
      return error
    }
    #expect(add(config, nil)?.message.contains("'eva'") == true)
    #expect(add(config, [])?.code == .invalidData)
    let few = add(
      config, [Tensor.normal([3, 8], deviation: 1, key: DropoutKey(seed: 1, stream: 2))])
    #expect(few?.location == "first" && few?.message.contains("4") == true)
    config.rank = 5
    let many = add(config, [try golden.input.tensor("batches.0")])
    #expect(many?.message.contains("n_components=10 invalid for n_features=8") == true)
    let broken = add(try golden.config, [Tensor(repeating: .nan, shape: [16, 8])])
    #expect(broken != nil)
  }
}
