import PEFTSupport
import Tensors

/// Principal components of rows that come batch by batch.
///
/// The method of scikit-learn's IncrementalPCA (Ross et al., "Incremental learning for robust visual
/// tracking", 2008): the components so far, weighted with their singular values, stand for the rows that
/// made them.
struct IncrementalPCA {
  /// How many components are kept.
  let count: Int
  /// `[count, columns]`; the largest element of each is positive. `nil` before the first batch.
  private(set) var components: Tensor?
  /// The singular values of the components.
  private(set) var singularValues: [Float] = []
  /// How much of the rows' whole variance each component has.
  private(set) var varianceRatios: [Double] = []
  private var mean: [Double] = []
  private var variance: [Double] = []
  private var seen = 0

  init(count: Int) { self.count = count }

  /// Adds rows, at least ``count`` of them.
  ///
  /// - Throws: ``PEFTError`` `numericalFailure` when they are not finite.
  mutating func add(_ rows: Tensor) throws(PEFTError) {
    let (n, width) = (rows.rows, rows.columns)
    let (batchMean, batchVariance) = Self.moments(rows)
    let total = seen + n
    let before = mean
    merge(batchMean, batchVariance, n)
    var centred = rows
    let offset = Tensor(shape: [width], scalars: batchMean.map { -Float($0) })
    centred.addToRows(offset)
    var stacked = centred
    if let components {
      // How far the batch's mean is from that of all rows before, as one more row.
      let factor = (Double(seen) / Double(total) * Double(n)).squareRoot()
      let correction = (0..<width).map { Float(factor * (before[$0] - batchMean[$0])) }
      stacked = .stackingRows([
        components.scalingRows(
          by: Tensor(shape: [singularValues.count], scalars: singularValues)), centred,
        Tensor(shape: [1, width], scalars: correction),
      ])
    }
    let parts = try stacked.decomposed(rank: count)
    let sum = variance.reduce(0, +) * Double(total)
    components = parts.vt.scalingRows(by: Self.signs(parts.vt))
    singularValues = parts.s
    varianceRatios = parts.s.map { sum > 0 ? Double($0) * Double($0) / sum : 0 }
    seen = total
  }

  /// Mean and variance of each column.
  private static func moments(_ rows: Tensor) -> (mean: [Double], variance: [Double]) {
    let (n, width) = (rows.rows, rows.columns)
    var mean = [Double](repeating: 0, count: width)
    var variance = mean
    rows.slice.withSpan { values in
      for row in 0..<n {
        for column in 0..<width { mean[column] += Double(values[row * width + column]) }
      }
      for column in 0..<width { mean[column] /= Double(n) }
      for row in 0..<n {
        for column in 0..<width {
          let distance = Double(values[row * width + column]) - mean[column]
          variance[column] += distance * distance
        }
      }
    }
    return (mean, variance.map { $0 / Double(n) })
  }

  /// Combines mean and variance with those of `n` further rows (Chan et al., 1983).
  private mutating func merge(_ batchMean: [Double], _ batchVariance: [Double], _ n: Int) {
    guard seen > 0 else {
      (mean, variance) = (batchMean, batchVariance)
      return
    }
    let total = Double(seen + n)
    let (old, new) = (Double(seen) / total, Double(n) / total)
    for column in mean.indices {
      let distance = batchMean[column] - mean[column]
      variance[column] =
        old * variance[column] + new * batchVariance[column] + old * new * distance * distance
      mean[column] = old * mean[column] + new * batchMean[column]
    }
  }

  /// The sign of the largest element of each row.
  private static func signs(_ matrix: Tensor) -> Tensor {
    let signs: [Float] = (0..<matrix.rows).map { row in
      let largest = matrix.rowRange(row..<row + 1).scalars.max { $0.magnitude < $1.magnitude } ?? 0
      return largest < 0 ? -1 : 1
    }
    return Tensor(shape: [signs.count], scalars: signs)
  }
}
