import CKernels

/// A 16-bit floating-point format.
public enum HalfFormat: Sendable, CaseIterable {
  /// bfloat16: f32 without the lower 16 bits.
  case bfloat16
  /// IEEE 754 binary16.
  case float16
}

/// Conversions between number formats. Sources and destinations must not overlap.
public enum Conversion {
  /// f32 to bf16 or f16, to nearest even; NaN stays NaN, f16 overflows to infinity.
  public static func narrow(
    _ x: Slice<Float>, to format: HalfFormat, into y: MutableSlice<UInt16>
  ) {
    precondition(x.count == y.count, "lengths differ")
    Parallel.split(x.count, grain: Parallel.lightGrain, multiple: 32) { range in
      let (from, to) = (x.pointer + range.lowerBound, y.pointer + range.lowerBound)
      switch format {
      case .bfloat16: pk_f32_to_bf16(from, to, range.count)
      case .float16: pk_f32_to_f16(from, to, range.count)
      }
    }
  }

  /// bf16 or f16 to f32, exact.
  public static func widen(
    _ x: Slice<UInt16>, from format: HalfFormat, into y: MutableSlice<Float>
  ) {
    precondition(x.count == y.count, "lengths differ")
    Parallel.split(x.count, grain: Parallel.lightGrain, multiple: 32) { range in
      widen(x.pointer + range.lowerBound, format, y.pointer + range.lowerBound, range.count)
    }
  }

  /// i64 to i32; nil when a value does not fit.
  public static func narrow(_ x: Slice<Int64>) -> MutableSlice<Int32>? {
    let y = MutableSlice<Int32>(count: x.count)
    let (from, to) = (x.pointer, y.pointer)
    for i in 0..<x.count {
      // The mapped source may lie at any address.
      let value = UnsafeRawPointer(from + i).loadUnaligned(as: Int64.self)
      guard let narrow = Int32(exactly: value) else { return nil }
      to[i] = narrow
    }
    return y
  }

  static func widen(
    _ x: UnsafePointer<UInt16>, _ format: HalfFormat, _ y: UnsafeMutablePointer<Float>,
    _ count: Int
  ) {
    switch format {
    case .bfloat16: pk_bf16_to_f32(x, y, count)
    case .float16: pk_f16_to_f32(x, y, count)
    }
  }
}
