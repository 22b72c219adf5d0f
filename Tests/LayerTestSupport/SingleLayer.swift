import BLASKernels
import NN
import PEFTCore
import PEFTSupport
import Tensors

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
    let builder = ModuleBuilder(GoldenSource(weights))
    func int(_ key: String) throws -> Int {
      guard let value = description[key]?.int else {
        throw PEFTError(.malformedFile, "the golden has no '\(key)'")
      }
      return value
    }
    func ints(_ key: String) -> [Int] { (description[key]?.array ?? []).compactMap(\.int) }
    let bias = description["bias"]?.bool ?? false
    switch description["type"]?.string ?? "none" {
    case "Linear":
      layer = try builder.linear(
        "layer", try int("in_features"), try int("out_features"), bias: bias)
    case "Conv1D", "gpt2-conv1d":
      layer = try builder.conv1D("layer", try int("in_features"), try int("out_features"))
    case "Embedding":
      let scale = description["embed_scale"]?.double
      layer = try builder.embedding(
        "layer", try int("num_embeddings"), try int("embedding_dim"),
        paddingIndex: description["padding_idx"]?.int, scale: Float(scale ?? 1),
        typeName: scale == nil ? "Embedding" : "Gemma3TextScaledWordEmbedding")
    case "MultiheadAttention":
      layer = try builder.multiheadAttention(
        "layer", try int("embed_dim"), heads: try int("num_heads"), bias: bias,
        batchFirst: description["batch_first"]?.bool ?? false)
    case "Conv1d", "Conv2d", "Conv3d":
      let settings = ConvolutionSettings(
        try int("in_channels"), try int("out_channels"), kernel: ints("kernel_size"),
        stride: ints("stride"),
        padding: description["padding"]?.string == "same" ? .same : .symmetric(ints("padding")),
        dilation: ints("dilation"), groups: try int("groups"),
        paddingMode: PaddingMode(rawValue: description["padding_mode"]?.string ?? "") ?? .zeros)
      layer = try builder.convolution("layer", settings, bias: bias)
    case let other: throw PEFTError(.unsupported, "no such layer in these tests: '\(other)'")
    }
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
