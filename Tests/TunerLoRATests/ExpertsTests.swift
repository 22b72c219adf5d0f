import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// LoRA on parameters that no layer holds: stacked experts and a single matrix. The numbers are
/// peft's (Tests/Goldens/fields/experts-…, made by generator/experts.py).
struct ExpertsTests {
  static let cases = FieldTests.names { $0.hasPrefix("experts-") }

  @Test func theListIsComplete() { #expect(Self.cases.count == 6) }

  @Test(arguments: cases)
  func numbersArePefts(_ name: String) throws {
    let golden = try ExpertsCase(name)
    let (block, peft) = try golden.load()
    try golden.expect(block, "output.base", [])
    try peft.load(golden.path("adapter"))
    let keys = try #require(golden.json["keys"]?.object)
    let tensors = try peft.tensors(of: "default")
    #expect(Set(tensors.map(\.key)) == Set(keys.keys))
    for tensor in tensors {
      #expect(.array(tensor.shape.map { .int($0) }) == keys[tensor.key], "\(tensor.key)")
    }
    try golden.expect(block, "output.active", ["default"])

    // Gradients of sum(output · upstream).
    let input = Parameter(try golden.input.tensor("x"))
    let upstream = try golden.input.tensor("upstream")
    let output = block(input.tensor, golden.context)
    let gradients = (output * Tensor(shape: output.shape, slice: upstream.slice)).sum().backward()
    for tensor in tensors {
      let expected = try golden.expected.tensor("grad.\(tensor.key)")
      let error = relativeError(try #require(gradients[tensor.parameter]), expected)
      #expect(error < 1e-4, "\(tensor.key): \(error)")
    }
    #expect(
      relativeError(
        try #require(gradients[input]), try golden.expected.tensor("grad_input.x")) < 1e-4)

    try peft.merge()
    try golden.expect(block, "output.merged", ["default"])
    for key in golden.expected.names where key.hasPrefix("merged.") {
      let path = String(key.dropFirst("merged.layer.".count))
      let merged = try #require(block.weight(path)).dequantized()
      #expect(relativeError(merged, try golden.expected.tensor(key)) < 1e-6, "\(key)")
    }
    peft.unmerge()
    try golden.expect(block, "output.active", ["default"])
    try peft.setActive([])
    try golden.expect(block, "output.base", [])
  }

  @Test func conversionToLoRAIsRefused() throws {
    let golden = try ExpertsCase(try #require(Self.cases.first))
    let (_, peft) = try golden.load()
    try peft.load(golden.path("adapter"))
    try peft.refuses(
      "the adapter changes weights that no layer holds ('target_parameters'), which cannot be "
        + "converted", .unsupported, at: "default", remedy: "Keep the adapter as it is."
    ) { _ = try peft.convertToLoRA(rank: .fixed(2)) }
  }

  @Test(arguments: cases)
  func tenStepsOfTraining(_ name: String) throws {
    let golden = try ExpertsCase(name)
    let (block, peft) = try golden.load()
    try peft.load(golden.path("adapter"))
    let losses = try #require(golden.json["losses"]?.array).compactMap(\.double)
    let x = try golden.input.tensor("x")
    let target = try golden.input.tensor("target")
    var steps = AdamSteps(peft.trainableTensors.map(\.parameter))
    for (step, expected) in losses.enumerated() {
      let output = block(x, golden.context)
      let goal = Tensor(shape: output.shape, slice: target.slice)
      let difference = output + goal.scaled(by: -1)
      let loss = (difference * difference).sum().scaled(by: 1 / Float(target.count))
      #expect(abs(Double(loss.item) - expected) < 1e-4 * expected, "step \(step): \(loss.item)")
      steps.step(loss.backward())
    }
  }

  /// peft's words, and nothing changed.
  @Test func wrongSettings() throws {
    let golden = try ExpertsCase("experts-both")
    let (_, peft) = try golden.load()
    func error(_ change: (inout LoRAConfig) -> Void) -> PEFTError? {
      var config = LoRAConfig(rank: 2, targets: TargetSelection(.list(["router"])))
      config.targetParameters = ["experts.down_proj"]
      change(&config)
      return #expect(throws: PEFTError.self) { try peft.add("new", config) }
    }
    #expect(
      error { $0.dropout = 0.1 }?.message
        == "lora.ParamWrapper does not work with lora_dropout != 0.")
    #expect(
      error { $0.modulesToSave = ["experts"] }?.message
        == "a parameter that no layer holds cannot be trained in full")
    #expect(
      error {
        $0.targets.modules = .list([])
        $0.targetParameters = ["nothing"]
      }?.message.hasPrefix("No `target_modules` passed but also no `target_parameters` found.")
        == true)
    #expect(peft.adapterNames.isEmpty && peft.parameterCounts.trainable == 0)
    #expect(peft.parameterCounts.all == 3 * 8 * 6 + 3 * 6 * 4 + 3 * 6 + 5 * 6)
  }
}

private struct ExpertsCase {
  let name: String
  let json: JSONValue
  let input: SafetensorsFile
  let expected: SafetensorsFile

  init(_ name: String) throws {
    self.name = name
    json = try FileSystem.readJSON(TestData.golden("fields/\(name)/case.json"))
    input = try SafetensorsFile(TestData.golden("fields/\(name)/input.safetensors"))
    expected = try SafetensorsFile(TestData.golden("fields/\(name)/expected.safetensors"))
  }

