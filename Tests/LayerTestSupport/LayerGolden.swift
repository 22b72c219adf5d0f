import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport

/// One folder of a layer's goldens (Tests/Goldens/README.md).
public struct LayerGolden {
  /// Its path.
  public let path: String
  /// `case.json`.
  public let record: JSONValue
  /// The weights of the base.
  public let base: SafetensorsFile
  /// Input, upstream gradient and target.
  public let input: SafetensorsFile
  /// What to compare with.
  public let expected: SafetensorsFile
  private let registry: TunerRegistry

  /// Opens a folder below Tests/Goldens.
  public init(_ name: String, registry: TunerRegistry) throws {
    try self.init(path: TestData.golden(name), registry: registry)
  }

  /// Opens a folder anywhere.
  public init(path: String, registry: TunerRegistry) throws {
    self.path = path
    self.registry = registry
    record = try FileSystem.readJSON("\(path)/case.json")
    base = try SafetensorsFile("\(path)/base.safetensors")
    input = try SafetensorsFile("\(path)/input.safetensors")
    expected = try SafetensorsFile("\(path)/expected.safetensors")
  }

  /// The folders below one of Tests/Goldens.
  public static func names(_ root: String) -> [String] {
    ((try? FileSystem.list(TestData.golden(root))) ?? []).sorted().map { "\(root)/\($0)" }
  }

  /// The path of a file or folder in it.
  public func folder(_ part: String) -> String { "\(path)/\(part)" }

  /// The model with adapters on it.
  public func model(
    _ adapters: [(folder: String, name: String)] = [("adapter", "default")]
  ) throws -> (host: any AdapterHost, peft: PeftModel) {
    let model = try SingleLayer(record["module"] ?? .null, base)
    let peft = PeftModel(model, info: BaseModelInfo(modelType: "toy"), registry: registry)
    for (folder, name) in adapters { try peft.load(self.folder(folder), as: name) }
    return (model.layer, peft)
  }

  // MARK: Input and output

  /// The input of a layer with one input; features as a parameter, so that its gradient can be had.
  public func makeInput() throws -> (input: HostInput, parameter: Parameter?) {
    if let entry = input["x"], entry.type == .int64 {
      return (.tokenIDs(try input.integers("x").values), nil)
    }
    let x = Parameter(try input.tensor("x"))
    return (makeInput(x.tensor), x)
  }

  /// An input of the case's kind, features or images.
  public func makeInput(_ x: Tensor) -> HostInput {
    record["module"]?["kernel_size"] != nil ? .images(x) : .features(x)
  }

  /// A pass in evaluation mode.
  public func context(_ input: HostInput) -> ForwardContext {
    ForwardContext(SequenceLayout(lengths: [input.rows]))
  }

  /// The inputs that have a gradient, by name.
  public func makeInputs() throws -> [String: Parameter] {
    var result: [String: Parameter] = [:]
    for name in ["x", "query", "key", "value"] {
      guard let entry = input[name], entry.type != .int64 else { continue }
      result[name] = Parameter(try input.tensor(name))
    }
    return result
  }

  /// What the layer makes of the case's inputs, in PyTorch's layout.
  public func output(
    _ host: any AdapterHost, _ inputs: [String: Parameter],
    _ change: (inout ForwardContext) -> Void = { _ in }
  ) throws -> Tensor {
    let rows = inputs["x"]?.shape.first ?? inputs["query"]?.shape.first ?? 1
    var context = ForwardContext(SequenceLayout(lengths: .init(repeating: 1, count: rows)))
    change(&context)
    func given(_ name: String) throws -> Tensor {
      guard let parameter = inputs[name] else { throw PEFTError(.missingTensor, "no \(name)") }
      return parameter.tensor
    }
    switch host {
    case let layer as Linear: return layer(try given("x"), context)
    case let layer as Conv1D: return layer(try given("x"), context)
    case let layer as Convolution:
      try layer.settings.checkInput(try given("x").shape)
      return layer(try given("x"), context)
    case let layer as Embedding:
      let (shape, ids) = try input.integers("x")
      return layer(ids, context).reshaped(shape + [layer.width])
    case let layer as MultiheadAttention:
      var masks = MultiheadAttention.Masks()
      if input["mask"] != nil { masks.keys = try input.integers("mask").values.map { UInt8($0) } }
      if input["attention_bias"] != nil { masks.bias = try input.tensor("attention_bias") }
      return layer(
        try given("query"), key: try given("key"), value: try given("value"), masks, context)
    default: throw PEFTError(.unsupported, "no such layer")
    }
  }

  /// The output in evaluation mode.
  public func value(_ host: any AdapterHost) throws -> Tensor {
    try withoutGradients { try output(host, try makeInputs()) }
  }

  /// The losses of ten steps of AdamW on the model's trainable tensors.
  public func train(_ host: any AdapterHost, _ peft: PeftModel) throws -> [Double] {
    let optimizer = try AdamWSteps(record["optimiser"])
    let target = try input.tensor("target")
    var losses: [Double] = []
    for _ in 1...10 {
      // Of frozen inputs, as the adapter alone is trained.
      let inputs = try makeInputs()
      for input in inputs.values { input.isTrainable = false }
      let loss = meanSquare(try output(host, inputs), target)
      losses.append(Double(loss.item))
      try optimizer.update(peft.trainableTensors, loss.backward())
    }
    return losses
  }

  // MARK: Expected numbers

  /// Whether the base has 16 bits: what peft computes in bf16 is then not the measure, the exact
  /// numbers beside it are.
  public var isHalf: Bool { expected["exact.output.base"] != nil }

  /// The number that counts: by formula where peft is wrong or rounds, else peft's.
  public func number(_ name: String) throws -> Tensor? {
    let formula = name == "output.active" || name == "output.merged" ? "output" : name
    for key in ["right.\(formula)", "exact.\(name)", name] where expected[key] != nil {
      return try expected.tensor(key)
    }
    return nil
  }

  /// The number that counts, which must be there.
  public func tensor(_ kind: String, _ rest: String) throws -> Tensor {
    try number(kind + rest) ?? expected.tensor(kind + rest)
  }

  /// The names of the numbers of a kind ("grad."), without what stands before it.
  public func numbers(_ kind: String) -> Set<String> {
    Set(
      expected.names.compactMap { name in
        var name = name
        for prefix in ["right.", "exact."] where name.hasPrefix(prefix) {
          name.removeFirst(prefix.count)
        }
        return name.hasPrefix(kind) ? String(name.dropFirst(kind.count)) : nil
      })
  }

  /// Losses of ten steps.
  public var losses: [Double] {
    let keys = ["right_losses", "exact_losses", "losses"]
    return (keys.lazy.compactMap { record[$0]?.array }.first ?? []).compactMap(\.double)
  }
}

extension AdapterHost {
  /// The layer's output in a pass of its own, channels where PyTorch has them.
  public func run(_ input: HostInput, _ context: ForwardContext) -> Tensor {
    let output = adapters?.forward(input, host: self, context) ?? base(input, parameters)
    return self is Convolution ? channelsFirst(output) : output
  }
}
