import Testing

@testable import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Expected values: the definitions in double precision with libm.
extension Kernels {
  @Suite struct VectorMathTests {
    typealias Unary = (Slice<Float>, MutableSlice<Float>) -> Void

    static func normal(_ x: Double) -> Double { 0.5 * erfc(-x / 2.0.squareRoot()) }
    static func density(_ x: Double) -> Double {
      Glibc.exp(-0.5 * x * x) / (2 * Double.pi).squareRoot()
    }
    static func sigmoid(_ x: Double) -> Double { 1 / (1 + Glibc.exp(-x)) }
    static func geluTanh(_ x: Double) -> Double {
      0.5 * x * (1 + Glibc.tanh((2 / Double.pi).squareRoot() * (x + 0.044715 * x * x * x)))
    }

    /// Checks y = f(x) over a range, out of place and in place, at every length.
    func check(
      _ kernel: Unary, _ f: (Double) -> Double, in range: ClosedRange<Float>, tolerance: Double,
      floor: Double = 1e-30, _ location: SourceLocation = #_sourceLocation
    ) {
      atEveryLevel { level in
        for length in lengths {
          let x = numbers(length, seed: UInt64(length), in: range)
          let expected = doubles(x).map(f)
          let y = MutableSlice<Float>(repeating: .nan, count: length)
          kernel(Slice(x), y)
          let error = relativeError(y.array, expected, floor: floor)
          #expect(error <= tolerance, "\(level), \(length)", sourceLocation: location)
          let inPlace = MutableSlice(x)
          kernel(inPlace.readOnly, inPlace)
          #expect(inPlace.array == y.array, "\(level), \(length)", sourceLocation: location)
        }
      }
    }

    @Test func functions() {
      check(VectorMath.exp, Glibc.exp, in: -87...88.5, tolerance: 2e-7)
      check(VectorMath.exp, Glibc.exp, in: -1...1, tolerance: 1.5e-7)
      check(VectorMath.tanh, Glibc.tanh, in: -12...12, tolerance: 3e-7)
      check(VectorMath.tanh, Glibc.tanh, in: -0.7...0.7, tolerance: 3e-7)
      check(VectorMath.sigmoid, Self.sigmoid, in: -80...80, tolerance: 3e-7)
      check(VectorMath.relu, { max($0, 0) }, in: -2...2, tolerance: 0)
      check(VectorMath.silu, { $0 * Self.sigmoid($0) }, in: -30...30, tolerance: 4e-7)
      // Exact GELU: relative where it is not tiny, and 1e-7 absolute everywhere.
      check(VectorMath.gelu, { $0 * Self.normal($0) }, in: -3...8, tolerance: 1e-6)
      check(VectorMath.gelu, { $0 * Self.normal($0) }, in: -20...20, tolerance: 4e-7, floor: 0.25)
      check(VectorMath.geluTanh, Self.geluTanh, in: -20...20, tolerance: 4e-7, floor: 0.25)
    }

    @Test func functionsOfSpecialNumbers() {
      let inputs: [Float] = [
        0, -0.0, .infinity, -.infinity, .nan, 89, -110, 1e-30, -1e-30, 100, -100,
      ]
      atEveryLevel { level in
        let y = MutableSlice<Float>(count: inputs.count)
        VectorMath.exp(Slice(inputs), into: y)
        #expect(y[0] == 1 && y[1] == 1 && y[2] == .infinity && y[3] == 0 && y[4].isNaN)
        #expect(y[5] == .infinity && y[6] == 0 && y[7] == 1, "\(level)")
        VectorMath.tanh(Slice(inputs), into: y)
        #expect(y[0] == 0 && y[2] == 1 && y[3] == -1 && y[4].isNaN && y[7] == 1e-30, "\(level)")
        #expect(y[8] == -1e-30 && y[9] == 1 && y[10] == -1, "\(level)")
        VectorMath.gelu(Slice(inputs), into: y)
        #expect(
          y[0] == 0 && y[2] == .infinity && y[4].isNaN && y[9] == 100 && y[10] == 0, "\(level)")
        VectorMath.silu(Slice(inputs), into: y)
        #expect(y[0] == 0 && y[2] == .infinity && y[4].isNaN && y[9] == 100, "\(level)")
      }
    }

