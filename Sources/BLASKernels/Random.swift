import CKernels

/// Counter-based random numbers: Philox4x32-10.
///
/// Element i of stream (seed, stream) depends on nothing else: not on the thread count, the instruction set
/// or what was drawn before.
public enum Random {
  /// Uniform numbers in [low, high).
  public static func uniform(
    seed: UInt64, stream: UInt64, low: Float = 0, high: Float = 1, into y: MutableSlice<Float>
  ) {
    let random = pk_random(seed: seed, stream: stream)
    Parallel.split(y.count, grain: Parallel.heavyGrain, multiple: 64) { r in
      pk_uniform(low, high, random, UInt64(r.lowerBound), y.pointer + r.lowerBound, r.count)
    }
  }

  /// Normal numbers with mean 0 and a standard deviation (Box and Muller's method).
  public static func normal(
    seed: UInt64, stream: UInt64, standardDeviation: Float = 1, into y: MutableSlice<Float>
  ) {
    let random = pk_random(seed: seed, stream: stream)
    Parallel.split(y.count, grain: Parallel.heavyGrain, multiple: 64) { r in
      pk_normal(
        standardDeviation, random, UInt64(r.lowerBound), y.pointer + r.lowerBound, r.count)
    }
  }

  /// Dropout: keeps an element with probability 1 − p and scales it by 1 / (1 − p), else 0.
  ///
  /// The backward is the same call on the gradient. p ≥ 1 drops everything. y may be x.
  public static func dropout(
    _ x: Slice<Float>, p: Float, seed: UInt64, stream: UInt64, into y: MutableSlice<Float>
  ) {
    precondition(x.count == y.count, "lengths differ")
    if p >= 1 { return y.fill(0) }
    let random = pk_random(seed: seed, stream: stream)
    Parallel.split(x.count, grain: Parallel.heavyGrain, multiple: 64) { r in
      let i = r.lowerBound
      pk_dropout(x.pointer + i, max(p, 0), random, UInt64(i), y.pointer + i, r.count)
    }
  }
}
