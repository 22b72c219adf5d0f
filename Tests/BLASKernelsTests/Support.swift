import Testing

@testable import BLASKernels

/// All suites here: they change the process's instruction set and thread count, so they take turns.
@Suite(.serialized) struct Kernels {}

/// Runs `body` with every instruction set of this machine.
func atEveryLevel(_ body: (InstructionSet) throws -> Void) rethrows {
  defer { InstructionSet.limit(to: .supported) }
  for level in InstructionSet.available {
    InstructionSet.limit(to: level)
    try body(level)
  }
}

/// Runs `body` with a thread count.
func withThreads<Result>(_ count: Int, _ body: () throws -> Result) rethrows -> Result {
  let before = Parallel.threadCount
  Parallel.threadCount = count
  defer { Parallel.threadCount = before }
  return try body()
}

/// Lengths around every vector width, and some that are split over threads.
let lengths = [
  0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 200, 1001, 40_003,
]

/// Reproducible numbers that owe nothing to the code under test: a linear congruential generator.
struct Generator: RandomNumberGenerator {
  var state: UInt64
  init(_ seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 &+ 1 }
  mutating func next() -> UInt64 {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return state ^ (state >> 29)
  }
}

func numbers(
  _ count: Int, seed: UInt64 = 1, in range: ClosedRange<Float> = -1...1
) -> [Float] {
  var generator = Generator(seed)
  return (0..<count).map { _ in Float.random(in: range, using: &generator) }
}

func doubles(_ x: [Float]) -> [Double] { x.map(Double.init) }

/// The largest |a − b| / (|b| + floor).
func relativeError(_ a: [Float], _ b: [Double], floor: Double = 1e-30) -> Double {
  var worst = a.count == b.count ? 0 : Double.infinity
  for (x, y) in zip(a, b) where Double(x) != y {
    let error = abs(Double(x) - y) / (abs(y) + floor)
    worst = error.isNaN ? .infinity : max(worst, error)
  }
  return worst
}

/// The largest |a − b|, relative to the largest |b| or `floor`.
func errorOfLargest(_ a: [Float], _ b: [Double], floor: Double = 1e-30) -> Double {
  guard a.count == b.count else { return .infinity }
  let scale = max(b.reduce(0) { max($0, abs($1)) }, floor)
  return zip(a, b).reduce(0) {
    let error = abs(Double($1.0) - $1.1) / scale
    return error.isNaN ? .infinity : max($0, error)
  }
}

/// What a product must be: checked through its own product with a vector of random signs and sizes, which
/// costs no more than reading the matrices (Freivalds' check). An element that is wrong by as much as the
/// rounding of a whole row shows.
struct ExpectedProduct {
  let m: Int
  let n: Int
  let ldc: Int
  let vector: [Double]
  let rows: [Double]
  let kept: [Float]

  /// alpha op(A) op(B) + beta C.
  init(
    _ ta: Transpose, _ tb: Transpose, _ m: Int, _ n: Int, _ k: Int, _ alpha: Double, _ a: [Float],
    _ lda: Int, _ b: [Float], _ ldb: Int, _ beta: Double, _ c: [Float], _ ldc: Int
  ) {
    let vector = numbers(n, seed: 99).map { Double($0 < 0 ? $0 - 0.5 : $0 + 0.5) }
    var inner = [Double](repeating: 0, count: k)
    for l in 0..<k {
      for j in 0..<n { inner[l] += Double(tb == .no ? b[l * ldb + j] : b[j * ldb + l]) * vector[j] }
    }
    var rows = [Double](repeating: 0, count: m)
    for i in 0..<m {
      for l in 0..<k {
        rows[i] += alpha * Double(ta == .no ? a[i * lda + l] : a[l * lda + i]) * inner[l]
      }
      if beta != 0 {
        for j in 0..<n { rows[i] += beta * Double(c[i * ldc + j]) * vector[j] }
      }
    }
    (self.m, self.n, self.ldc, self.vector, self.rows, kept) = (m, n, ldc, vector, rows, c)
  }

  /// The largest deviation of a row's check, relative to the largest row's; infinite if the gaps between rows
  /// were written.
  func error(_ c: [Float]) -> Double {
    var checks = [Float](repeating: 0, count: m)
    for i in 0..<m {
      var sum = 0.0
      for j in 0..<n { sum += Double(c[i * ldc + j]) * vector[j] }
      checks[i] = Float(sum)
      for j in n..<ldc where i * ldc + j < c.count {
        if c[i * ldc + j] != kept[i * ldc + j] { return .infinity }
      }
    }
    return errorOfLargest(checks, rows)
  }
}
