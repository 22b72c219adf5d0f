import Foundation

/// Which distribution numbers have, by the Kolmogorov-Smirnov test as the goldens make it: against
/// the uniform distribution between their extremes, and the normal one of their mean and deviation.
struct Distribution {
  private let sorted: [Double]
  let mean: Double
  let deviation: Double

  init(_ numbers: [Double]) {
    sorted = numbers.sorted()
    let average = numbers.reduce(0, +) / Double(numbers.count)
    mean = average
    deviation =
      (numbers.reduce(0) { $0 + ($1 - average) * ($1 - average) }
      / Double(numbers.count - 1)).squareRoot()
  }

  var isUniform: Bool {
    let (low, high) = (sorted[0], sorted[sorted.count - 1])
    return fits { ($0 - low) / (high - low) }
  }

  var isNormal: Bool {
    fits { 0.5 * (1 + erf(($0 - mean) / (deviation * 2.0.squareRoot()))) }
  }

  /// Whether the largest distance of the distribution functions has a probability above 0.05.
  private func fits(_ cumulative: (Double) -> Double) -> Bool {
    let count = Double(sorted.count)
    var distance = 0.0
    for (index, value) in sorted.enumerated() {
      let expected = cumulative(value)
      distance = max(distance, abs(expected - Double(index) / count))
      distance = max(distance, abs(Double(index + 1) / count - expected))
    }
    return distance < 1.358 / count.squareRoot()
  }
}
