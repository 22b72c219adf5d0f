import BLASKernels
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport

@testable import TunerLoRA

/// A model of one layer called `layer`, as the goldens have it.
final class Toy: Module {
  let layer: any AdapterHost

  init(_ layer: any AdapterHost) { self.layer = layer }

  var typeName: String { "Toy" }
  var children: [(name: String, module: any Module)] { [("layer", layer)] }
}

/// One folder of Tests/Goldens/layers or Tests/Goldens/fused.
struct LayerGolden {
  let name: String
  let record: JSONValue
  let base: SafetensorsFile
  let input: SafetensorsFile
  let expected: SafetensorsFile

  init(_ name: String) throws {
    self.name = name
    record = try FileSystem.readJSON(TestData.golden("\(name)/case.json"))
    base = try SafetensorsFile(TestData.golden("\(name)/base.safetensors"))
    input = try SafetensorsFile(TestData.golden("\(name)/input.safetensors"))
    expected = try SafetensorsFile(TestData.golden("\(name)/expected.safetensors"))
  }

  /// The folders below one of Tests/Goldens.
  static func names(_ root: String) -> [String] {
    ((try? FileSystem.list(TestData.golden(root))) ?? []).map { "\(root)/\($0)" }
  }

  func path(_ part: String) -> String { TestData.golden("\(name)/\(part)") }

  /// Whether the base has 16 bits; what peft computes in bf16 is then not the measure.
  var isHalf: Bool { expected["exact.output.base"] != nil }

  // MARK: The model

  func makeModel() throws -> (toy: Toy, peft: PeftModel) {
    let toy = Toy(try makeLayer(ModuleBuilder(GoldenSource(base))))
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return (toy, PeftModel(toy, info: BaseModelInfo(modelType: "toy"), registry: registry))
  }

  /// The model with peft's adapter on it.
  func loadModel() throws -> (toy: Toy, peft: PeftModel) {
    let (toy, peft) = try makeModel()
    try peft.load(path("adapter"))
    return (toy, peft)
  }

  private func makeLayer(_ builder: ModuleBuilder) throws -> any AdapterHost {
    let module = record["module"] ?? .null
    func int(_ key: String) -> Int { module[key]?.int ?? -1 }
    func ints(_ key: String) -> [Int] { (module[key]?.array ?? []).compactMap(\.int) }
    let bias = module["bias"]?.bool ?? false
    switch module["type"]?.string ?? "" {
    case "Linear":
      return try builder.linear("layer", int("in_features"), int("out_features"), bias: bias)
    case "Conv1D":
      return try builder.conv1D("layer", int("in_features"), int("out_features"))
    case "Embedding":
      let scale = module["embed_scale"]?.double
      return try builder.embedding(
        "layer", int("num_embeddings"), int("embedding_dim"),
        paddingIndex: module["padding_idx"]?.int, scale: Float(scale ?? 1),
        typeName: scale == nil ? "Embedding" : "Gemma3TextScaledWordEmbedding")
    case "MultiheadAttention":
      return try builder.multiheadAttention(
        "layer", int("embed_dim"), heads: int("num_heads"), bias: bias,
        batchFirst: module["batch_first"]?.bool ?? false)
    case "Conv1d", "Conv2d", "Conv3d":
      let settings = ConvolutionSettings(
        int("in_channels"), int("out_channels"), kernel: ints("kernel_size"),
        stride: ints("stride"),
        padding: module["padding"]?.string == "same" ? .same : .symmetric(ints("padding")),
        dilation: ints("dilation"), groups: int("groups"),
        paddingMode: PaddingMode(rawValue: module["padding_mode"]?.string ?? "") ?? .zeros)
      return try builder.convolution("layer", settings, bias: bias)
    case let other: throw PEFTError(.unsupported, "no such layer in these tests: '\(other)'")
    }
  }

  // MARK: Input and output

  /// The inputs that have a gradient, as parameters.
  func makeInputs() throws -> [String: Parameter] {
    var result: [String: Parameter] = [:]
    for name in ["x", "query", "key", "value"] {
      guard let entry = input[name], entry.type != .int64 else { continue }
      result[name] = Parameter(try input.tensor(name))
    }
    return result
  }

