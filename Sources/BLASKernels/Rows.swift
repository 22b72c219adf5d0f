import CKernels
import PEFTSupport

/// Kernels over the rows and columns of row-major f32 matrices `[rows, columns]`.
///
/// `rows` and `columns` come first; a slice must hold exactly as many elements as they say. Unless a kernel
/// says otherwise, a destination of the same shape as a source may be the same memory.
public enum Rows {
  /// Every row of y becomes `bias`, as a preparation for a GEMM with beta = 1; `bias` must not overlap y.
  public static func fill(
    rows: Int, columns: Int, with bias: Slice<Float>, into y: MutableSlice<Float>
  ) {
    check(rows, columns, y.count, row: bias.count)
    split(rows, columns) { r in
      pk_bias_rows(bias.pointer, y.pointer + r.lowerBound * columns, columns, r.count, columns)
    }
  }

  /// y = x + bias in every row.
  public static func addBias(
    rows: Int, columns: Int, _ x: Slice<Float>, _ bias: Slice<Float>, into y: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, y.count, row: bias.count)
    split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_add_bias(x.pointer + at, bias.pointer, y.pointer + at, r.count, columns)
    }
  }

  /// y[i, j] = x[i, j] factors[j].
  public static func scaleColumns(
    rows: Int, columns: Int, _ x: Slice<Float>, by factors: Slice<Float>,
    into y: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, y.count, row: factors.count)
    split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_scale_columns(x.pointer + at, factors.pointer, y.pointer + at, r.count, columns)
    }
  }

  /// y[i, j] = x[i, j] factors[i].
  public static func scaleRows(
    rows: Int, columns: Int, _ x: Slice<Float>, by factors: Slice<Float>,
    into y: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, y.count, column: factors.count)
    split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_scale_rows(
        x.pointer + at, factors.pointer + r.lowerBound, y.pointer + at, r.count, columns)
    }
  }

  /// y[j] = Σᵢ x[i, j]; with double-precision accumulation. y must not overlap x.
  public static func columnSums(
    rows: Int, columns: Int, _ x: Slice<Float>, into y: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, row: y.count)
    splitColumns(rows, columns) { c in
      pk_column_sums(x.pointer + c.lowerBound, columns, rows, c.count, y.pointer + c.lowerBound)
    }
  }

  /// z[j] = Σᵢ x[i, j] y[i, j]; with double-precision accumulation. z must not overlap x or y.
  public static func columnDots(
    rows: Int, columns: Int, _ x: Slice<Float>, _ y: Slice<Float>, into z: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, y.count, row: z.count)
    splitColumns(rows, columns) { c in
      let at = c.lowerBound
      pk_column_dots(x.pointer + at, y.pointer + at, columns, rows, c.count, z.pointer + at)
    }
  }

  /// y[i, j] = bias[j] + y[i, j] factors[j], in place; without a bias where it is nil.
  public static func scaleColumns(
    rows: Int, columns: Int, of y: MutableSlice<Float>, by factors: Slice<Float>,
    adding bias: Slice<Float>?
  ) {
    check(rows, columns, y.count, row: factors.count)
    check(rows, columns, row: bias?.count)
    split(rows, columns) { r in
      pk_scale_columns_bias(
        factors.pointer, bias?.pointer, y.pointer + r.lowerBound * columns, columns, r.count,
        columns)
    }
  }

  /// z[j] = Σᵢ dy[i, j] (y[i, j] − bias[j]), and dy[i, j] = dy[i, j] factors[j] after that: what the
  /// gradient of a product with scaled columns needs, in one pass. Double-precision accumulation.
  ///
  /// - Parameters:
  ///   - rows: The number of rows.
  ///   - columns: Their width.
  ///   - dy: `[rows, columns]`, changed in place.
  ///   - y: `[rows, columns]`, not the memory of `dy`.
  ///   - bias: `[columns]`, or nil for zeros.
  ///   - factors: `[columns]`.
  ///   - z: Receives `[columns]`.
  public static func scaledColumnDots(
    rows: Int, columns: Int, _ dy: MutableSlice<Float>, _ y: Slice<Float>, bias: Slice<Float>?,
    by factors: Slice<Float>, into z: MutableSlice<Float>
  ) {
    check(rows, columns, dy.count, y.count, row: factors.count)
    check(rows, columns, row: bias?.count)
    check(rows, columns, row: z.count)
    // Blocks of 64 columns, which the kernel takes at once.
    Parallel.split(
      columns, grain: max(64, Parallel.lightGrain / max(rows, 1)), multiple: 64
    ) { c in
      let at = c.lowerBound
      pk_scaled_column_dots(
        dy.pointer + at, y.pointer + at, bias.map { $0.pointer + at }, factors.pointer + at,
        columns, rows, c.count, z.pointer + at)
    }
  }

  /// z[i] = Σⱼ x[i, j] y[i, j]; with double-precision accumulation. z must not overlap x or y.
  public static func rowDots(
    rows: Int, columns: Int, _ x: Slice<Float>, _ y: Slice<Float>, into z: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, y.count, column: z.count)
    split(rows, columns) { r in
      let at = r.lowerBound * columns
      pk_row_dots(x.pointer + at, y.pointer + at, r.count, columns, z.pointer + r.lowerBound)
    }
  }

  /// y[i] = Σⱼ x[i, j]²; with double-precision accumulation. y must not overlap x.
  public static func squaredNorms(
    rows: Int, columns: Int, _ x: Slice<Float>, into y: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, column: y.count)
    split(rows, columns) { r in
      pk_row_squares(
        x.pointer + r.lowerBound * columns, r.count, columns, y.pointer + r.lowerBound)
    }
  }

  /// y[i] = Σⱼ x[i, j]² of a bf16 or f16 matrix; with double-precision accumulation.
  public static func squaredNorms(
    rows: Int, columns: Int, _ x: Slice<UInt16>, format: HalfFormat, into y: MutableSlice<Float>
  ) {
    check(rows, columns, x.count, column: y.count)
    split(rows, columns) { r in
      let (from, to) = (x.pointer + r.lowerBound * columns, y.pointer + r.lowerBound)
      switch format {
      case .bfloat16: pk_row_squares_bf16(from, r.count, columns, to)
      case .float16: pk_row_squares_f16(from, r.count, columns, to)
      }
    }
  }

  /// y `[columns, rows]` = xᵀ. y must not overlap x.
  ///
  /// - Parameters:
  ///   - rows: Rows of x.
  ///   - columns: Columns of x.
  ///   - x: `[rows, columns]`.
  ///   - ldx: x's row stride; `columns` unless given.
  ///   - y: `[columns, rows]`.
  ///   - ldy: y's row stride; `rows` unless given.
  public static func transpose(
    rows: Int, columns: Int, _ x: Slice<Float>, ldx: Int? = nil, into y: MutableSlice<Float>,
    ldy: Int? = nil
  ) {
    let (ldx, ldy) = (ldx ?? columns, ldy ?? rows)
    guard rows > 0, columns > 0 else { return }
    precondition(
      ldx >= columns && ldy >= rows && x.count >= (rows - 1) * ldx + columns
        && y.count >= (columns - 1) * ldy + rows,
      "[\(rows), \(columns)] in \(x.count) elements, its transpose in \(y.count)")
    Parallel.split(
      rows, grain: max(16, Parallel.lightGrain / max(columns, 1)), multiple: 16
    ) { r in
      pk_transpose(
        x.pointer + r.lowerBound * ldx, ldx, y.pointer + r.lowerBound, ldy, r.count, columns)
    }
  }

  /// The column of each row's largest element, the first of equals.
  public static func argmax(
    rows: Int, columns: Int, _ x: Slice<Float>, into y: MutableSlice<Int32>
  ) {
    check(rows, columns, x.count, column: y.count)
    split(rows, columns) { r in
      pk_argmax(x.pointer + r.lowerBound * columns, r.count, columns, y.pointer + r.lowerBound)
    }
  }

  /// Rotates pairs of coordinates by an angle for each position: rotary position embedding, rotate-half form.
  ///
  /// For each head of width d, with c and s of the token: y[i] = x[i] c[i] − x[i + d/2] s[i] and
  /// y[i + d/2] = x[i + d/2] c[i] + x[i] s[i].
  ///
  /// - Parameters:
  ///   - tokens: The number of tokens.
  ///   - heads: The number of heads.
  ///   - headDim: A head's width d, even.
  ///   - x: `[tokens, heads, headDim]`.
  ///   - cosine: `[tokens, headDim / 2]`.
  ///   - sine: `[tokens, headDim / 2]`.
  ///   - inverse: Rotates back, which is also the gradient.
  ///   - y: Like `x`; may be the same memory.
  public static func rotary(
    tokens: Int, heads: Int, headDim: Int, _ x: Slice<Float>, cosine: Slice<Float>,
    sine: Slice<Float>, inverse: Bool = false, into y: MutableSlice<Float>
  ) {
    let half = headDim / 2
    precondition(headDim % 2 == 0, "odd head width")
    check(tokens, heads * headDim, x.count, y.count)
    check(tokens, half, cosine.count, sine.count)
    split(tokens, heads * headDim) { r in
      let (at, table) = (r.lowerBound * heads * headDim, r.lowerBound * half)
      pk_rotary(
        x.pointer + at, cosine.pointer + table, sine.pointer + table, inverse ? -1 : 1,
        y.pointer + at, r.count, heads, headDim)
    }
  }

  static func split(_ rows: Int, _ columns: Int, heavy: Bool = false, _ body: (Range<Int>) -> Void)
  {
    let grain = heavy ? Parallel.heavyGrain : Parallel.lightGrain
    Parallel.split(rows, grain: max(1, grain / max(columns, 1)), body)
  }

  static func splitColumns(_ rows: Int, _ columns: Int, _ body: (Range<Int>) -> Void) {
    Parallel.split(
      columns, grain: max(16, Parallel.lightGrain / max(rows, 1)), multiple: 16, body)
  }

  static func check(
    _ rows: Int, _ columns: Int, _ counts: Int..., row: Int? = nil, column: Int? = nil
  ) {
    for count in counts { precondition(count == rows * columns, "a matrix has another size") }
    if let row { precondition(row == columns, "a vector is not one row long") }
    if let column { precondition(column == rows, "a vector is not one column long") }
  }
}
