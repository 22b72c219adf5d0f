import NN
import Tensors

@testable import PEFTCore
@testable import TunerLoRA

/// The right change of one module, from dense matrices in double precision.
struct Reference {
  /// `[outputs, inputs]`.
  let change: [Double]
  /// The rank that the new factors should have; `nil` where more than one would do.
  let rank: Int?

  /// - Parameters:
  ///   - sources: Place in the list, factors and weight of each adapter that has the module.
  ///   - changes: ΔW of each, magnitudes included.
  init(
    _ sources: [(Int, LoRAPart, Double)], _ combination: Combination, _ path: String, rank: Int,
    changes: [[Double]]
  ) throws {
    let weights = sources.map(\.2)
    let density = combination.density ?? 1
    let (outputs, inputs) = (sources[0].1.factors.outputs, sources[0].1.factors.inputs)
    func pruned(_ values: [Double], _ source: Int, _ side: String, _ shape: [Int]) -> [Double] {
      if !combination.kind.prunes || density >= 1 { return values }
      if !combination.kind.isRandom { return Self.largest(values, density) }
      if density == 0 { return values.map { _ in 0 } }
      let draw = PruningDraw(module: path, adapter: source, side: side, shape: shape)
      let mask =
        combination.draws?(draw)
        ?? TaskArithmetic.mask(
          shape, density: density, seed: combination.seed,
          stream: siteID("\(path).\(source).\(side)"))
      return zip(values, mask.scalars).map { $0 * Double($1) / density }
    }
    func total(_ matrices: [[Double]], _ factors: [Double]) -> [Double] {
      var sum = matrices[0].map { _ in 0.0 }
      for (matrix, factor) in zip(matrices, factors) {
        for place in sum.indices { sum[place] += factor * matrix[place] }
      }
      return sum
    }
    func merged(_ matrices: [[Double]], _ factors: [Double]) -> [Double] {
      combination.kind.elects
        ? Self.elected(matrices.map { $0.map { Float($0) } }, factors, combination.majoritySign)
        : total(matrices, factors)
    }
    let prunedFactors = sources.map { index, part, _ in
      (
        pruned(part.factors.a.scalars.map { Double($0) }, index, "A", part.factors.a.shape),
        pruned(part.factors.b.scalars.map { Double($0) }, index, "B", part.factors.b.shape)
      )
    }
    switch combination.kind {
    case .linear, .cat:
      change = total(changes, weights)
      self.rank = sources.reduce(0) { $0 + $1.1.recordedRank }
    case .dareLinear, .magnitudePrune:
      let products = zip(sources, prunedFactors).map { source, factors in
        Self.product(factors.1, factors.0, outputs, source.1.factors.groupRank, inputs)
      }
      change = total(products, sources.map { $0.1.scaling * $0.2 })
      self.rank = sources.reduce(0) { $0 + $1.1.recordedRank }
    case .ties, .dareTIES:
      let gains = sources.map { $0.1.scaling * $0.2 }
      let roots = gains.map { $0.magnitude.squareRoot() }
      let a = merged(prunedFactors.map(\.0), zip(gains, roots).map { $0 < 0 ? -$1 : $1 })
      let b = merged(prunedFactors.map(\.1), roots)
      change = Self.product(b, a, outputs, sources[0].1.factors.groupRank, inputs)
      self.rank = sources[0].1.recordedRank
    case .svd:
      change = Self.truncated(total(changes, weights), outputs, inputs, rank)
      let whole = sources.reduce(0) { $0 + $1.1.recordedRank }
      self.rank = min(rank, whole, outputs, inputs)
    case .tiesSVD, .dareTIESSVD, .dareLinearSVD, .magnitudePruneSVD:
      let matrices = zip(sources, changes).map { pruned($1, $0.0, "delta", [outputs, inputs]) }
      change = Self.truncated(merged(matrices, weights), outputs, inputs, rank)
      self.rank = min(rank, outputs, inputs)
    }
    precondition(sources.allSatisfy { $0.1.factors.groups == 1 })
  }

