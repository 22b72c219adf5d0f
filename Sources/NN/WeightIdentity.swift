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
  /// ‖·‖² of the weights that lead to each output feature, `[outputs]`; computed once for a
  /// frozen weight, whichever adapters ask.
  public func squaredNorms(_ axis: OutputAxis) -> Tensor {
    switch weight {
    case .matrix(let matrix): return identity.norms(axis) { matrix.squaredNorms(axis) }
    case .parameter(let parameter): return DenseMatrix(parameter.value).squaredNorms(axis)
    }
  }
}

extension WeightMatrix {
  fileprivate func squaredNorms(_ axis: OutputAxis) -> Tensor {
    if axis == .rows { return squaredRowNorms() }
    var sums = [Double](repeating: 0, count: columns)
    for range in rowBlocks {
      let block = dequantized(rows: range)
      block.slice.withSpan { values in
        for row in 0..<range.count {
          for column in 0..<columns {
            let value = Double(values[row * columns + column])
            sums[column] += value * value
          }
        }
      }
    }
    return Tensor(shape: [columns], scalars: sums.map(Float.init))
  }
}