    /// The gradients are checked against the analytic derivative in double precision.
    @Test func gradients() {
      typealias Binary = (Slice<Float>, Slice<Float>, MutableSlice<Float>) -> Void
      let cases: [(Binary, (Double) -> Double, Bool)] = [
        (VectorMath.geluBackward, { Self.normal($0) + $0 * Self.density($0) }, false),
        (
          VectorMath.geluTanhBackward,
          {
            let c = (2 / Double.pi).squareRoot()
            let t = Glibc.tanh(c * ($0 + 0.044715 * $0 * $0 * $0))
            return 0.5 * (1 + t) + 0.5 * $0 * (1 - t * t) * c * (1 + 3 * 0.044715 * $0 * $0)
          }, false
        ),
        (
          VectorMath.siluBackward,
          {
            let s = Self.sigmoid($0)
            return s * (1 + $0 * (1 - s))
          }, false
        ),
        (VectorMath.reluBackward, { $0 > 0 ? 1 : 0 }, false),
        (VectorMath.tanhBackward, { 1 - $0 * $0 }, true),
        (VectorMath.sigmoidBackward, { $0 * (1 - $0) }, true),
      ]
      atEveryLevel { level in
        for (index, (kernel, slope, fromOutput)) in cases.enumerated() {
          for length in lengths {
            let x = numbers(length, seed: 3, in: fromOutput ? 0...1 : -6...6)
            let dy = numbers(length, seed: 4)
            let dx = MutableSlice<Float>(repeating: .nan, count: length)
            kernel(Slice(x), Slice(dy), dx)
            let expected = zip(doubles(x), doubles(dy)).map { slope($0) * $1 }
            let error = errorOfLargest(dx.array, expected, floor: 1)
            #expect(error < 1e-6, "\(level), \(index), \(length)")
            let inPlace = MutableSlice(dy)
            kernel(Slice(x), inPlace.readOnly, inPlace)
            #expect(inPlace.array == dx.array)
          }
        }
      }
    }

    @Test func swiglu() {
      atEveryLevel { level in
        for length in lengths {
          let (g, u, d) = (
            numbers(length, seed: 1, in: -5...5), numbers(length, seed: 2), numbers(length, seed: 3)
          )
          let y = MutableSlice<Float>(count: length)
          VectorMath.swiglu(gate: Slice(g), up: Slice(u), into: y)
          let silu = doubles(g).map { $0 * Self.sigmoid($0) }
          #expect(errorOfLargest(y.array, zip(silu, doubles(u)).map(*)) < 5e-7, "\(level)")
          let (dg, du) = (MutableSlice(g), MutableSlice(u))
          VectorMath.swigluBackward(
            gate: dg.readOnly, up: du.readOnly, Slice(d), gateGradient: dg, upGradient: du)
          let slope = doubles(g).map { Self.sigmoid($0) * (1 + $0 * (1 - Self.sigmoid($0))) }
          let expected = (0..<length).map { slope[$0] * Double(u[$0]) * Double(d[$0]) }
          #expect(errorOfLargest(dg.array, expected) < 1e-6, "\(level)")
          #expect(errorOfLargest(du.array, zip(silu, doubles(d)).map(*)) < 5e-7, "\(level)")
        }
      }
    }

    @Test func arithmetic() {
      atEveryLevel { level in
        for length in lengths {
          let (x, y) = (numbers(length, seed: 5), numbers(length, seed: 6))
          let z = MutableSlice<Float>(count: length)
          func expect(_ f: (Double, Double) -> Double) {
            let expected = zip(doubles(x), doubles(y)).map(f)
            #expect(errorOfLargest(z.array, expected) < 2e-7, "\(level), \(length)")
          }
          VectorMath.add(Slice(x), Slice(y), into: z)
          expect(+)
          VectorMath.subtract(Slice(x), Slice(y), into: z)
          expect(-)
          VectorMath.multiply(Slice(x), Slice(y), into: z)
          expect(*)
          VectorMath.scale(2.5, Slice(x), into: z)
          expect { x, _ in 2.5 * x }
          VectorMath.axpby(2, Slice(x), -3, Slice(y), into: z)
          expect { 2 * $0 - 3 * $1 }
          z.copy(from: y)
          VectorMath.axpy(0.5, Slice(x), into: z)
          expect { 0.5 * $0 + $1 }
          z.copy(from: Slice(y))
          VectorMath.multiplyAdd(Slice(x), Slice(x), into: z)
          expect { $0 * $0 + $1 }
          z.fill(7)
          expect { _, _ in 7 }
        }
      }
    }

