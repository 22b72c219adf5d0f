import Testing

@testable import BLASKernels

/// Expected values: the definitions and their analytic gradients, in double precision.
extension Kernels {
  @Suite struct NormsTests {
    /// Normalises rows and takes gradients in double precision.
    struct Reference {
      var y: [Double] = []
      var dx: [Double] = []
      var dWeight: [Double]
      var dBias: [Double]

      init(
        _ rows: Int, _ n: Int, _ x: [Double], _ w: [Double], _ b: [Double], _ dy: [Double],
        centered: Bool, epsilon: Double
      ) {
        dWeight = Array(repeating: 0, count: n)
        dBias = dWeight
        for i in 0..<rows {
          let row = Array(x[i * n..<(i + 1) * n])
          let mean = centered ? row.reduce(0, +) / Double(n) : 0
          let spread = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(n)
          let rstd = 1 / (spread + epsilon).squareRoot()
          let hat = row.map { ($0 - mean) * rstd }
          let g = (0..<n).map { dy[i * n + $0] * w[$0] }
          let mg = centered ? g.reduce(0, +) / Double(n) : 0
          let mgx = (0..<n).reduce(0) { $0 + g[$1] * hat[$1] } / Double(n)
          for j in 0..<n {
            y.append(hat[j] * w[j] + b[j])
            dx.append(rstd * (g[j] - mg - hat[j] * mgx))
            dWeight[j] += dy[i * n + j] * hat[j]
            dBias[j] += dy[i * n + j]
          }
        }
      }
    }

    @Test(arguments: [true, false]) func forwardAndGradients(centered: Bool) {
      let epsilon: Float = 1e-5
      atEveryLevel { level in
        for (rows, n) in shapes where n > 1 {
          let comment = Comment("\(level), \(rows)×\(n)")
          let (a, residual) = (numbers(rows * n, seed: 1), numbers(rows * n, seed: 2))
          let shifted = residual.map { $0 + 0.5 }
          let (w, b) = (numbers(n, seed: 3), numbers(n, seed: 4))
          let (dy, addend) = (numbers(rows * n, seed: 5), numbers(rows * n, seed: 6))
          let expected = Reference(
            rows, n, zip(a, shifted).map { Double($0 + $1) }, doubles(w),
            centered ? doubles(b) : doubles(b).map { _ in 0 }, doubles(dy), centered: centered,
            epsilon: Double(epsilon))
          let (mean, rstd) = (MutableSlice<Float>(count: rows), MutableSlice<Float>(count: rows))
          // The sum goes over the residual, the result over the input.
          let (sum, y) = (MutableSlice(shifted), MutableSlice(a))
          let dx = MutableSlice(dy)
          let (dw, db) = (MutableSlice<Float>(count: n), MutableSlice<Float>(count: n))
          if centered {
            Norms.layerNorm(
              rows: rows, columns: n, y.readOnly, residual: sum.readOnly, sum: sum,
              weight: Slice(w), bias: Slice(b), epsilon: epsilon, mean: mean, rstd: rstd, into: y)
            Norms.layerNormBackward(
              rows: rows, columns: n, sum.readOnly, weight: Slice(w), mean: mean.readOnly,
              rstd: rstd.readOnly, dx.readOnly, addend: Slice(addend), weightGradient: dw,
              biasGradient: db, into: dx)
            #expect(
              zip(db.array, expected.dBias).allSatisfy { abs(Double($0) - $1) < 1e-5 }, comment)
          } else {
            Norms.rmsNorm(
              rows: rows, columns: n, y.readOnly, residual: sum.readOnly, sum: sum,
              weight: Slice(w), epsilon: epsilon, rstd: rstd, into: y)
            Norms.rmsNormBackward(
              rows: rows, columns: n, sum.readOnly, weight: Slice(w), rstd: rstd.readOnly,
              dx.readOnly, addend: Slice(addend), weightGradient: dw, into: dx)
          }
          #expect(sum.array == zip(a, shifted).map { $0 + $1 }, comment)
          #expect(errorOfLargest(y.array, expected.y) < 2e-6, comment)
          let total = zip(expected.dx, addend).map { $0 + Double($1) }
          #expect(errorOfLargest(dx.array, total) < 5e-6, comment)
          #expect(errorOfLargest(dw.array, expected.dWeight) < 3e-6, comment)
        }
      }
    }

    @Test func withoutWeights() {
      atEveryLevel { level in
        let (rows, n) = (6, 37)
        let (x, dy) = (numbers(rows * n, seed: 1), numbers(rows * n, seed: 2))
        let ones = [Double](repeating: 1, count: n)
        let zeros = [Double](repeating: 0, count: n)
        for centered in [true, false] {
          let expected = Reference(
            rows, n, doubles(x), ones, zeros, doubles(dy), centered: centered, epsilon: 1e-6)
          let (mean, rstd) = (MutableSlice<Float>(count: rows), MutableSlice<Float>(count: rows))
          let (y, dx) = (MutableSlice<Float>(count: rows * n), MutableSlice<Float>(count: rows * n))
          if centered {
            Norms.layerNorm(
              rows: rows, columns: n, Slice(x), weight: nil, bias: nil, epsilon: 1e-6, mean: mean,
              rstd: rstd, into: y)
            Norms.layerNormBackward(
              rows: rows, columns: n, Slice(x), weight: nil, mean: mean.readOnly,
              rstd: rstd.readOnly, Slice(dy), into: dx)
          } else {
            Norms.rmsNorm(
              rows: rows, columns: n, Slice(x), weight: nil, epsilon: 1e-6, rstd: rstd, into: y)
            Norms.rmsNormBackward(
              rows: rows, columns: n, Slice(x), weight: nil, rstd: rstd.readOnly, Slice(dy),
              into: dx)
          }
          #expect(errorOfLargest(y.array, expected.y) < 2e-6, "\(level)")
          #expect(errorOfLargest(dx.array, expected.dx) < 5e-6, "\(level)")
        }
      }
    }
  }
}
