import PEFTSupport
import Tensors

/// Makes layers at a path, so that a parameter's name is written once, where it is used.
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

  /// An embedding.
  public func embedding(
    _ name: String, _ count: Int, _ width: Int, paddingIndex: Int? = nil
  ) throws(PEFTError) -> Embedding {
    let matrix = try source.matrix(self[name].full("weight"), rows: count, columns: width)
    return Embedding(
      HostParameters(weight: .matrix(matrix), bias: nil), count: count, width: width,
      paddingIndex: paddingIndex)
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
