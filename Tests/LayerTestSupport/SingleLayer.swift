import BLASKernels
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport

/// A model of one layer called `layer`, as the goldens of peft have it (Tests/Goldens/README.md).
public final class SingleLayer: Module {
  /// The layer.
  public let layer: any AdapterHost
  /// The class name of the generator's model.
  public var typeName: String { "Toy" }
  /// The layer alone.
  public var children: [(name: String, module: any Module)] { [("layer", layer)] }

  /// Wraps a layer.
  public init(_ layer: any AdapterHost) { self.layer = layer }

  /// The layer that a golden describes, with its weights.
  public init(_ description: JSONValue, _ weights: SafetensorsFile) throws {
    let bias = weights["layer.bias"] == nil ? nil : Parameter(try weights.tensor("layer.bias"))
    func number(_ key: String) throws -> Int {
      guard let value = description[key]?.int else {
        throw PEFTError(.malformedFile, "the golden has no '\(key)'")
      }
      return value
    }
    let parameters = HostParameters(
      weight: .matrix(try weights.matrix("layer.weight")), bias: bias)
    switch description["type"]?.string {
    case "Linear":
      layer = Linear(
        parameters, inputFeatures: try number("in_features"),
        outputFeatures: try number("out_features"))
    case "Embedding":
      layer = Embedding(
        parameters, count: try number("num_embeddings"), width: try number("embedding_dim"),
        paddingIndex: description["padding_idx"]?.int)
    case "gpt2-conv1d", "Conv1D":
      layer = Conv1D(try weights.matrix("layer.weight"), bias: bias)
    case let kind? where kind.hasPrefix("Conv"):
      func list(_ key: String) -> [Int]? {
        description[key]?.array?.compactMap(\.int)
      }
      let padding: ConvolutionSettings.Padding? =
        description["padding"]?.string == "same" ? .same : list("padding").map { .symmetric($0) }
      layer = Convolution(
        parameters.matrix, bias: bias,
        ConvolutionSettings(
          try number("in_channels"), try number("out_channels"), kernel: list("kernel_size") ?? [],
          stride: list("stride"), padding: padding, dilation: list("dilation"),
          groups: try number("groups"),
          paddingMode: description["padding_mode"]?.string.flatMap { PaddingMode(rawValue: $0) }
            ?? .zeros))
    case let other:
      throw PEFTError(.unsupported, "no such layer in these tests: \(other ?? "none")")
    }
  }
}

/// One folder of a layer's goldens.
public struct LayerGolden {
  /// Its path below Tests/Goldens.
  public let name: String
  /// `case.json`.
  public let record: JSONValue
  /// The weights of the base.
  public let base: SafetensorsFile
  /// Input, upstream gradient and target.
  public let input: SafetensorsFile
  /// What to compare with.
  public let expected: SafetensorsFile
  private let registry: TunerRegistry
  /// Whether the base has 16 bits: what peft computes in bf16 is then not the measure, the exact
  /// numbers beside it are.
  public var isHalf: Bool { expected["exact.output.active"] != nil }

  /// Opens a folder.
  public init(_ name: String, registry: TunerRegistry) throws {
    self.name = name
    self.registry = registry
    record = try FileSystem.readJSON(TestData.golden("\(name)/case.json"))
    base = try SafetensorsFile(TestData.golden("\(name)/base.safetensors"))
    input = try SafetensorsFile(TestData.golden("\(name)/input.safetensors"))
    expected = try SafetensorsFile(TestData.golden("\(name)/expected.safetensors"))
  }

  /// The path of a file or folder in it.
  public func folder(_ adapter: String) -> String { TestData.golden("\(name)/\(adapter)") }

  /// The model with adapters on it.
  public func model(
    _ adapters: [(folder: String, name: String)] = [("adapter", "default")]
  ) throws -> (host: any AdapterHost, peft: PeftModel) {
    let layer = try SingleLayer(record["module"] ?? .null, base)
    let peft = PeftModel(layer, info: BaseModelInfo(modelType: "toy"), registry: registry)
    for (folder, name) in adapters { try peft.load(self.folder(folder), as: name) }
    return (layer.layer, peft)
  }

