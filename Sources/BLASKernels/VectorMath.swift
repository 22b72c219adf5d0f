import CKernels

/// Elementwise functions and reductions on f32 slices of equal length.
///
/// A destination may be the same memory as a source (exactly, not shifted), so everything here works in place.
/// Functions are accurate to about 3e-7 relative against double precision; sums accumulate in double precision.
public enum VectorMath {
  // MARK: Functions of one argument

  /// y = eˣ; 0 below −104, infinite above 88.73.
  public static func exp(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.heavyGrain, pk_exp)
  }

  /// y = tanh x.
  public static func tanh(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.heavyGrain, pk_tanh)
  }

  /// y = 1 / (1 + e⁻ˣ).
  public static func sigmoid(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.heavyGrain, pk_sigmoid)
  }

  /// y = max(x, 0).
  public static func relu(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.lightGrain, pk_relu)
  }

  /// y = x Φ(x), the exact GELU (with erf).
  public static func gelu(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.heavyGrain, pk_gelu)
  }

  /// GELU's tanh approximation: y = x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
  public static func geluTanh(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.heavyGrain, pk_gelu_tanh)
  }

  /// y = x / (1 + e⁻ˣ).
  public static func silu(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.heavyGrain, pk_silu)
  }

  /// y = silu(gate) ∘ up.
  public static func swiglu(gate: Slice<Float>, up: Slice<Float>, into y: MutableSlice<Float>) {
    map(gate, up, y, grain: Parallel.heavyGrain, pk_swiglu)
  }

  // MARK: Their gradients

  /// dX of ``tanh(_:into:)`` from its output y and dY.
  public static func tanhBackward(
    output y: Slice<Float>, _ dy: Slice<Float>, into dx: MutableSlice<Float>
  ) {
    map(y, dy, dx, grain: Parallel.lightGrain, pk_tanh_backward)
  }

  /// dX of ``sigmoid(_:into:)`` from its output y and dY.
  public static func sigmoidBackward(
    output y: Slice<Float>, _ dy: Slice<Float>, into dx: MutableSlice<Float>
  ) {
    map(y, dy, dx, grain: Parallel.lightGrain, pk_sigmoid_backward)
  }

  /// dX of ``relu(_:into:)`` from its input (or output) x and dY.
  public static func reluBackward(
    input x: Slice<Float>, _ dy: Slice<Float>, into dx: MutableSlice<Float>
  ) {
    map(x, dy, dx, grain: Parallel.lightGrain, pk_relu_backward)
  }

  /// dX of ``gelu(_:into:)`` from its input x and dY.
  public static func geluBackward(
    input x: Slice<Float>, _ dy: Slice<Float>, into dx: MutableSlice<Float>
  ) {
    map(x, dy, dx, grain: Parallel.heavyGrain, pk_gelu_backward)
  }

  /// dX of ``geluTanh(_:into:)`` from its input x and dY.
  public static func geluTanhBackward(
    input x: Slice<Float>, _ dy: Slice<Float>, into dx: MutableSlice<Float>
  ) {
    map(x, dy, dx, grain: Parallel.heavyGrain, pk_gelu_tanh_backward)
  }

  /// dX of ``silu(_:into:)`` from its input x and dY.
  public static func siluBackward(
    input x: Slice<Float>, _ dy: Slice<Float>, into dx: MutableSlice<Float>
  ) {
    map(x, dy, dx, grain: Parallel.heavyGrain, pk_silu_backward)
  }

  /// dGate and dUp of ``swiglu(gate:up:into:)`` from its inputs and dY; each may be any of the sources.
  public static func swigluBackward(
    gate: Slice<Float>, up: Slice<Float>, _ dy: Slice<Float>,
    gateGradient: MutableSlice<Float>, upGradient: MutableSlice<Float>
  ) {
    let count = dy.count
    precondition(
      gate.count == count && up.count == count && gateGradient.count == count
        && upGradient.count == count, "lengths differ")
    Parallel.split(count, grain: Parallel.heavyGrain, multiple: 16) { range in
      let i = range.lowerBound
      pk_swiglu_backward(
        gate.pointer + i, up.pointer + i, dy.pointer + i, gateGradient.pointer + i,
        upGradient.pointer + i, range.count)
    }
  }

  // MARK: Arithmetic

  /// y = a x.
  public static func scale(_ a: Float, _ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.lightGrain) { pk_scale(a, $0, $1, $2) }
  }

  /// y += a x.
  public static func axpy(_ a: Float, _ x: Slice<Float>, into y: MutableSlice<Float>) {
    map(x, y, grain: Parallel.lightGrain) { pk_axpy(a, $0, $1, $2) }
  }

  /// z = a x + b y.
  public static func axpby(
    _ a: Float, _ x: Slice<Float>, _ b: Float, _ y: Slice<Float>, into z: MutableSlice<Float>
  ) {
    map(x, y, z, grain: Parallel.lightGrain) { pk_axpby(a, $0, b, $1, $2, $3) }
  }

  /// z = x + y.
  public static func add(_ x: Slice<Float>, _ y: Slice<Float>, into z: MutableSlice<Float>) {
    map(x, y, z, grain: Parallel.lightGrain, pk_add)
  }

  /// z = x − y.
  public static func subtract(_ x: Slice<Float>, _ y: Slice<Float>, into z: MutableSlice<Float>) {
    map(x, y, z, grain: Parallel.lightGrain, pk_subtract)
  }

  /// z = x ∘ y.
  public static func multiply(_ x: Slice<Float>, _ y: Slice<Float>, into z: MutableSlice<Float>) {
    map(x, y, z, grain: Parallel.lightGrain, pk_multiply)
  }

  /// z += x ∘ y.
  public static func multiplyAdd(_ x: Slice<Float>, _ y: Slice<Float>, into z: MutableSlice<Float>)
  {
    map(x, y, z, grain: Parallel.lightGrain, pk_multiply_add)
  }

  // MARK: Reductions

  /// Σ x.
  public static func sum(_ x: Slice<Float>) -> Double {
    reduce(x.count) { pk_sum(x.pointer + $0.lowerBound, $0.count) }
  }

  /// Σ x y.
  public static func dot(_ x: Slice<Float>, _ y: Slice<Float>) -> Double {
    precondition(x.count == y.count, "lengths differ")
    return reduce(x.count) {
      pk_dot(x.pointer + $0.lowerBound, y.pointer + $0.lowerBound, $0.count)
    }
  }

  /// Σ x².
  public static func sumOfSquares(_ x: Slice<Float>) -> Double {
    reduce(x.count) { pk_sum_squares(x.pointer + $0.lowerBound, $0.count) }
  }

  /// max |x|, 0 for an empty slice; NaN if any element is.
  public static func maximumMagnitude(_ x: Slice<Float>) -> Float {
    pk_max_abs(x.pointer, x.count)
  }

  /// Whether no element is infinite or NaN.
  public static func allFinite(_ x: Slice<Float>) -> Bool { pk_all_finite(x.pointer, x.count) }

  // MARK: Splitting

  static func map(
    _ x: Slice<Float>, _ y: MutableSlice<Float>, grain: Int,
    _ kernel: (UnsafePointer<Float>, UnsafeMutablePointer<Float>, Int) -> Void
  ) {
    precondition(x.count == y.count, "lengths differ")
    Parallel.split(x.count, grain: grain, multiple: 16) { range in
      kernel(x.pointer + range.lowerBound, y.pointer + range.lowerBound, range.count)
    }
  }

  static func map(
    _ x: Slice<Float>, _ y: Slice<Float>, _ z: MutableSlice<Float>, grain: Int,
    _ kernel: (
      UnsafePointer<Float>, UnsafePointer<Float>, UnsafeMutablePointer<Float>, Int
    ) -> Void
  ) {
    precondition(x.count == y.count && x.count == z.count, "lengths differ")
    Parallel.split(x.count, grain: grain, multiple: 16) { range in
      let i = range.lowerBound
      kernel(x.pointer + i, y.pointer + i, z.pointer + i, range.count)
    }
  }

  // Partial sums over fixed blocks, added in order: the same for every thread count.
  static func reduce(_ count: Int, _ kernel: (Range<Int>) -> Double) -> Double {
    let block = 1 << 15
    let blocks = (count + block - 1) / block
    guard blocks > 1 else { return kernel(0..<count) }
    return withUnsafeTemporaryAllocation(of: Double.self, capacity: blocks) { partial in
      let partial = partial.baseAddress!
      Parallel.forEach(blocks) { index in
        partial[index] = kernel(index * block..<min((index + 1) * block, count))
      }
      var total = 0.0
      for index in 0..<blocks { total += partial[index] }
      return total
    }
  }
}