  /// What the layer makes of the case's input, in PyTorch's layout.
  func output(
    _ toy: Toy, _ inputs: [String: Parameter], _ change: (inout ForwardContext) -> Void = { _ in }
  ) throws -> Tensor {
    let rows = inputs["x"]?.shape.first ?? inputs["query"]?.shape.first ?? 1
    var context = ForwardContext(SequenceLayout(lengths: .init(repeating: 1, count: rows)))
    change(&context)
    func x() throws -> Tensor {
      guard let x = inputs["x"] else { throw PEFTError(.missingTensor, "no x") }
      return x.tensor
    }
    switch toy.layer {
    case let layer as Linear: return layer(try x(), context)
    case let layer as Conv1D: return layer(try x(), context)
    case let layer as Convolution:
      try layer.settings.checkInput(try x().shape)
      return layer(try x(), context)
    case let layer as Embedding:
      let (shape, ids) = try input.integers("x")
      return layer(ids, context).reshaped(shape + [layer.width])
    case let layer as MultiheadAttention:
      var masks = MultiheadAttention.Masks()
      if input["mask"] != nil { masks.keys = try input.integers("mask").values.map { UInt8($0) } }
      if input["attention_bias"] != nil { masks.bias = try input.tensor("attention_bias") }
      return layer(
        inputs["query"]!.tensor, key: inputs["key"]!.tensor, value: inputs["value"]!.tensor,
        masks, context)
    default: throw PEFTError(.unsupported, "no such layer")
    }
  }

  func value(_ toy: Toy) throws -> Tensor {
    try withoutGradients { try output(toy, try makeInputs()) }
  }

  // MARK: Expected numbers

  /// The number that counts: by formula where peft is wrong or rounds, else peft's.
  func number(_ name: String) throws -> Tensor? {
    let formula = name == "output.active" || name == "output.merged" ? "output" : name
    for key in ["right.\(formula)", "exact.\(name)", name] where expected[key] != nil {
      return try expected.tensor(key)
    }
    return nil
  }

  /// The names of the numbers of a kind ("grad."), without what stands before it.
  func numbers(_ kind: String) -> Set<String> {
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
  var losses: [Double] {
    let keys = ["right_losses", "exact_losses", "losses"]
    return (keys.lazy.compactMap { record[$0]?.array }.first ?? []).compactMap(\.double)
  }

  /// The mean of the squared differences to the target.
  func loss(_ toy: Toy) throws -> Tensor {
    let output = try output(toy, try makeInputs())
    let difference = output + (try input.tensor("target").scaled(by: -1))
    return (difference * difference).sum().scaled(by: 1 / Float(output.count))
  }

  /// The losses of ten steps of AdamW on the model's trainable tensors.
  func train(_ toy: Toy, _ peft: PeftModel) throws -> [Double] {
    let settings = record["optimiser"]
    var firsts = peft.trainableTensors.map { Tensor.zeros($0.parameter.shape) }
    var seconds = firsts
    var losses: [Double] = []
    for step in 1...10 {
      let loss = try loss(toy)
      losses.append(Double(loss.item))
      let gradients = loss.backward()
      for (index, tensor) in peft.trainableTensors.enumerated() {
        guard let gradient = gradients[tensor.parameter] else { continue }
        tensor.parameter.update { value in
          value.withMutableSlice { value in
            firsts[index].withMutableSlice { first in
              seconds[index].withMutableSlice { second in
                Optimizers.adamW(
                  parameter: value, gradient: gradient.slice, firstMoment: first,
                  secondMoment: second, step: step,
                  learningRate: settings?["lr"]?.double ?? .nan,
                  weightDecay: settings?["weight_decay"]?.double ?? .nan)
              }
            }
          }
        }
      }
    }
    return losses
  }
}

/// Parameters from a golden's file, in the file's own precision.
private final class GoldenSource: ParameterSource {
  private let file: SafetensorsFile

  init(_ file: SafetensorsFile) { self.file = file }

  func contains(_ name: String) -> Bool { file[name] != nil }

  func matrix(_ name: String, rows: Int, columns: Int) throws(PEFTError) -> any WeightMatrix {
    try matrix(name, shape: [rows, columns])
  }

  func matrix(_ name: String, shape: [Int]) throws(PEFTError) -> any WeightMatrix {
    guard try file.entry(name).shape == shape else {
      throw PEFTError(.shapeMismatch, "'\(name)' is not \(shape)")
    }
    return try file.matrix(name)
  }

  func vector(_ name: String, count: Int, initial: Float) throws(PEFTError) -> Tensor {
    try file.tensor(name)
  }
}