  static func product(_ factors: FactoredChange) -> [Double] {
    product(
      factors.b.scalars.map { Double($0) }, factors.a.scalars.map { Double($0) }, factors.outputs,
      factors.groupRank, factors.inputs)
  }

  private static func product(
    _ b: [Double], _ a: [Double], _ m: Int, _ k: Int, _ n: Int
  ) -> [Double] {
    var result = [Double](repeating: 0, count: m * n)
    for row in 0..<m {
      for inner in 0..<k {
        for column in 0..<n {
          result[row * n + column] += b[row * k + inner] * a[inner * n + column]
        }
      }
    }
    return result
  }

  /// The `Int(density · count)` largest by magnitude.
  private static func largest(_ values: [Double], _ density: Double) -> [Double] {
    let order = values.indices.sorted { values[$0].magnitude > values[$1].magnitude }
    var result = values.map { _ in 0.0 }
    for place in order.prefix(Int(density * Double(values.count))) {
      result[place] = values[place]
    }
    return result
  }

  /// The mean of weighted values with the elected sign; votes in single precision, since where they
  /// cancel nothing else decides.
  static func elected(
    _ values: [[Float]], _ weights: [Double], _ method: Combination.MajoritySign
  ) -> [Double] {
    values[0].indices.map { place in
      let column = values.map { $0[place] }
      let votes =
        method == .total
        ? column.reduce(0, +)
        : Float(column.filter { $0 > 0 }.count - column.filter { $0 < 0 }.count)
      let elected = zip(column, weights).filter { votes >= 0 ? $0.0 > 0 : $0.0 < 0 }
      return elected.reduce(0) { $0 + Double($1.0) * $1.1 } / Double(max(elected.count, 1))
    }
  }

  /// The best approximation of a rank, by one-sided Jacobi rotations of the columns.
  static func truncated(_ matrix: [Double], _ m: Int, _ n: Int, _ rank: Int) -> [Double] {
    if n > m {
      let turned = truncated(transposed(matrix, m, n), n, m, rank)
      return transposed(turned, n, m)
    }
    var columns = (0..<n).map { column in (0..<m).map { matrix[$0 * n + column] } }
    // V, by columns.
    var right = (0..<n).map { i in (0..<n).map { $0 == i ? 1.0 : 0 } }
    func dot(_ x: [Double], _ y: [Double]) -> Double { zip(x, y).reduce(0) { $0 + $1.0 * $1.1 } }
    for _ in 0..<60 {
      var largest = 0.0
      for p in 0..<n {
        for q in p + 1..<max(n, p + 1) {
          let (alpha, beta) = (dot(columns[p], columns[p]), dot(columns[q], columns[q]))
          let gamma = dot(columns[p], columns[q])
          if gamma == 0 || alpha * beta == 0 { continue }
          largest = max(largest, gamma.magnitude / (alpha * beta).squareRoot())
          let zeta = (beta - alpha) / (2 * gamma)
          let t = (zeta < 0 ? -1 : 1) / (zeta.magnitude + (1 + zeta * zeta).squareRoot())
          let c = 1 / (1 + t * t).squareRoot()
          let s = c * t
          for i in 0..<m {
            (columns[p][i], columns[q][i]) = (
              c * columns[p][i] - s * columns[q][i], s * columns[p][i] + c * columns[q][i]
            )
          }
          for i in 0..<n {
            (right[p][i], right[q][i]) = (
              c * right[p][i] - s * right[q][i], s * right[p][i] + c * right[q][i]
            )
          }
        }
      }
      if largest < 1e-14 { break }
    }
    let order = columns.indices.sorted {
      dot(columns[$0], columns[$0]) > dot(columns[$1], columns[$1])
    }
    var result = matrix.map { _ in 0.0 }
    for k in order.prefix(rank) {
      for i in 0..<m {
        for j in 0..<n { result[i * n + j] += columns[k][i] * right[k][j] }
      }
    }
    return result
  }

  private static func transposed(_ matrix: [Double], _ m: Int, _ n: Int) -> [Double] {
    (0..<m * n).map { matrix[$0 % m * n + $0 / m] }
  }
}
