import PEFTSupport
import Tensors

/// Makes layers at a path, so that a parameter's name is written once, where it is used. A parameter
/// that the source lacks, or has in another shape, is a ``PEFTError`` that names it.
///
/// ```swift
/// let attention = builder["self_attn"]
/// let q = try attention.linear("q_proj", 896, 896, bias: true)
/// ```
public struct ModuleBuilder {
  /// Where parameters come from.
  public let source: any ParameterSource
  /// The dotted path of the module being made; empty at the root.
  public let path: String

  /// Creates a builder.
  public init(_ source: any ParameterSource, path: String = "") {
    self.source = source
    self.path = path
  }

  /// The builder of a part.
  public subscript(name: String) -> ModuleBuilder {
    ModuleBuilder(source, path: full(name))
  }

  /// The full name of a part.
  public func full(_ name: String) -> String { path.isEmpty ? name : "\(path).\(name)" }

  /// A linear layer.
  public func linear(
    _ name: String, _ inputs: Int, _ outputs: Int, bias: Bool
  ) throws(PEFTError) -> Linear {
    let part = self[name]
    return Linear(
      HostParameters(
        weight: .matrix(
          try source.matrix(part.full("weight"), rows: outputs, columns: inputs)),
        bias: bias ? try part.parameter("bias", count: outputs, initial: 0) : nil),
      inputFeatures: inputs, outputFeatures: outputs)
  }

  /// GPT-2's linear layer, whose weight is stored `[inputs, outputs]`.
  public func conv1D(
    _ name: String, _ inputs: Int, _ outputs: Int
  ) throws(PEFTError) -> Conv1D {
    let part = self[name]
    return Conv1D(
      try source.matrix(part.full("weight"), rows: inputs, columns: outputs),
      bias: try part.parameter("bias", count: outputs, initial: 0))
  }

  /// A convolution of one to three dimensions.
  ///
  /// - Throws: ``PEFTError`` also for settings that no convolution has.
  public func convolution(
    _ name: String, _ settings: ConvolutionSettings, bias: Bool
  ) throws(PEFTError) -> Convolution {
    let part = self[name]
    do { try settings.validate() } catch { throw error.located(at: part.path) }
    let shape =
      [settings.outputChannels, settings.inputChannels / settings.groups] + settings.kernel
    return Convolution(
      try source.matrix(part.full("weight"), shape: shape),
      bias: bias ? try part.parameter("bias", count: settings.outputChannels, initial: 0) : nil,
      settings)
  }

  /// PyTorch's MultiheadAttention with packed projections.
  public func multiheadAttention(
    _ name: String, _ width: Int, heads: Int, bias: Bool = true, batchFirst: Bool = false,
    dropout: Double = 0
  ) throws(PEFTError) -> MultiheadAttention {
    guard heads > 0, width % heads == 0 else {
      throw PEFTError(
        .invalidConfiguration, "attention of width \(width) with \(heads) heads",
        at: full(name), remedy: "The width must be a multiple of the number of heads.")
    }
    let part = self[name]
    let weight = try source.matrix(part.full("in_proj_weight"), rows: 3 * width, columns: width)
    let inBias = bias ? try part.parameter("in_proj_bias", count: 3 * width, initial: 0) : nil
    let out = part["out_proj"]
    let outMatrix = try source.matrix(out.full("weight"), rows: width, columns: width)
    let outBias = bias ? try out.parameter("bias", count: width, initial: 0) : nil
    return MultiheadAttention(
      packed: weight, bias: inBias,
      output: HostParameters(weight: .matrix(outMatrix), bias: outBias), heads: heads,
      batchFirst: batchFirst, dropout: Dropout(dropout, path: part.full("dropout")))
  }

  /// An embedding; rows are multiplied by `scale`.
  public func embedding(
    _ name: String, _ count: Int, _ width: Int, paddingIndex: Int? = nil, scale: Float = 1,
    typeName: String = "Embedding"
  ) throws(PEFTError) -> Embedding {
    let matrix = try source.matrix(self[name].full("weight"), rows: count, columns: width)
    return Embedding(
      HostParameters(weight: .matrix(matrix), bias: nil), count: count, width: width,
      paddingIndex: paddingIndex, scale: scale, typeName: typeName)
  }

  /// A layer norm.
  public func layerNorm(
    _ name: String, _ width: Int, epsilon: Double
  ) throws(PEFTError) -> LayerNorm {
    let part = self[name]
    return LayerNorm(
      weight: try part.parameter("weight", count: width, initial: 1),
      bias: try part.parameter("bias", count: width, initial: 0), width: width, epsilon: epsilon)
  }

  /// A root-mean-square norm.
  public func rmsNorm(
    _ name: String, _ width: Int, epsilon: Double, typeName: String
  ) throws(PEFTError) -> RMSNorm {
    RMSNorm(
      weight: try self[name].parameter("weight", count: width, initial: 1), width: width,
      epsilon: epsilon, typeName: typeName)
  }

  /// A dropout site.
  public func dropout(_ name: String, _ probability: Double) -> Dropout {
    Dropout(probability, path: full(name))
  }

  private func parameter(
    _ name: String, count: Int, initial: Float
  ) throws(PEFTError) -> Parameter {
    Parameter(
      try source.vector(full(name), count: count, initial: initial), isTrainable: false)
  }
}