  func path(_ part: String) -> String { TestData.golden("fields/\(name)/\(part)") }

  var context: ForwardContext { ForwardContext(SequenceLayout(lengths: [3, 3])) }

  func load() throws -> (Block, PeftModel) {
    let block = try Block(
      try SafetensorsFile(path("base.safetensors")),
      isTransposed: json["module"]?["is_transposed"] == true)
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return (
      block, PeftModel(Root(block), info: BaseModelInfo(modelType: ""), registry: registry)
    )
  }

  func expect(
    _ block: Block, _ key: String, _ adapters: [String],
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let output = try withoutGradients { block(try input.tensor("x"), context) }
    let error = relativeError(output, try expected.tensor(key))
    #expect(error < 1e-5, "\(key): \(error)", sourceLocation: sourceLocation)
  }
}

/// A model whose only module is `layer`.
private final class Root: Module {
  let layer: Block
  init(_ layer: Block) { self.layer = layer }
  var typeName: String { "Root" }
  var children: [(name: String, module: any Module)] { [("layer", layer)] }
}

/// All experts, weighted by the softmax of a linear router, then a plain matrix.
private final class Block: Module {
  let router: Linear
  let experts: Experts
  let plain: Plain

  init(_ file: SafetensorsFile, isTransposed: Bool) throws {
    router = Linear(
      HostParameters(
        weight: .matrix(DenseMatrix(try file.tensor("layer.router.weight"))), bias: nil),
      inputFeatures: 6, outputFeatures: 3)
    experts = Experts(
      gateUp: try Self.stack(file, "layer.experts.gate_up_proj", isTransposed),
      down: try Self.stack(file, "layer.experts.down_proj", isTransposed))
    plain = Plain(kernel: try Self.stack(file, "layer.plain.kernel", false))
  }

  private static func stack(
    _ file: SafetensorsFile, _ name: String, _ isTransposed: Bool
  ) throws -> StackedWeight {
    let tensor = try file.tensor(name)
    return StackedWeight(
      DenseMatrix(Tensor(shape: [tensor.rows, tensor.columns], slice: tensor.slice)),
      shape: tensor.shape, isTransposed: isTransposed)
  }

  func callAsFunction(_ x: Tensor, _ context: ForwardContext) -> Tensor {
    let flat = x.reshaped([x.rows, x.columns])
    let shares = router(flat, context).softmaxRows()
    var sum: Tensor?
    for expert in 0..<3 {
      let both = experts.gateUp(flat, expert: expert, context)
      let gate = both.columnRange(0..<4)
      let other = both.columnRange(4..<8)
      let part = experts.down(swiGLU(gate: gate, up: other), expert: expert, context)
      let share = shares.columnRange(expert..<expert + 1)
      let ones = Tensor(repeating: 1, shape: [6, 1])
      var wide = Tensor.zeros([flat.rows, 6])
      wide.addProduct(share, ones)
      let weighted = part * wide
      sum = sum.map { $0 + weighted } ?? weighted
    }
    return plain.kernel(sum!, context)
  }

  func weight(_ path: String) -> (any WeightMatrix)? {
    switch path {
    case "router.weight": return router.parameters.matrix
    case "experts.gate_up_proj": return experts.gateUp.parameters.matrix
    case "experts.down_proj": return experts.down.parameters.matrix
    case "plain.kernel": return plain.kernel.parameters.matrix
    default: return nil
    }
  }

  var typeName: String { "Block" }
  var children: [(name: String, module: any Module)] {
    [("router", router), ("experts", experts), ("plain", plain)]
  }
}

private final class Experts: Module {
  let gateUp: StackedWeight
  let down: StackedWeight

  init(gateUp: StackedWeight, down: StackedWeight) {
    self.gateUp = gateUp
    self.down = down
  }

  var typeName: String { "Experts" }
  var weightHosts: [(name: String, host: any WeightHost)] {
    [("gate_up_proj", gateUp), ("down_proj", down)]
  }
}

private final class Plain: Module {
  let kernel: StackedWeight
  init(kernel: StackedWeight) { self.kernel = kernel }
  var typeName: String { "Plain" }
  var weightHosts: [(name: String, host: any WeightHost)] { [("kernel", kernel)] }
}

extension Tensor {
  /// Columns of a matrix; gradients flow back.
  fileprivate func columnRange(_ range: Range<Int>) -> Tensor {
    selectColumns(self, range.map { Int32($0) }).transposed()
  }

  /// The softmax of each row, for a handful of columns.
  fileprivate func softmaxRows() -> Tensor {
    let (rowCount, width) = (rows, columns)
    let input = scalars
    let values = Tensor.filled([rowCount, width]) { output in
      for row in 0..<rowCount {
        let own = (0..<width).map { Float(exponential(Double(input[row * width + $0]))) }
        let total = own.reduce(0, +)
        for column in 0..<width { output[row * width + column] = own[column] / total }
      }
    }
    return values.recorded(from: [self]) { gradient, sink in
      let (g, p) = (gradient.scalars, values.scalars)
      sink.add(
        Tensor.filled([rowCount, width]) { output in
          for row in 0..<rowCount {
            let dot = (0..<width).reduce(Float(0)) {
              $0 + g[row * width + $1] * p[row * width + $1]
            }
            for column in 0..<width {
              output[row * width + column] =
                p[row * width + column] * (g[row * width + column] - dot)
            }
          }
        }, to: 0)
    }
  }
}
