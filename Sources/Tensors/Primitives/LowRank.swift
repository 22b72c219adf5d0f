import BLASKernels

/// A change of a linear layer's output, y += scale·B·(A·x).
public struct LowRankFactors: Sendable {
  /// `[rank, inputs]`.
  public let a: Tensor
  /// `[outputs, rank]`.
  public let b: Tensor
  /// The factor of the product.
  public let scale: Float

  /// Creates a change from its factors.
  public init(a: Tensor, b: Tensor, scale: Float) {
    precondition(a.shape.count == 2 && b.shape.count == 2 && a.shape[0] == b.columns)
    self.a = a.detached
    self.b = b.detached
    self.scale = scale
  }
}

extension Tensor {
  /// Adds low-rank changes to rows of this tensor, all in one call and without a graph.
  ///
  /// - Parameters:
  ///   - runs: Rows, which must not overlap, each with its own change.
  ///   - x: `[…, inputs]`, with as many rows as this tensor, `[…, outputs]`.
  public mutating func addLowRank(
    _ runs: [(rows: Range<Int>, factors: LowRankFactors)], of x: Tensor
  ) {
    let (inputs, outputs) = (x.columns, columns)
    precondition(x.rows == rows)
    let kernelRuns = runs.map { run in
      precondition(run.factors.a.columns == inputs && run.factors.b.rows == outputs)
      return LowRankRun(
        rows: run.rows, a: run.factors.a.slice, b: run.factors.b.slice,
        rank: run.factors.b.columns, scale: run.factors.scale)
    }
    let source = x.slice
    self = detached
    withMutableSlice {
      LowRank.add(kernelRuns, source, inputs: inputs, outputs: outputs, into: $0)
    }
  }
}