    @Test func reductions() {
      atEveryLevel { level in
        for length in lengths + [100_000] {
          let (x, y) = (numbers(length, seed: 7), numbers(length, seed: 8))
          let (dx, dy) = (doubles(x), doubles(y))
          #expect(abs(VectorMath.sum(Slice(x)) - dx.reduce(0, +)) < 1e-9, "\(level)")
          let dot = zip(dx, dy).reduce(0) { $0 + $1.0 * $1.1 }
          #expect(abs(VectorMath.dot(Slice(x), Slice(y)) - dot) < 1e-9, "\(level)")
          let squares = dx.reduce(0) { $0 + $1 * $1 }
          #expect(abs(VectorMath.sumOfSquares(Slice(x)) - squares) <= 1e-11 * squares, "\(level)")
          #expect(VectorMath.maximumMagnitude(Slice(x)) == x.reduce(0) { max($0, abs($1)) })
          #expect(VectorMath.allFinite(Slice(x)))
          guard length > 0 else { continue }
          for bad in [Float.nan, .infinity, -.infinity] {
            for position in Set([0, length / 2, length - 1]) {
              var z = x
              z[position] = bad
              #expect(!VectorMath.allFinite(Slice(z)), "\(level), \(bad) at \(position)")
              let top = VectorMath.maximumMagnitude(Slice(z))
              #expect(bad.isNaN ? top.isNaN : top == .infinity, "\(level)")
            }
          }
        }
      }
    }

    /// Reductions add fixed blocks in order, whatever the thread count.
    @Test func reductionsDoNotDependOnThreads() {
      let x = Slice(numbers(300_001, seed: 9))
      let one = withThreads(1) { VectorMath.sumOfSquares(x) }
      let three = withThreads(3) { VectorMath.sumOfSquares(x) }
      #expect(one == three)
    }

    /// Expected values: torch.optim.AdamW's documented update, step by step in double precision.
    @Test func adamW() {
      atEveryLevel { level in
        for length in [1, 15, 16, 33, 20_000] {
          let start = numbers(length, seed: 1)
          var (p, m, v) = (
            doubles(start), [Double](repeating: 0, count: length),
            [Double](repeating: 0, count: length)
          )
          let parameter = MutableSlice(start)
          let (first, second) = (
            MutableSlice<Float>(repeating: 0, count: length),
            MutableSlice<Float>(repeating: 0, count: length)
          )
          for step in 1...3 {
            let g = numbers(length, seed: UInt64(step) + 10)
            Optimizers.adamW(
              parameter: parameter, gradient: Slice(g), firstMoment: first, secondMoment: second,
              step: step, learningRate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8,
              weightDecay: 0.1, gradientScale: 0.5)
            for i in 0..<length {
              let gi = 0.5 * Double(g[i])
              p[i] *= 1 - 1e-2 * 0.1
              m[i] = 0.9 * m[i] + 0.1 * gi
              v[i] = 0.999 * v[i] + 0.001 * gi * gi
              let root = v[i].squareRoot() / (1 - pow(0.999, Double(step))).squareRoot()
              p[i] -= 1e-2 / (1 - pow(0.9, Double(step))) * m[i] / (root + 1e-8)
            }
          }
          #expect(errorOfLargest(parameter.array, p) < 5e-7, "\(level), \(length)")
          #expect(errorOfLargest(first.array, m) < 5e-7, "\(level), \(length)")
          #expect(errorOfLargest(second.array, v) < 5e-7, "\(level), \(length)")
        }
      }
    }
  }
}
