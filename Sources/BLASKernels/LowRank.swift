import CKernels

/// Rows of a batch that share the factors of a low-rank update.
public struct LowRankRun: Sendable {
  /// The rows.
  public var rows: Range<Int>
  /// A, `[rank, inputs]`.
  public var a: Slice<Float>
  /// B, `[outputs, rank]`.
  public var b: Slice<Float>
  /// The rank.
  public var rank: Int
  /// Factor of the update.
  public var scale: Float

  /// Describes a run.
  public init(rows: Range<Int>, a: Slice<Float>, b: Slice<Float>, rank: Int, scale: Float) {
    self.rows = rows
    self.a = a
    self.b = b
    self.rank = rank
    self.scale = scale
  }
}

/// Low-rank updates of a batch whose rows have different factors.
public enum LowRank {
  /// `y[rows] += scale·(x[rows]·Aᵀ)·Bᵀ` for every run.
  ///
  /// With a row or two for each adapter, as in generation, calls of products would cost more than
  /// the arithmetic: such rows go straight through both factors.
  ///
  /// - Parameters:
  ///   - runs: The runs; their rows must not overlap.
  ///   - x: `[rows, inputs]`.
  ///   - inputs: Columns of x.
  ///   - outputs: Columns of y.
  ///   - y: `[rows, outputs]`.
  public static func add(
    _ runs: [LowRankRun], _ x: Slice<Float>, inputs: Int, outputs: Int,
    into y: MutableSlice<Float>
  ) {
    var work = 0
    for run in runs {
      precondition(
        run.rows.lowerBound >= 0 && run.rows.upperBound * inputs <= x.count
          && run.rows.upperBound * outputs <= y.count, "rows beyond the batch")
      precondition(
        run.a.count == run.rank * inputs && run.b.count == run.rank * outputs,
        "factors of another size")
      // Reading the factors costs as much as a few rows of arithmetic.
      work += (run.rows.count + 4) * run.rank * (inputs + outputs)
    }
    let runs = work < workOfThread ? runs : balanced(runs)
    let widest = runs.map { $0.rows.count * $0.rank }.max() ?? 0
    // What a thread needs: x·Aᵀ of one run, and the scratch of a product.
    let needsProducts = runs.contains { $0.rows.count >= rowLimit($0.rank) }
    let scratchSize = widest + (needsProducts ? Int(PK_GEMM_SCRATCH) : 0)
    let threads = min(Parallel.threadCount, runs.count, max(1, work / workOfThread))
    withScratch(max(scratchSize, 1) * threads) { scratch in
      let (from, to) = (x.pointer, y.pointer)
      if threads == 1 {
        for run in runs { add(run, from, inputs, outputs, to, scratch, widest) }
      } else {
        Parallel.forEach(threads) { thread in
          let own = scratch + thread * scratchSize
          for place in stride(from: thread, to: runs.count, by: threads) {
            add(runs[place], from, inputs, outputs, to, own, widest)
          }
        }
      }
    }
  }

  /// From so much work on a second thread gives more than it costs (measured).
  private static let workOfThread = 200_000

  /// Long runs in pieces, so that every thread gets about the same number of rows.
  private static func balanced(_ runs: [LowRankRun]) -> [LowRankRun] {
    let total = runs.reduce(0) { $0 + $1.rows.count }
    let piece = max(16, total / (2 * Parallel.threadCount))
    return runs.flatMap { run -> [LowRankRun] in
      let parts = (run.rows.count + piece - 1) / piece
      guard parts > 1 else { return [run] }
      return (0..<parts).map { part in
        var result = run
        let (first, count) = (run.rows.lowerBound, run.rows.count)
        result.rows = first + count * part / parts..<first + count * (part + 1) / parts
        return result
      }
    }
  }

  /// From so many rows on blocked products are faster than row by row (measured): AVX-512 has a
  /// kernel of its own for rows of rank 8.
  private static func rowLimit(_ rank: Int) -> Int {
    rank == 8 && InstructionSet.current == .avx512 ? 17 : 4
  }

  private static func add(
    _ run: LowRankRun, _ x: UnsafePointer<Float>, _ inputs: Int, _ outputs: Int,
    _ y: UnsafeMutablePointer<Float>, _ scratch: UnsafeMutablePointer<Float>, _ lowSize: Int
  ) {
    let (a, b, rank) = (run.a.pointer, run.b.pointer, run.rank)
    guard run.rows.count >= rowLimit(rank) else {
      for row in run.rows {
        pk_lowrank_row(
          x + row * inputs, a, b, run.scale, scratch, y + row * outputs, rank, inputs, outputs)
      }
      return
    }
    let count = run.rows.count
    let first = run.rows.lowerBound
    var task = pk_gemm_task(
      a: x + first * inputs, b: a, c: scratch, m: count, n: rank, k: inputs, lda: inputs,
      ldb: inputs, ldc: rank, alpha: 1, beta: 0, ta: false, tb: true, format: PK_F32)
    pk_gemm(&task, scratch + lowSize)
    task = pk_gemm_task(
      a: scratch, b: b, c: y + first * outputs, m: count, n: outputs, k: rank, lda: rank,
      ldb: rank, ldc: outputs, alpha: run.scale, beta: 1, ta: false, tb: true, format: PK_F32)
    pk_gemm(&task, scratch + lowSize)
  }
}
