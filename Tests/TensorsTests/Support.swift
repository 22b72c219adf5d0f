import Tensors

/// Pseudo-random numbers in ±1 that are the same everywhere (a linear congruential generator).
func numbers(_ shape: [Int], seed: UInt64 = 1) -> Tensor {
  var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
  let scalars = (0..<shape.reduce(1, *)).map { _ -> Float in
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return Float(Int32(truncatingIfNeeded: state >> 33)) / Float(1 << 30) - 1
  }
  return Tensor(shape: shape, scalars: scalars)
}

/// A parameter of such numbers.
func parameter(_ shape: [Int], seed: UInt64 = 1) -> Parameter {
  Parameter(numbers(shape, seed: seed))
}

extension Tensor {
  /// The elements in double precision.
  var doubles: [Double] { scalars.map(Double.init) }
}

/// The largest difference to a reference in double precision, relative to its largest magnitude.
func error(_ actual: Tensor, _ expected: [Double]) -> Double {
  guard actual.count == expected.count else { return .infinity }
  let difference = zip(actual.doubles, expected).map { abs($0 - $1) }
  if difference.contains(where: \.isNaN) { return .nan }
  return (difference.max() ?? 0) / max(expected.map(abs).max() ?? 0, 1e-30)
}

/// x·Wᵀ in double precision for x `[n, k]` and W `[m, k]`.
func product(_ x: [Double], _ w: [Double], n: Int, m: Int, k: Int) -> [Double] {
  var result = [Double](repeating: 0, count: n * m)
  for i in 0..<n {
    for j in 0..<m {
      for c in 0..<k { result[i * m + j] += x[i * k + c] * w[j * k + c] }
    }
  }
  return result
}
