import Tensors

/// Layer normalisation with weight and bias.
public final class LayerNorm: AdapterHost {
  /// The weight and bias.
  public var parameters: HostParameters
  /// What the layer's slot holds.
  public var adapters: (any HostAdapters)?
  /// Width of a row.
  public let width: Int
  /// ε.
  public let epsilon: Double

  /// Creates a layer; weight and bias are `[width]`.
  public init(weight: Parameter, bias: Parameter, width: Int, epsilon: Double) {
    parameters = HostParameters(weight: .parameter(weight), bias: bias)
    self.width = width
    self.epsilon = epsilon
  }

  /// Width of the input.
  public var inputFeatures: Int { width }
  /// Width of the output.
  public var outputFeatures: Int { width }

  /// Normalises x + residual.
  public func callAsFunction(
    _ x: Tensor, residual: Tensor? = nil, _ context: ForwardContext
  ) -> Tensor {
    if adapters == nil { return normalize(x, residual: residual, parameters) }
    return forward(.features(residual.map { x + $0 } ?? x), context)
  }

  /// The layer's function with given parameters and without adapters.
  public func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor {
    guard case .features(let x) = input else {
      preconditionFailure("a norm takes features, not token ids")
    }
    return normalize(x, residual: nil, parameters)
  }

  private func normalize(
    _ x: Tensor, residual: Tensor?, _ parameters: HostParameters
  ) -> Tensor {
    guard case .parameter(let weight) = parameters.weight, let bias = parameters.bias else {
      preconditionFailure("a layer norm has a weight vector and a bias")
    }
    return layerNorm(
      x, residual: residual, weight: weight.tensor, bias: bias.tensor, epsilon: Float(epsilon))
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "LayerNorm" }
  /// What PyTorch prints between the parentheses.
  public var attributes: String {
    "(\(width),), eps=\(pythonNumber(epsilon)), elementwise_affine=True, bias=True"
  }
}

/// Root-mean-square normalisation with weight.
public final class RMSNorm: AdapterHost {
  /// The weight and bias.
  public var parameters: HostParameters
  /// What the layer's slot holds.
  public var adapters: (any HostAdapters)?
  /// Width of a row.
  public let width: Int
  /// ε.
  public let epsilon: Double
  /// The class name that PyTorch prints.
  public let typeName: String

  /// Creates a layer; the weight is `[width]`. Each family prints its own class name.
  public init(weight: Parameter, width: Int, epsilon: Double, typeName: String) {
    parameters = HostParameters(weight: .parameter(weight), bias: nil)
    self.width = width
    self.epsilon = epsilon
    self.typeName = typeName
  }

  /// Width of the input.
  public var inputFeatures: Int { width }
  /// Width of the output.
  public var outputFeatures: Int { width }

  /// Normalises each row.
  public func callAsFunction(_ x: Tensor, _ context: ForwardContext) -> Tensor {
    forward(.features(x), context)
  }

  /// The layer's function with given parameters and without adapters.
  public func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor {
    guard case .features(let x) = input, case .parameter(let weight) = parameters.weight else {
      preconditionFailure("a norm takes features and has a weight vector")
    }
    return rmsNorm(x, weight: weight.tensor, epsilon: Float(epsilon))
  }

  /// What PyTorch prints between the parentheses.
  public var attributes: String { "(\(width),), eps=\(pythonNumber(epsilon))" }
}

/// A float as Python prints it: `1e-12`, `1e-05`, `0.1`.
public func pythonNumber(_ value: Double) -> String {
  let text = "\(value)"
  guard let mark = text.firstIndex(of: "e") else { return text }
  var mantissa = text[..<mark]
  if mantissa.hasSuffix(".0") { mantissa = mantissa.dropLast(2) }
  var exponent = text[text.index(after: mark)...]
  let sign = exponent.first == "-" ? "-" : "+"
  if exponent.first == "-" || exponent.first == "+" { exponent = exponent.dropFirst() }
  let digits = exponent.count < 2 ? "0\(exponent)" : String(exponent)
  return "\(mantissa)e\(sign)\(digits)"
}
