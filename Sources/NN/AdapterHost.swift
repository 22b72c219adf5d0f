import Tensors

/// A layer that adapters can change: it has one slot, and asks what is in it for its output.
///
/// The base layer is never replaced or subclassed. Its parameters keep their names, and any
/// number of adapters of any method share the slot.
public protocol AdapterHost: Module {
  /// The layer's own weight and bias; merging replaces the weight by another value.
  var parameters: HostParameters { get set }
  /// What the slot holds; `nil` for a plain layer.
  var adapters: (any HostAdapters)? { get set }
  /// Width of the input.
  var inputFeatures: Int { get }
  /// Width of the output.
  var outputFeatures: Int { get }

  /// The layer's function with given parameters and without adapters.
  func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor
}

extension AdapterHost {
  /// The layer's output, adapters included.
  func forward(_ input: HostInput, _ context: ForwardContext) -> Tensor {
    let output = adapters?.forward(input, host: self, context) ?? base(input, parameters)
    guard let observer = context.observer else { return output }
    return observer(self, input, output)
  }

  /// The parameters that belong to this module itself.
  public var ownParameters: [ParameterInfo] {
    parameters.info + (adapters?.ownParameters ?? [])
  }
}

/// What a host's slot can hold; the adapter framework provides it.
public protocol HostAdapters: AnyObject {
  /// The output of the host with the active adapters.
  func forward(_ input: HostInput, host: any AdapterHost, _ context: ForwardContext) -> Tensor
  /// How the host prints with its adapters.
  func printed(around base: PrintedModule) -> PrintedModule
  /// The adapters' parameters, named relative to the host.
  var ownParameters: [ParameterInfo] { get }
}

/// What a host takes as input.
public enum HostInput {
  /// Rows of features, `[…, inputFeatures]`.
  case features(Tensor)
  /// Row numbers of an embedding.
  case tokenIDs([Int32])

  /// Number of rows.
  public var rows: Int {
    switch self {
    case .features(let x): return x.rows
    case .tokenIDs(let ids): return ids.count
    }
  }
}

/// The weight and bias of a host.
public struct HostParameters {
  /// A frozen matrix in any format, or a parameter.
  public enum Weight {
    case matrix(any WeightMatrix)
    case parameter(Parameter)
  }

  /// The weight.
  public var weight: Weight
  /// The bias.
  public var bias: Parameter?
  /// Whether another module owns the weight, as a tied output head's embedding does.
  public var isTied: Bool

  /// Creates a set of parameters.
  public init(weight: Weight, bias: Parameter?, isTied: Bool = false) {
    self.weight = weight
    self.bias = bias
    self.isTied = isTied
  }

  /// The weight as a matrix; a trainable one by its current value.
  ///
  /// - Precondition: The weight has two dimensions.
  public var matrix: any WeightMatrix {
    switch weight {
    case .matrix(let matrix): return matrix
    case .parameter(let parameter): return DenseMatrix(parameter.value)
    }
  }

  /// Copies that training can change, for modules that are trained in full.
  public func trainableCopy() -> HostParameters {
    let value: Tensor
    switch weight {
    case .matrix(let matrix): value = matrix.dequantized()
    case .parameter(let parameter): value = parameter.value
    }
    return HostParameters(
      weight: .parameter(Parameter(value)), bias: bias.map { Parameter($0.value) })
  }

  /// The parameters, named "weight" and "bias".
  public var info: [ParameterInfo] {
    var result: [ParameterInfo] = []
    if !isTied {
      switch weight {
      case .matrix(let matrix): result.append(ParameterInfo("weight", matrix))
      case .parameter(let parameter): result.append(ParameterInfo("weight", parameter))
      }
    }
    if let bias { result.append(ParameterInfo("bias", bias)) }
    return result
  }
}
