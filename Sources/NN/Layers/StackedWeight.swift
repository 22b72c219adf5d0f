import Tensors

/// A weight that adapters can change and that no layer of its own holds: a module has it as plain
/// parameter. It is no module, and does not appear among a model's modules.
public protocol WeightHost: AdapterHost {
  /// The parameter's shape as its model has it.
  var shape: [Int] { get }
}

extension WeightHost {
  /// The parameter under its name in the module.
  func info(named name: String) -> ParameterInfo {
    switch parameters.weight {
    case .matrix(let matrix): return ParameterInfo(name, matrix, shape: shape)
    case .parameter(let parameter): return ParameterInfo(name, parameter)
    }
  }
}

/// One matrix, or the matrices of all experts one after the other, as a plain parameter of a
/// module: `[out, in]`, `[experts, out, in]`, or transposed `[experts, in, out]`.
///
/// ```swift
/// let y = downProjection(x, expert: 3, context)
/// ```
public final class StackedWeight: WeightHost {
  /// The weight, whose rows are those of all matrices one after the other.
  public var parameters: HostParameters
  /// What the slot holds.
  public var adapters: (any HostAdapters)?
  /// Number of matrices.
  public let count: Int
  /// Width of the input.
  public let inputFeatures: Int
  /// Width of the output.
  public let outputFeatures: Int
  /// Whether each matrix is stored `[in, out]`.
  public let isTransposed: Bool
  /// The parameter's shape as its model has it.
  public let shape: [Int]

  /// Creates a host.
  ///
  /// - Parameters:
  ///   - matrix: All rows; the shape without its first dimension's bounds.
  ///   - shape: Two dimensions for a single matrix, three for a stack.
  ///   - isTransposed: Whether the matrices of a stack are stored `[in, out]`.
  public init(_ matrix: any WeightMatrix, shape: [Int], isTransposed: Bool = false) {
    precondition(shape.count == 2 || shape.count == 3)
    precondition(matrix.columns == shape.last && matrix.count == shape.reduce(1, *))
    parameters = HostParameters(weight: .matrix(matrix), bias: nil)
    self.shape = shape
    self.isTransposed = isTransposed && shape.count == 3
    count = shape.count == 3 ? shape[0] : 1
    let (rows, columns) = (shape[shape.count - 2], shape[shape.count - 1])
    inputFeatures = self.isTransposed ? rows : columns
    outputFeatures = self.isTransposed ? columns : rows
  }

  /// Multiplies rows by one of the matrices: `[…, in]` to `[…, out]`, adapters included.
  public func callAsFunction(
    _ x: Tensor, expert index: Int = 0, _ context: ForwardContext
  ) -> Tensor {
    forward(.expert(x, index: index), context)
  }

  /// The product with given parameters and without adapters.
  public func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor {
    guard case .expert(let x, let index) = input else {
      preconditionFailure("a stacked weight takes features for one of its matrices")
    }
    let height = isTransposed ? inputFeatures : outputFeatures
    let rows = index * height..<(index + 1) * height
    switch parameters.weight {
    case .matrix(let matrix):
      let own = matrix.dequantized(rows: rows)
      return linear(x, DenseMatrix(isTransposed ? own.transposed() : own))
    case .parameter(let parameter):
      let width = isTransposed ? outputFeatures : inputFeatures
      let table = parameter.tensor.reshaped([count * height, width])
      let own = gather(table, rows: rows.map { Int32($0) })
      return linear(x, isTransposed ? own.transposed() : own)
    }
  }

  /// The class name.
  public var typeName: String { "Parameter" }
}
