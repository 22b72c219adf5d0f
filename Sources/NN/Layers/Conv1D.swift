import Tensors

/// transformers' Conv1D, GPT-2's linear layer: x·W + b with the weight stored
/// `[inputFeatures, outputFeatures]`.
///
/// Its ``HostParameters/matrix`` is `[outputFeatures, inputFeatures]` all the same, a
/// `TransposedMatrix` over the stored weight, so adapters need not know.
public final class Conv1D: AdapterHost {
  /// The weight and bias.
  public var parameters: HostParameters
  /// What the layer's slot holds.
  public var adapters: (any HostAdapters)?
  /// Width of the input.
  public let inputFeatures: Int
  /// Width of the output.
  public let outputFeatures: Int

  /// Creates a layer.
  ///
  /// - Parameters:
  ///   - stored: The weight as files have it, `[inputFeatures, outputFeatures]`.
  ///   - bias: `[outputFeatures]`.
  public init(_ stored: any WeightMatrix, bias: Parameter?) {
    parameters = HostParameters(
      weight: .matrix(TransposedMatrix(stored)), bias: bias, form: .transposed)
    inputFeatures = stored.rows
    outputFeatures = stored.columns
  }

  /// Applies the layer, adapters included.
  public func callAsFunction(_ x: Tensor, _ context: ForwardContext) -> Tensor {
    forward(.features(x), context)
  }

  /// The layer's function with given parameters and without adapters.
  public func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor {
    guard case .features(let x) = input else {
      preconditionFailure("a linear layer takes features, not token ids")
    }
    switch parameters.weight {
    case .matrix(let matrix): return linear(x, matrix, bias: parameters.bias?.tensor)
    case .parameter(let weight):
      return linear(x, weight.tensor.transposed(), bias: parameters.bias?.tensor)
    }
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "Conv1D" }
  /// What PyTorch prints between the parentheses.
  public var attributes: String { "nf=\(outputFeatures), nx=\(inputFeatures)" }
}
