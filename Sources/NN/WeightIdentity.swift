import Synchronization
import Tensors

/// Stands for one value of a frozen weight, and keeps what is derived from it.
///
/// Copies of a host's parameters share it; another weight gets another one. Whatever is cached
/// about a weight is compared by identity and so never outlives it.
public final class WeightIdentity: Sendable {
  private let norms = Mutex<[OutputAxis: Tensor]>([:])

  /// Creates an identity for a new weight.
  public init() {}

  fileprivate func norms(_ axis: OutputAxis, _ compute: () -> Tensor) -> Tensor {
    norms.withLock { cache in
      if let known = cache[axis] { return known }
      let computed = compute()
      cache[axis] = computed
      return computed
    }
  }
}

/// Which axis of a stored matrix is the output of its layer.
public enum OutputAxis: Sendable {
  /// Rows, as in a linear layer.
  case rows
  /// Columns, as in an embedding, whose rows are looked up.
  case columns
}

extension HostParameters {
  /// The weight with one row for each output feature.
  public func matrix(_ axis: OutputAxis) -> any WeightMatrix {
    axis == .rows ? matrix : TransposedMatrix(matrix)
  }

  /// ‖·‖² of the weights that lead to each output feature, `[outputs]`; computed once for a
  /// frozen weight, whichever adapters ask.
  public func squaredNorms(_ axis: OutputAxis) -> Tensor {
    switch weight {
    case .matrix: return identity.norms(axis) { matrix(axis).squaredRowNorms() }
    case .parameter: return matrix(axis).squaredRowNorms()
    }
  }
}
