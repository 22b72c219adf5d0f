import Tensors

/// A linear layer: x·Wᵀ + b, `[…, inputFeatures]` to `[…, outputFeatures]`.
public final class Linear: AdapterHost {
  /// The weight and bias.
  public var parameters: HostParameters
  /// What the layer's slot holds.
  public var adapters: (any HostAdapters)?
  /// Width of the input.
  public let inputFeatures: Int
  /// Width of the output.
  public let outputFeatures: Int
  /// The class name that PyTorch prints.
  public let typeName: String

  /// Creates a layer; the weight is `[outputFeatures, inputFeatures]`.
  public init(
    _ parameters: HostParameters, inputFeatures: Int, outputFeatures: Int,
    typeName: String = "Linear"
  ) {
    self.parameters = parameters
    self.inputFeatures = inputFeatures
    self.outputFeatures = outputFeatures
    self.typeName = typeName
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
    case .parameter(let weight): return linear(x, weight.tensor, bias: parameters.bias?.tensor)
    }
  }

  /// What PyTorch prints between the parentheses.
  public var attributes: String {
    let bias = parameters.bias == nil ? "False" : "True"
    return "in_features=\(inputFeatures), out_features=\(outputFeatures), bias=\(bias)"
  }
}
