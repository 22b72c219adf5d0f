import PEFTSupport
import Testing

@testable import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Expected values: the definitions, in double precision.
extension Kernels {
  @Suite struct LossTests {
    static func softmax(_ x: ArraySlice<Float>, _ scale: Double) -> [Double] {
      let scaled = x.map { Double($0) * scale }
      let top = scaled.max() ?? 0
      let e = scaled.map { exp($0 - top) }
      let sum = e.reduce(0, +)
      return e.map { $0 / sum }
    }

    @Test func softmaxAndGradient() {
      atEveryLevel { level in
        for (rows, columns) in shapes {
          let comment = Comment("\(level), \(rows)×\(columns)")
          let x = numbers(rows * columns, seed: 1, in: -9...9)
          let dy = numbers(rows * columns, seed: 2)
          var expected: [Double] = []
          var gradient: [Double] = []
          for i in 0..<rows {
            let range = i * columns..<(i + 1) * columns
            let p = Self.softmax(x[range], 0.7)
            let mean = zip(p, dy[range]).reduce(0) { $0 + $1.0 * Double($1.1) }
            expected += p
            gradient += zip(p, dy[range]).map { 0.7 * $0 * (Double($1) - mean) }
          }
          let y = MutableSlice(x)
          Loss.softmax(rows: rows, columns: columns, y.readOnly, scale: 0.7, into: y)
          #expect(relativeError(y.array, expected) < 3e-6, comment)
          let dx = MutableSlice(dy)
          Loss.softmaxBackward(
            rows: rows, columns: columns, output: y.readOnly, dx.readOnly, scale: 0.7, into: dx)
          #expect(zip(dx.array, gradient).allSatisfy { abs(Double($0) - $1) < 5e-7 }, comment)
          let lse = MutableSlice<Float>(count: rows)
          Loss.logSumExp(rows: rows, columns: columns, Slice(x), into: lse)
          let sums = (0..<rows).map { i in
            log(x[i * columns..<(i + 1) * columns].reduce(0.0) { $0 + exp(Double($1)) })
          }
          #expect(zip(lse.array, sums).allSatisfy { abs(Double($0) - $1) < 2e-6 }, comment)
        }
      }
    }

    @Test func softmaxOfHiddenRows() {
      atEveryLevel { level in
        let y = MutableSlice<Float>([-.infinity, -.infinity, -.infinity, -.infinity, 3, -.infinity])
        Loss.softmax(rows: 2, columns: 3, y.readOnly, into: y)
        #expect(y.array == [0, 0, 0, 0, 1, 0], "\(level)")
      }
    }

    @Test func crossEntropy() throws {
      try atEveryLevel { level in
        for (rows, columns) in shapes + [(3, 40_000)] {
          let comment = Comment("\(level), \(rows)×\(columns)")
          let x = numbers(rows * columns, seed: 3, in: -12...12)
          let labels = (0..<rows).map { $0 % 4 == 1 ? -100 : Int32($0 * 31 % columns) }
          var sum = 0.0
          var gradient: [Double] = []
          for (i, label) in labels.enumerated() {
            var p = Self.softmax(x[i * columns..<(i + 1) * columns], 1)
            if label == -100 {
              gradient += p.map { _ in 0 }
            } else {
              sum -= log(p[Int(label)])
              p[Int(label)] -= 1
              gradient += p.map { 0.25 * $0 }
            }
          }
          let lse = MutableSlice<Float>(count: rows)
          let logits = MutableSlice(x)
          let (loss, valid) = try Loss.crossEntropyForward(
            rows: rows, columns: columns, logits: logits.readOnly, labels: Slice(labels),
            logSumExp: lse)
          #expect(valid == labels.filter { $0 != -100 }.count)
          #expect(abs(loss - sum) < 1e-6 * Double(rows) * 12, comment)
          Loss.crossEntropyBackward(
            rows: rows, columns: columns, logits: logits.readOnly, labels: Slice(labels),
            logSumExp: lse.readOnly, scale: 0.25, into: logits)
          #expect(
            zip(logits.array, gradient).allSatisfy { abs(Double($0) - $1) < 5e-7 }, comment)
        }
      }
    }

    @Test func crossEntropyRefusesBadLabels() {
      #expect {
        _ = try Loss.crossEntropyForward(
          rows: 2, columns: 3, logits: Slice(numbers(6)), labels: Slice([0, 3]),
          logSumExp: MutableSlice(count: 2))
      } throws: { error in
        (error as? PEFTError)?.code == .invalidData
      }
    }
  }
}
