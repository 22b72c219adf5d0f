import Testing

@testable import BLASKernels

/// Expected values: the definition, in double precision.
extension Kernels {
  @Suite struct LowRankTests {
    /// Row counts of the runs with the rank of each; rows between runs belong to none.
    @Test(arguments: [
      [(1, 8), (1, 8), (1, 8)], [(2, 3), (3, 8), (1, 16)], [(40, 8), (5, 4), (1, 1)],
      [(130, 8)], [(7, 33), (70, 2)], [(16, 8), (17, 8), (16, 4)],
    ])
    func runsGetTheirOwnFactors(_ shape: [(Int, Int)]) {
      for (inputs, outputs) in [(64, 172), (37, 19), (515, 130), (5, 1)] {
        let rows = shape.reduce(1) { $0 + $1.0 + 1 }
        let x = numbers(rows * inputs, seed: 1)
        let y = numbers(rows * outputs, seed: 2)
        var expected = doubles(y)
        var runs: [LowRankRun] = []
        var start = 1
        for (place, (count, rank)) in shape.enumerated() {
          let a = numbers(rank * inputs, seed: UInt64(3 + place))
          let b = numbers(outputs * rank, seed: UInt64(30 + place))
          let scale = Float(place) - 0.5
          runs.append(
            LowRankRun(
              rows: start..<start + count, a: Slice(a), b: Slice(b), rank: rank, scale: scale))
          for row in start..<start + count {
            var low = [Double](repeating: 0, count: rank)
            for r in 0..<rank {
              for i in 0..<inputs {
                low[r] += Double(a[r * inputs + i]) * Double(x[row * inputs + i])
              }
            }
            for o in 0..<outputs {
              var sum = 0.0
              for r in 0..<rank { sum += Double(b[o * rank + r]) * low[r] }
              expected[row * outputs + o] += Double(scale) * sum
            }
          }
          start += count + 1
        }
        atEveryLevel { level in
          for threads in [1, 2, 3] {
            let result = MutableSlice(y)
            withThreads(threads) {
              LowRank.add(runs, Slice(x), inputs: inputs, outputs: outputs, into: result)
            }
            #expect(
              errorOfLargest(result.array, expected) < 3e-6,
              "\(level), \(threads) threads, \(shape), \(inputs)×\(outputs)")
          }
        }
      }
    }

    @Test func nothingToDoIsFine() {
      let y = MutableSlice(numbers(6))
      LowRank.add([], Slice(numbers(4)), inputs: 2, outputs: 3, into: y)
      #expect(y.array == numbers(6))
    }
  }
}
