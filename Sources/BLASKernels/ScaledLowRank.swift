import CKernels

/// Products with a low-rank factor together with a scaling of columns, piece by piece, so that what one
/// step writes is still in the cache when the next one reads it: the passes over a layer's output are
/// what a weight-decomposed adapter costs more than a plain one.
public enum ScaledLowRank {
  /// y = bias + factors∘(y + scale·low·Bᵀ), in place.
  ///
  /// - Parameters:
  ///   - rows: Rows of y.
  ///   - columns: Their width.
  ///   - rank: Columns of low and B.
  ///   - low: `[rows, rank]`.
  ///   - b: B, `[columns, rank]`.
  ///   - scale: Factor of the product.
  ///   - factors: `[columns]`.
  ///   - bias: `[columns]`, or nil for zeros.
  ///   - y: `[rows, columns]`; no memory of the others.
  public static func apply(
    rows: Int, columns: Int, rank: Int, low: Slice<Float>, b: Slice<Float>, scale: Float,
    by factors: Slice<Float>, adding bias: Slice<Float>?, to y: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, y.count, row: factors.count)
    Rows.check(rows, columns, row: bias?.count)
    Rows.check(rows, rank, low.count)
    Rows.check(columns, rank, b.count)
    guard rank > 0, rows * columns > pieceSize else {
      BLAS.gemm(.no, .yes, m: rows, n: columns, k: rank, alpha: scale, low, b, beta: 1, into: y)
      return Rows.scaleColumns(rows: rows, columns: columns, of: y, by: factors, adding: bias)
    }
    // Runs of columns first: the rows of a piece share what is packed of B.
    let across = (rows + mostRows - 1) / mostRows
    let along = strips(columns, atLeast: rows * columns / pieceSize / across + 1)
    Parallel.forEach(across * along) { piece in
      let (row, strip) = (piece / along, piece % along)
      let first = rows * row / across
      let count = rows * (row + 1) / across - first
      let from = columns * strip / along / 32 * 32
      let end = strip + 1 == along ? columns : columns * (strip + 1) / along / 32 * 32
      let own = y.pointer + first * columns + from
      product(
        pk_gemm_task(
          a: low.pointer + first * rank, b: b.pointer + from * rank, c: own, m: count,
          n: end - from, k: rank, lda: rank, ldb: rank, ldc: columns, alpha: scale, beta: 1,
          ta: false, tb: true, format: PK_F32))
      pk_scale_columns_bias(
        factors.pointer + from, bias.map { $0.pointer + from }, own, columns, count, end - from)
    }
  }

  /// The way back: dots[j] = Σᵢ dy[i, j] (y[i, j] − bias[j]), then dy = dy∘factors, and
  /// low = beta·low + scale·dy·B with the new dy.
  ///
  /// - Parameters:
  ///   - rows: Rows of y.
  ///   - columns: Their width.
  ///   - rank: Columns of low and B.
  ///   - dy: `[rows, columns]`, changed in place.
  ///   - y: `[rows, columns]`, not the memory of `dy`.
  ///   - bias: `[columns]`, or nil for zeros.
  ///   - factors: `[columns]`.
  ///   - b: B, `[columns, rank]`.
  ///   - scale: Factor of the product.
  ///   - dots: Receives `[columns]`.
  ///   - beta: Factor of what is in `low`; with 0 it is not read.
  ///   - low: `[rows, rank]`.
  public static func gradients(
    rows: Int, columns: Int, rank: Int, _ dy: MutableSlice<Float>, _ y: Slice<Float>,
    bias: Slice<Float>?, by factors: Slice<Float>, b: Slice<Float>, scale: Float,
    dots: MutableSlice<Float>, beta: Float, into low: MutableSlice<Float>
  ) {
    Rows.check(rows, columns, dy.count, y.count, row: factors.count)
    Rows.check(rows, columns, row: bias?.count)
    Rows.check(rows, columns, row: dots.count)
    Rows.check(rows, rank, low.count)
    Rows.check(columns, rank, b.count)
    // Strips of 64 columns or a multiple, the unit of the kernel for the dots.
    let width = max(64, pieceSize / 2 / max(rows, 1) / 64 * 64)
    let strips = (columns + width - 1) / width
    guard rank > 0, strips > 1 else {
      Rows.scaledColumnDots(
        rows: rows, columns: columns, dy, y, bias: bias, by: factors, into: dots)
      return BLAS.gemm(
        .no, .no, m: rows, n: rank, k: columns, alpha: scale, dy.readOnly, b, beta: beta,
        into: low)
    }
    // Each part sums its strips; the parts are added in order.
    let parts = min(strips, Parallel.mostParts)
    let size = rows * rank
    withScratch(parts * size) { sums in
      Parallel.forEach(parts) { part in
        for strip in strips * part / parts..<strips * (part + 1) / parts {
          let first = strip * width
          let count = min(width, columns - first)
          pk_scaled_column_dots(
            dy.pointer + first, y.pointer + first, bias.map { $0.pointer + first },
            factors.pointer + first, columns, rows, count, dots.pointer + first)
          product(
            pk_gemm_task(
              a: dy.pointer + first, b: b.pointer + first * rank, c: sums + part * size, m: rows,
              n: rank, k: count, lda: columns, ldb: rank, ldc: rank, alpha: scale,
              beta: strip == strips * part / parts ? 0 : 1, ta: false, tb: false, format: PK_F32))
        }
      }
      for place in 0..<size {
        var sum = beta == 0 ? 0 : beta * low.pointer[place]
        for part in 0..<parts { sum += sums[part * size + place] }
        low.pointer[place] = sum
      }
    }
  }

  /// Elements of a piece: 512 kB, half of a core's second-level cache or less.
  private static let pieceSize = 1 << 17

  /// Rows of a piece, so that a piece of many rows is not too narrow.
  private static let mostRows = 512

  /// How many strips columns are cut into, the same number for each thread.
  private static func strips(_ columns: Int, atLeast few: Int) -> Int {
    let threads = Parallel.threadCount
    return min((few + threads - 1) / threads * threads, max(1, columns / 64))
  }

  private static func product(_ task: pk_gemm_task) {
    withScratch(Int(PK_GEMM_SCRATCH)) { scratch in
      withUnsafePointer(to: task) { pk_gemm($0, scratch) }
    }
  }
}
