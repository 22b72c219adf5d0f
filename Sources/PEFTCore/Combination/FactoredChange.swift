import BLASKernels
import PEFTSupport
import Tensors

/// A change of a weight as a product of two thin factors, ΔW = B·A, `[outputs, inputs]`.
///
/// In a grouped convolution, and in a fused projection of which parts are adapted, the outputs
/// fall into groups, each with rows of A for itself: the outputs of group g are made by
/// B's rows of that group times A's rows of that group.
public struct FactoredChange: Sendable {
  /// `[rank, inputs]`, the rows of one group after those of another.
  public let a: Tensor
  /// `[outputs, rank / groups]`.
  public let b: Tensor
  /// Number of groups.
  public let groups: Int

  /// Creates a product; dimensions of A beyond the first, and of B beyond the second, are
  /// flattened.
  ///
  /// - Throws: ``PEFTError`` `shapeMismatch` when the shapes do not go together.
  public init(a: Tensor, b: Tensor) throws(PEFTError) {
    guard a.shape.count >= 2, b.shape.count >= 2, a.count > 0, b.count > 0,
      b.shape.dropFirst(2).allSatisfy({ $0 == 1 }), a.shape[0] % b.shape[1] == 0,
      b.shape[0] % (a.shape[0] / b.shape[1]) == 0
    else {
      throw PEFTError(
        .shapeMismatch, "factors of shapes \(a.shape) and \(b.shape) have no product",
        remedy: "A has one row for each column of B, in each of the groups.")
    }
    self.init(a.asMatrix, b.asMatrix, groups: a.shape[0] / b.shape[1])
  }

  init(_ a: Tensor, _ b: Tensor, groups: Int) {
    precondition(a.rows == b.columns * groups && b.rows % groups == 0)
    self.a = a.detached
    self.b = b.detached
    self.groups = groups
  }

  /// Rows of A.
  public var rank: Int { a.rows }
  /// Rows of A in each group.
  public var groupRank: Int { b.columns }
  /// Rows of ΔW.
  public var outputs: Int { b.rows }
  /// Columns of ΔW.
  public var inputs: Int { a.columns }

  func aBlock(_ group: Int) -> Tensor {
    a.rowRange(group * groupRank..<(group + 1) * groupRank)
  }

  func bBlock(_ group: Int) -> Tensor {
    let rows = outputs / groups
    return b.rowRange(group * rows..<(group + 1) * rows)
  }

  /// B·A, `[outputs, inputs]`.
  public func product(scale: Double = 1) -> Tensor {
    let rows = outputs / groups
    return Tensor.filled([outputs, inputs]) { result in
      for group in 0..<groups {
        BLAS.gemm(
          .no, .no, m: rows, n: inputs, k: groupRank, alpha: Float(scale), bBlock(group).slice,
          aBlock(group).slice, into: result[group * rows * inputs..<(group + 1) * rows * inputs])
      }
    }
  }

  /// Factors of the sum of gainᵢ·Bᵢ·Aᵢ: exact, of the sum of the ranks. The gains go to A.
  public static func stacked(_ parts: [(factors: FactoredChange, gain: Double)]) -> FactoredChange {
    let groups = parts[0].factors.groups
    var rows: [Tensor] = []
    for group in 0..<groups {
      rows += parts.map { $0.factors.aBlock(group).scaled(by: Float($0.gain)) }
    }
    return FactoredChange(
      .stackingRows(rows), .stackingColumns(parts.map(\.factors.b)), groups: groups)
  }

  /// The same product with more rows in each group, which are zero.
  public func padded(toGroupRank rank: Int) -> FactoredChange {
    let more = rank - groupRank
    if more <= 0 { return self }
    let rows = (0..<groups).flatMap { [aBlock($0), .zeros([more, inputs])] }
    return FactoredChange(
      .stackingRows(rows), .stackingColumns([b, .zeros([outputs, more])]), groups: groups)
  }

  /// The singular values and vectors of each group's product, which is not made.
  ///
  /// - Throws: ``PEFTError`` `numericalFailure` when a factor is not finite.
  public func decomposed() throws(PEFTError) -> [Decomposition] {
    var result: [Decomposition] = []
    for group in 0..<groups {
      let (a, b) = (aBlock(group), bBlock(group))
      result.append(
        Decomposition(
          try LAPACK.svd(b.slice, times: a.slice, m: b.rows, r: groupRank, n: inputs), m: b.rows,
          n: inputs))
    }
    return result
  }
}

extension Decomposition {
  /// Decomposes groups of rows of a matrix.
  ///
  /// - Throws: ``PEFTError`` `numericalFailure` when the matrix is not finite.
  public static func groups(_ matrix: Tensor, count: Int) throws(PEFTError)
    -> [Decomposition]
  {
    let (rows, columns) = (matrix.rows / count, matrix.columns)
    var result: [Decomposition] = []
    for group in 0..<count {
      let block = matrix.rowRange(group * rows..<(group + 1) * rows).slice
      // Double precision takes twice as long, which counts for large matrices.
      let isSmall = rows * columns <= 1 << 20
      result.append(
        Decomposition(
          isSmall
            ? try LAPACK.preciseSVD(block, m: rows, n: columns)
            : try LAPACK.svd(block, m: rows, n: columns), m: rows, n: columns))
    }
    return result
  }

  /// The smallest number of singular values whose squares make up a share of the sum of all squares.
  ///
  /// peft's `_find_cutoff_index`; at least one.
  public static func rank(forEnergy share: Double, of values: [Float]) -> Int {
    // In single precision, as in peft: what is rounding error in a value has no share.
    let squares = values.map { $0 * $0 }
    let limit = Float(share) * squares.reduce(0, +)
    var sum: Float = 0
    for (place, square) in squares.enumerated() {
      sum += square
      if sum >= limit { return place + 1 }
    }
    return max(values.count, 1)
  }

  /// The best factors of a rank, one group after another: A = Vᵀ, B = U·S.
  ///
  /// - Parameter rank: Of each group; where it exceeds what there is, the rest is zero.
  public static func factors(
    _ groups: [Decomposition], groupRank rank: Int
  ) -> FactoredChange {
    var rows: [Tensor] = []
    var columns: [Tensor] = []
    for group in groups {
      let kept = min(rank, group.s.count)
      rows.append(group.vt.rowRange(0..<kept))
      let scaled = group.u.scalingColumns(by: Tensor(shape: [group.s.count], scalars: group.s))
      var left = scaled.columnRange(0..<kept)
      if kept < rank {
        rows.append(.zeros([rank - kept, group.vt.columns]))
        left = .stackingColumns([left, .zeros([left.rows, rank - kept])])
      }
      columns.append(left)
    }
    return FactoredChange(
      .stackingRows(rows), .stackingRows(columns), groups: groups.count)
  }

  /// The same decomposition with other signs of the vectors.
  func flipped(_ signs: [Float]) -> Decomposition {
    let signs = Tensor(shape: [s.count], scalars: signs)
    var result = self
    result.u = u.scalingColumns(by: signs)
    result.vt = vt.scalingRows(by: signs)
    return result
  }
}

extension Tensor {
  /// Matrices with equally many rows side by side, without a graph.
  package static func stackingColumns(_ tensors: [Tensor]) -> Tensor {
    if tensors.count == 1 { return tensors[0].detached }
    return stackingRows(tensors.map { $0.transposed() }).transposed()
  }
}
