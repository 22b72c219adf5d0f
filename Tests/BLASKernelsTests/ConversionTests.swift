import Testing

@testable import BLASKernels

/// Expected values: bit patterns by definition; f16 by Swift's own conversion.
extension Kernels {
  @Suite struct ConversionTests {
    @Test func bfloat16WidensExactly() {
      let all = (0...UInt16.max).map { $0 }
      atEveryLevel { level in
        let y = MutableSlice<Float>(count: all.count)
        Conversion.widen(Slice(all), from: .bfloat16, into: y)
        #expect(y.array.map(\.bitPattern) == all.map { UInt32($0) << 16 }, "\(level)")
      }
    }

    @Test func float16WidensExactly() {
      let all = (0...UInt16.max).map { $0 }
      atEveryLevel { level in
        let y = MutableSlice<Float>(count: all.count)
        Conversion.widen(Slice(all), from: .float16, into: y)
        let got = y.array
        #expect(
          all.allSatisfy { bits in
            let expected = Float(Float16(bitPattern: bits))
            let value = got[Int(bits)]
            return expected.isNaN ? value.isNaN : value.bitPattern == expected.bitPattern
          }, "\(level)")
      }
    }

    /// Numbers at and around every rounding boundary, subnormal results, overflow and special values.
    static let hard: [Float] = {
      var x: [Float] = [0, -0.0, .infinity, -.infinity, .nan, 65504, 65519.996, 65520, 65536, 1e38]
      x += [0x1p-14, 0x1.ffcp-15, 0x1p-24, 0x1p-25, 0x1.000002p-25, 0x1p-26, -0x1.8p-24, 3.4e38]
      var generator = Generator(3)
      for _ in 0..<20_000 {
        x.append(Float(bitPattern: UInt32(truncatingIfNeeded: generator.next())))
      }
      for i: UInt32 in 0..<4096 {
        // Halves of either format, exactly and one unit beside them.
        for low: UInt32 in [0x7FFF, 0x8000, 0x8001, 0x0FFF, 0x1000, 0x1001] {
          x.append(Float(bitPattern: 0x3F00_0000 + (i << 16) | low))
          x.append(Float(bitPattern: 0x3800_0000 &- (i << 13) | low))
        }
      }
      return x
    }()

    @Test func bfloat16RoundsToNearestEven() {
      let x = Self.hard
      atEveryLevel { level in
        let y = MutableSlice<UInt16>(count: x.count)
        Conversion.narrow(Slice(x), to: .bfloat16, into: y)
        for (value, bits) in zip(x, y.array) {
          let wide = Float(bitPattern: UInt32(bits) << 16)
          if value.isNaN {
            #expect(wide.isNaN, "\(level)")
            continue
          }
          let truncated = UInt64(value.bitPattern)
          let (low, kept) = (truncated & 0xFFFF, truncated >> 16)
          let up = low > 0x8000 || (low == 0x8000 && kept & 1 == 1)
          #expect(UInt64(bits) == kept + (up ? 1 : 0), "\(level), \(value)")
        }
      }
    }

    @Test func float16RoundsToNearestEven() {
      let x = Self.hard
      atEveryLevel { level in
        let y = MutableSlice<UInt16>(count: x.count)
        Conversion.narrow(Slice(x), to: .float16, into: y)
        for (value, bits) in zip(x, y.array) {
          let expected = Float16(value)
          let got = Float16(bitPattern: bits)
          #expect(
            expected.isNaN ? got.isNaN : got.bitPattern == expected.bitPattern,
            "\(level), \(value)")
        }
      }
    }

    @Test func oddLengths() {
      atEveryLevel { level in
        for format in HalfFormat.allCases {
          for length in lengths {
            let x = numbers(length, seed: 1).map { ($0 * 64).rounded() }
            let half = MutableSlice<UInt16>(count: length + 1)
            half[length] = 0xABCD
            Conversion.narrow(Slice(x), to: format, into: half[0..<length])
            #expect(half[length] == 0xABCD)
            let y = MutableSlice<Float>(count: length + 1)
            y[length] = 5
            Conversion.widen(half.readOnly[0..<length], from: format, into: y[0..<length])
            // Small whole numbers are exact in both formats.
            #expect(Array(y.array.dropLast()) == x && y[length] == 5, "\(level), \(length)")
          }
        }
      }
    }

    @Test func integers() {
      #expect(
        Conversion.narrow(Slice<Int64>([1, -5, 2_147_483_647]))?.array == [1, -5, 2_147_483_647])
      #expect(Conversion.narrow(Slice<Int64>([1, 2_147_483_648])) == nil)
    }
  }
}
