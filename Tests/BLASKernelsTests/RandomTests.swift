import Testing

@testable import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Expected values: Philox4x32-10 written out from the paper, with its published known answers.
extension Kernels {
  @Suite struct RandomTests {
    static func philox(_ counter: [UInt32], _ key: [UInt32]) -> [UInt32] {
      var (c, k) = (counter, key)
      for _ in 0..<10 {
        let a = UInt64(c[0]) * 0xD251_1F53
        let b = UInt64(c[2]) * 0xCD9E_8D57
        c = [
          UInt32(b >> 32) ^ c[1] ^ k[0], UInt32(truncatingIfNeeded: b),
          UInt32(a >> 32) ^ c[3] ^ k[1], UInt32(truncatingIfNeeded: a),
        ]
        k = [k[0] &+ 0x9E37_79B9, k[1] &+ 0xBB67_AE85]
      }
      return c
    }

    /// Element i of a stream: word w of block 16 g + l is element 64 g + 16 w + l.
    static func bits(_ i: Int, seed: UInt64, stream: UInt64) -> UInt32 {
      let block = UInt64(i / 64 * 16 + i % 16)
      func halves(_ x: UInt64) -> [UInt32] { [UInt32(truncatingIfNeeded: x), UInt32(x >> 32)] }
      return philox(halves(block) + halves(stream), halves(seed))[i % 64 / 16]
    }

    /// The known answers that come with the authors' Random123 library.
    @Test func referenceGivesTheKnownAnswers() {
      let ones = UInt32.max
      #expect(
        Self.philox([0, 0, 0, 0], [0, 0]) == [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8])
      #expect(
        Self.philox([ones, ones, ones, ones], [ones, ones])
          == [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD])
    }

    @Test func uniformIsPhilox() {
      atEveryLevel { level in
        for length in lengths where length < 2000 {
          let y = MutableSlice<Float>(count: length)
          Random.uniform(seed: 0x1234_5678_9ABC, stream: 0xFFFF_0000_0001, into: y)
          let expected = (0..<length).map {
            Float(Self.bits($0, seed: 0x1234_5678_9ABC, stream: 0xFFFF_0000_0001) >> 8) * 0x1p-24
          }
          #expect(y.array == expected, "\(level), \(length)")
        }
      }
    }

    @Test func rangesAreHalfOpen() {
      let y = MutableSlice<Float>(count: 100_000)
      Random.uniform(seed: 1, stream: 1, low: 1, high: 1 + 0x1p-20, into: y)
      #expect(y.array.allSatisfy { $0 >= 1 && $0 < 1 + 0x1p-20 })
      Random.uniform(seed: 1, stream: 1, low: -0.25, high: 0.25, into: y)
      #expect(y.array.allSatisfy { $0 >= -0.25 && $0 < 0.25 })
      #expect(abs(VectorMath.sum(y.readOnly) / 100_000) < 0.002)
      #expect(abs(VectorMath.sumOfSquares(y.readOnly) / 100_000 - 0.25 / 12) < 2e-4)
    }

    /// Box and Muller's formula in double precision on the same words, and the distribution's moments.
    @Test func normal() {
      atEveryLevel { level in
        for length in [1, 63, 64, 65, 1000] {
          let y = MutableSlice<Float>(count: length)
          Random.normal(seed: 5, stream: 6, standardDeviation: 0.5, into: y)
          let expected = (0..<length).map { i in
            let (word, first) = (i % 64 / 16, i - i % 64 + i % 16)
            let base = word < 2 ? first : first + 32
            let u = Double((Self.bits(base, seed: 5, stream: 6) >> 8) + 1) * 0x1p-24
            let v = Double(Self.bits(base + 16, seed: 5, stream: 6) >> 8) * 0x1p-24
            let radius = (-2 * log(u)).squareRoot()
            return 0.5 * radius * (word % 2 == 0 ? cos(2 * .pi * v) : sin(2 * .pi * v))
          }
          #expect(zip(y.array, expected).allSatisfy { abs(Double($0) - $1) < 1e-6 }, "\(level)")
        }
      }
      let count = 200_000
      let y = MutableSlice<Float>(count: count)
      Random.normal(seed: 7, stream: 8, into: y)
      let (mean, square) = (
        VectorMath.sum(y.readOnly) / Double(count),
        VectorMath.sumOfSquares(y.readOnly) / Double(count)
      )
      let fourth = y.array.reduce(0.0) { $0 + pow(Double($1), 4) } / Double(count)
      #expect(abs(mean) < 0.01 && abs(square - 1) < 0.02 && abs(fourth - 3) < 0.15)
    }

    @Test func normalIsTheSameEverywhere() {
      var results: [[Float]] = []
      atEveryLevel { _ in
        for threads in [1, 2, 3] {
          withThreads(threads) {
            let y = MutableSlice<Float>(count: 50_001)
            Random.normal(seed: 7, stream: 8, into: y)
            results.append(y.array)
          }
        }
      }
      #expect(results.allSatisfy { $0 == results[0] })
    }

    @Test func dropout() {
      for p: Float in [0, 0.1, 0.5, 0.999] {
        let threshold = UInt64(Double(p) * 4_294_967_296)
        atEveryLevel { level in
          for length in lengths {
            let x = numbers(length, seed: 1, in: 1...2)
            let y = MutableSlice(x)
            Random.dropout(y.readOnly, p: p, seed: 42, stream: 3, into: y)
            let checked =
              length < 2000 ? Array(0..<length) : [0, 1, length / 2, length / 2 + 1, length - 1]
            for i in checked {
              let keeps = UInt64(Self.bits(i, seed: 42, stream: 3)) >= threshold
              let expected = keeps ? x[i] * (1 / (1 - p)) : 0
              #expect(y[i] == expected, "\(level), \(length), \(i)")
            }
          }
        }
      }
      let y = MutableSlice<Float>(repeating: 1, count: 65)
      Random.dropout(y.readOnly, p: 1, seed: 1, stream: 1, into: y)
      #expect(y.array.allSatisfy { $0 == 0 })
    }

    @Test func streamsAndSeedsDiffer() {
      func draw(_ seed: UInt64, _ stream: UInt64) -> [Float] {
        let y = MutableSlice<Float>(count: 256)
        Random.uniform(seed: seed, stream: stream, into: y)
        return y.array
      }
      let draws = [draw(1, 1), draw(1, 2), draw(2, 1), draw(1 << 32, 1), draw(1, 1 << 32)]
      for i in draws.indices {
        for j in draws.indices where i < j { #expect(draws[i] != draws[j]) }
      }
    }
  }
}
