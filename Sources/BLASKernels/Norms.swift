import CKernels

/// Layer normalisation and root-mean-square normalisation over the rows of `[rows, columns]` matrices.
public enum Norms {
  /// y = (x − mean) rstd ∘ weight + bias, with rstd = 1 / √(variance + epsilon) of each row.
  ///
  /// - Parameters:
  ///   - rows: The number of rows.
  ///   - columns: Their width.
  ///   - x: `[rows, columns]`.
  ///   - residual: Added to x first, when given.
  ///   - sum: Receives x + residual, when given; may be x or `residual`. Only with `residual`.
  ///   - weight: `[columns]`, or nil for ones.
  ///   - bias: `[columns]`, or nil for zeros.
  ///   - epsilon: Keeps rstd finite.
  ///   - mean: Receives `[rows]`, for the backward.
  ///   - rstd: Receives `[rows]`, for the backward.
  ///   - y: May be x or `residual`, but not `sum`.
  public static func layerNorm(
    rows: Int, columns: Int, _ x: Slice<Float>, residual: Slice<Float>? = nil,
    sum: MutableSlice<Float>? = nil, weight: Slice<Float>?, bias: Slice<Float>?, epsilon: Float,
    mean: MutableSlice<Float>, rstd: MutableSlice<Float>, into y: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, x.count, y.count, residual?.count ?? x.count, sum?.count ?? x.count)
    Rows.check(rows, columns, row: weight?.count)
    Rows.check(rows, columns, row: bias?.count, column: mean.count)
    Rows.check(rows, columns, column: rstd.count)
    Rows.split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_layer_norm(
        x.pointer + at, residual.map { $0.pointer + at }, sum.map { $0.pointer + at },
        weight?.pointer, bias?.pointer, epsilon, y.pointer + at, mean.pointer + r.lowerBound,
        rstd.pointer + r.lowerBound, r.count, columns)
    }
  }

  /// The gradients of ``layerNorm(rows:columns:_:residual:sum:weight:bias:epsilon:mean:rstd:into:)``.
  ///
  /// - Parameters:
  ///   - rows: The number of rows.
  ///   - columns: Their width.
  ///   - x: The normalised input: x, or `sum` where there was a residual.
  ///   - weight: As in the forward.
  ///   - mean: What the forward wrote.
  ///   - rstd: What the forward wrote.
  ///   - dy: The gradient of y.
  ///   - addend: Added to dX when given: the gradient that reaches `sum` by another way.
  ///   - weightGradient: Receives dWeight `[columns]`, when given.
  ///   - biasGradient: Receives dBias `[columns]`, when given.
  ///   - dx: May be `dy`, x or `addend`; nil leaves it out.
  public static func layerNormBackward(
    rows: Int, columns: Int, _ x: Slice<Float>, weight: Slice<Float>?, mean: Slice<Float>,
    rstd: Slice<Float>, _ dy: Slice<Float>, addend: Slice<Float>? = nil,
    weightGradient: MutableSlice<Float>? = nil, biasGradient: MutableSlice<Float>? = nil,
    into dx: MutableSlice<Float>?
  ) {
    Rows.check(rows, columns, x.count, dy.count, dx?.count ?? x.count, addend?.count ?? x.count)
    Rows.check(rows, columns, row: weight?.count, column: mean.count)
    Rows.check(rows, columns, row: weightGradient?.count, column: rstd.count)
    Rows.check(rows, columns, row: biasGradient?.count)
    // First, because dx may overwrite what these read.
    if weightGradient != nil || biasGradient != nil {
      Rows.splitColumns(rows, columns) { c in
        let at = c.lowerBound
        pk_layer_norm_gradients(
          x.pointer + at, mean.pointer, rstd.pointer, dy.pointer + at, columns, rows, c.count,
          weightGradient.map { $0.pointer + at }, biasGradient.map { $0.pointer + at })
      }
    }
    guard let dx else { return }
    Rows.split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_layer_norm_backward(
        x.pointer + at, weight?.pointer, mean.pointer + r.lowerBound, rstd.pointer + r.lowerBound,
        dy.pointer + at, addend.map { $0.pointer + at }, dx.pointer + at, r.count, columns)
    }
  }

  /// y = x rstd ∘ weight, with rstd = 1 / √(mean(x²) + epsilon) of each row; the form of HF's Llama.
  ///
  /// Parameters are those of layer normalisation.
  public static func rmsNorm(
    rows: Int, columns: Int, _ x: Slice<Float>, residual: Slice<Float>? = nil,
    sum: MutableSlice<Float>? = nil, weight: Slice<Float>?, epsilon: Float,
    rstd: MutableSlice<Float>, into y: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, x.count, y.count, residual?.count ?? x.count, sum?.count ?? x.count)
    Rows.check(rows, columns, row: weight?.count, column: rstd.count)
    Rows.split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_rms_norm(
        x.pointer + at, residual.map { $0.pointer + at }, sum.map { $0.pointer + at },
        weight?.pointer, epsilon, y.pointer + at, rstd.pointer + r.lowerBound, r.count, columns)
    }
  }

  /// The gradients of ``rmsNorm(rows:columns:_:residual:sum:weight:epsilon:rstd:into:)``.
  ///
  /// Parameters are those of layer normalisation.
  public static func rmsNormBackward(
    rows: Int, columns: Int, _ x: Slice<Float>, weight: Slice<Float>?, rstd: Slice<Float>,
    _ dy: Slice<Float>, addend: Slice<Float>? = nil, weightGradient: MutableSlice<Float>? = nil,
    into dx: MutableSlice<Float>?
  ) {
    Rows.check(rows, columns, x.count, dy.count, dx?.count ?? x.count, addend?.count ?? x.count)
    Rows.check(rows, columns, row: weight?.count, column: rstd.count)
    Rows.check(rows, columns, row: weightGradient?.count)
    if let weightGradient {
      Rows.splitColumns(rows, columns) { c in
        let at = c.lowerBound
        pk_rms_norm_gradients(
          x.pointer + at, rstd.pointer, dy.pointer + at, columns, rows, c.count,
          weightGradient.pointer + at)
      }
    }
    guard let dx else { return }
    Rows.split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_rms_norm_backward(
        x.pointer + at, weight?.pointer, rstd.pointer + r.lowerBound, dy.pointer + at,
        addend.map { $0.pointer + at }, dx.pointer + at, r.count, columns)
    }
  }
}