  /// The number that counts: by formula where peft is wrong or rounds, else peft's.
  public func tensor(_ kind: String, _ rest: String) throws -> Tensor {
    let names =
      kind == "output.active"
      ? ["exact.output.active", "right.output", "output.active"]
      : ["exact.\(kind)\(rest)", "right.\(kind)\(rest)", "\(kind)\(rest)"]
    return try expected.tensor(names.first { expected[$0] != nil } ?? names[2])
  }

  /// Losses of ten steps.
  public var losses: [Double] {
    let names = ["exact_losses", "right_losses", "losses"]
    return (names.lazy.compactMap { record[$0]?.array }.first ?? []).compactMap(\.double)
  }

  /// The input; features as a parameter, so that its gradient can be had.
  public func makeInput() throws -> (input: HostInput, parameter: Parameter?) {
    if let entry = input["x"], entry.type == .int64 {
      return (.tokenIDs(try input.integers("x").values), nil)
    }
    let x = Parameter(try input.tensor("x"))
    let isImage = record["module"]?["kernel_size"] != nil
    return (isImage ? .images(x.tensor) : .features(x.tensor), x)
  }

  /// A pass in evaluation mode.
  public func context(_ input: HostInput) -> ForwardContext {
    ForwardContext(SequenceLayout(lengths: [input.rows]))
  }
}

extension AdapterHost {
  /// The layer's output in a pass of its own, channels where PyTorch has them.
  public func run(_ input: HostInput, _ context: ForwardContext) -> Tensor {
    let output = adapters?.forward(input, host: self, context) ?? base(input, parameters)
    return self is Convolution ? channelsFirst(output) : output
  }
}

/// The sum of a tensor's elements with given weights.
public func contracted(_ x: Tensor, _ weights: Tensor) -> Tensor {
  (x * weights.reshaped(x.shape)).sum()
}

/// Mean of the squared differences.
public func meanSquare(_ x: Tensor, _ target: Tensor) -> Tensor {
  var difference = x
  let negative = target.reshaped(x.shape).scaled(by: -1)
  difference = difference + negative
  return (difference * difference).sum().scaled(by: 1 / Float(x.count))
}

/// The largest difference relative to the largest expected magnitude.
public func relativeError(_ actual: Tensor, _ expected: Tensor) -> Float {
  precondition(actual.count == expected.count, "\(actual.shape) against \(expected.shape)")
  let difference = zip(actual.scalars, expected.scalars).map { abs($0 - $1) }
  // The largest of numbers that are not all comparable is no measure.
  guard difference.allSatisfy(\.isFinite) else { return .infinity }
  return (difference.max() ?? 0) / max(expected.maximumMagnitude, 1e-30)
}

/// torch's AdamW on the trainable tensors of a model.
public final class AdamWSteps {
  private var moments: [(first: Tensor, second: Tensor)] = []
  private var step = 0
  private let rate: Double
  private let decay: Double

  /// Rate and decay from a golden.
  public init(_ settings: JSONValue?) throws {
    rate = try Self.number(settings, "lr")
    decay = try Self.number(settings, "weight_decay")
  }

  private static func number(_ settings: JSONValue?, _ key: String) throws -> Double {
    guard let value = settings?[key]?.double else {
      throw PEFTError(.malformedFile, "the golden has no '\(key)'")
    }
    return value
  }

  /// One step.
  public func update(_ tensors: [AdapterTensor], _ gradients: Gradients) throws {
    step += 1
    if moments.isEmpty {
      moments = tensors.map { (.zeros($0.parameter.shape), .zeros($0.parameter.shape)) }
    }
    for (place, tensor) in tensors.enumerated() {
      guard let gradient = gradients[tensor.parameter] else {
        throw PEFTError(.missingTensor, "no gradient for \(tensor.key)")
      }
      var (first, second) = moments[place]
      tensor.parameter.update { value in
        value.withMutableSlice { value in
          first.withMutableSlice { first in
            second.withMutableSlice { second in
              Optimizers.adamW(
                parameter: value, gradient: gradient.slice, firstMoment: first,
                secondMoment: second, step: step, learningRate: rate, weightDecay: decay)
            }
          }
        }
      }
      moments[place] = (first, second)
    }
  }
}
