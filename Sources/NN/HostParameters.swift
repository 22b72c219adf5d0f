import Tensors

/// How PyTorch stores a weight that adapters see as a matrix with one row for each output.
public enum WeightForm: Sendable, Equatable {
  /// As it is seen, `[outputs, inputs]`; a table of embeddings is `[count, width]`.
  case matrix
  /// `[inputs, outputs]`, transformers' Conv1D.
  case transposed
  /// `[outputs, …]` with the given extents after the first, a convolution's
  /// `[channels/groups, kernel…]`.
  case kernel([Int])

  /// The shape in files of a matrix with the given rows and columns.
  public func storedShape(rows: Int, columns: Int) -> [Int] {
    switch self {
    case .matrix: return [rows, columns]
    case .transposed: return [columns, rows]
    case .kernel(let extents): return [rows] + extents
    }
  }
}

/// The weight and bias of a host.
public struct HostParameters {
  /// A frozen matrix in any format, or a parameter.
  ///
  /// A matrix has one row for each output (an embedding's: for each token), whatever the form in
  /// which it is stored. A parameter has the stored form, since its value and gradient go to
  /// files and optimisers.
  public enum Weight {
    case matrix(any WeightMatrix)
    case parameter(Parameter)
  }

  /// The weight.
  public var weight: Weight { didSet { identity = WeightIdentity() } }
  /// Stands for the value of a frozen weight: what was derived from one belongs to its identity.
  public private(set) var identity = WeightIdentity()
  /// The bias.
  public var bias: Parameter?
  /// Whether another module owns the weight, as a tied output head's embedding does, and the layer
  /// that a replicated one was copied from.
  public var isTied: Bool
  /// How the weight is stored.
  public let form: WeightForm
  /// The attribute names of weight and bias.
  public let names: (weight: String, bias: String)

  /// Creates a set of parameters.
  public init(
    weight: Weight, bias: Parameter?, isTied: Bool = false, form: WeightForm = .matrix,
    names: (weight: String, bias: String) = ("weight", "bias")
  ) {
    self.weight = weight
    self.bias = bias
    self.isTied = isTied
    self.form = form
    self.names = names
  }

  /// The weight as a matrix; a trainable one by its current value.
  ///
  /// - Precondition: The weight has two dimensions, or is a convolution's.
  public var matrix: any WeightMatrix {
    switch weight {
    case .matrix(let matrix): return matrix
    case .parameter(let parameter):
      let value = parameter.value
      switch form {
      case .matrix: return DenseMatrix(value)
      case .transposed: return TransposedMatrix(DenseMatrix(value))
      case .kernel: return DenseMatrix(value.asMatrix)
      }
    }
  }

  /// The weight as floats in the shape that files have.
  public var storedWeight: Tensor {
    switch weight {
    case .parameter(let parameter): return parameter.value
    case .matrix(let matrix):
      let shape = form.storedShape(rows: matrix.rows, columns: matrix.columns)
      if form == .transposed {
        return (matrix as? TransposedMatrix)?.stored.dequantized()
          ?? matrix.dequantized().transposed()
      }
      return Tensor(shape: shape, slice: matrix.dequantized().slice)
    }
  }

  /// Copies that training can change, for modules that are trained in full.
  public func trainableCopy() -> HostParameters {
    HostParameters(
      weight: .parameter(Parameter(storedWeight)), bias: bias.map { Parameter($0.value) },
      form: form, names: names)
  }

  /// The parameters under their names.
  public var info: [ParameterInfo] {
    var result: [ParameterInfo] = []
    if !isTied {
      switch weight {
      case .matrix(let matrix):
        let shape = form.storedShape(rows: matrix.rows, columns: matrix.columns)
        result.append(ParameterInfo(names.weight, matrix, shape: shape))
      case .parameter(let parameter): result.append(ParameterInfo(names.weight, parameter))
      }
    }
    if let bias { result.append(ParameterInfo(names.bias, bias)) }
    return result
  }
}
