import Testing

@testable import BLASKernels

/// Expected values: the definitions, in double precision. Sizes in one piece and in several.
extension Kernels {
  @Suite struct ScaledLowRankTests {
    @Test(arguments: [
      (1, 40, 3), (5, 17, 1), (70, 2100, 1), (130, 1100, 2), (700, 200, 3),
    ])
    func bothWays(_ rows: Int, _ columns: Int, _ rank: Int) {
      for threads in [1, 2] {
        withThreads(threads) {
          atEveryLevel { level in check("\(level), \(threads)", rows, columns, rank) }
        }
      }
    }

    private func check(_ place: Comment, _ rows: Int, _ columns: Int, _ rank: Int) {
      let (low, b) = (numbers(rows * rank, seed: 1), numbers(columns * rank, seed: 2))
      let (x, dy) = (numbers(rows * columns, seed: 3), numbers(rows * columns, seed: 4))
      let (factors, bias) = (numbers(columns, seed: 5), numbers(columns, seed: 6))
      let (scale, beta) = (Float(1.5), Float(0.5))
      for bias in [bias, nil] {
        let shift = bias.map { Slice($0) }
        let y = MutableSlice<Float>(count: x.count)
        y.copy(from: Slice(x))
        ScaledLowRank.apply(
          rows: rows, columns: columns, rank: rank, low: Slice(low), b: Slice(b), scale: scale,
          by: Slice(factors), adding: shift, to: y)
        let expected = (0..<x.count).map { place in
          let (i, j) = (place / columns, place % columns)
          let product = (0..<rank).reduce(0.0) {
            $0 + Double(low[i * rank + $1]) * Double(b[j * rank + $1])
          }
          return Double(bias?[j] ?? 0)
            + Double(factors[j]) * (Double(x[place]) + Double(scale) * product)
        }
        #expect(errorOfLargest(y.array, expected) < 1e-6, place)

        let gradient = MutableSlice<Float>(count: x.count)
        gradient.copy(from: Slice(dy))
        let dots = MutableSlice<Float>(repeating: .nan, count: columns)
        let start = numbers(rows * rank, seed: 7)
        for beta in [beta, 0] {
          gradient.copy(from: Slice(dy))
          let dlow = MutableSlice<Float>(count: rows * rank)
          if beta == 0 { dlow.fill(.nan) } else { dlow.copy(from: Slice(start)) }
          ScaledLowRank.gradients(
            rows: rows, columns: columns, rank: rank, gradient, Slice(x), bias: shift,
            by: Slice(factors), b: Slice(b), scale: scale, dots: dots, beta: beta, into: dlow)
          let scaled = dy.indices.map { Double(dy[$0]) * Double(factors[$0 % columns]) }
          #expect(errorOfLargest(gradient.array, scaled) < 1e-6, place)
          var expectedDots = [Double](repeating: 0, count: columns)
          for place in dy.indices {
            let j = place % columns
            expectedDots[j] += Double(dy[place]) * (Double(x[place]) - Double(bias?[j] ?? 0))
          }
          #expect(errorOfLargest(dots.array, expectedDots) < 1e-5, place)
          let expectedLow = (0..<rows * rank).map { place in
            let (i, k) = (place / rank, place % rank)
            return (0..<columns).reduce(beta == 0 ? 0 : Double(beta) * Double(start[place])) {
              $0 + Double(scale) * scaled[i * columns + $1] * Double(b[$1 * rank + k])
            }
          }
          #expect(errorOfLargest(dlow.array, expectedLow) < 1e-5, place)
        }
      }
    }
  }
}
