import CKernels

/// The own GEMM kernels: which problems they win, and how these are spread over threads.
enum OwnGEMM {
  /// Whether the own kernels beat a library. The bounds are measured (see Benchmarks, kernels-bench): the libraries
  /// lose on narrow products, which LoRA is made of, and in a training step on products of some hundred rows with a
  /// weight, where a core that is slower for a moment holds up their equal shares; and the fewer rows meet a
  /// large weight, the better part of it packing takes.
  static func isFaster(
    _ ta: Bool, _ tb: Bool, _ m: Int, _ n: Int, _ k: Int, than backend: GEMMBackend
  ) -> Bool {
    if m * n * k <= 1 << 19 || m <= 12 { return true }
    // Few columns of a transposed A: the gradients of adapters.
    if ta { return n <= 16 }
    if k <= 64 { return true }
    if n <= 128 { return tb || n <= 64 || backend == .openBLAS }
    guard backend == .oneDNN else { return false }
    return m >= (n * k <= 600_000 ? 192 : 48) && m <= 1024
  }

  /// Whether B is large beside A, so that it is worth reading in place and once.
  private static func streams(_ task: pk_gemm_task) -> Bool {
    !task.ta && task.format == PK_F32 && task.m >= 48 && task.n >= 64 && task.k >= 64
      && task.n * task.k > 600_000
  }

  /// Runs a problem on the pool.
  static func run(_ task: pk_gemm_task) {
    if streams(task) { return stream(task) }
    // Work in operations; moving an element costs as much as several.
    let (m, n, k) = (task.m, task.n, task.k)
    let work = 2 * m * n * k + 16 * (m * n + m * k + n * k)
    guard Parallel.threadCount > 1, work >= 4_000_000 else { return runPart(task, 0..<m, 0..<n) }
    // Wide products are cut finer, for cores of different speed: it costs them nothing.
    let most = n >= 1024 ? 2 * Parallel.mostParts : Parallel.mostParts
    let parts = min(most, work / 1_000_000)
    let (byRows, byColumns) = counts(task, parts: parts)
    // Rows first, so that threads write different rows at a time: neighbouring lines of C would go to and fro between them.
    Parallel.forEach(byColumns * byRows) { part in
      let (row, column) = (part % byRows, part / byRows)
      runPart(
        task, m * row / byRows..<m * (row + 1) / byRows,
        cut(n, column, byColumns)..<cut(n, column + 1, byColumns))
    }
  }

  /// How many parts of the rows and of the columns to make.
  private static func counts(_ task: pk_gemm_task, parts: Int) -> (rows: Int, columns: Int) {
    let (m, n, k) = (task.m, task.n, task.k)
    if !task.ta && k <= 128 && n > 128 {
      // C is what moves: parts take its rows, with as many columns as keep a packed B in the cache.
      let most = Int(PK_GEMM_FLAT)
      let fewest = (k * (n + 32) + most - 1) / most
      let byRows = max(1, min(parts / fewest, m / 32))
      return (byRows, max(fewest, min(parts / byRows, n / 64)))
    }
    // Parts share A, which lies in the cache, and each packs its own of B.
    let byColumns = max(1, min(parts, n / 64))
    return (max(1, min(parts / byColumns, m / 16)), byColumns)
  }

  /// Lets blocks of rows meet parts of B. A block has as many rows as leave a packed one in the second-level cache, and
  /// blocks take turns at a part, so that memory is read once for them all.
  private static func stream(_ task: pk_gemm_task) {
    if isLongSum(task) { streamSums(task) } else { streamColumns(task) }
  }

  private static func rowBlocks(_ task: pk_gemm_task) -> Int {
    (task.m + Int(PK_STREAM_ROWS) - 1) / Int(PK_STREAM_ROWS)
  }

  /// Block `index` of `count` of a product's rows.
  private static func rowBlock(_ task: pk_gemm_task, _ index: Int, of count: Int) -> pk_gemm_task {
    part(of: task, task.m * index / count..<task.m * (index + 1) / count, 0..<task.n)
  }

  /// Whether columns are so few, as in the gradient of an output layer's input, that parts of them would
  /// take B's rows to pieces.
  private static func isLongSum(_ task: pk_gemm_task) -> Bool {
    !task.tb && task.n <= 2048 && task.k >= 4 * sumParts * Int(PK_STREAM_KC)
  }

  /// The parts of a long sum; the same whatever the number of threads.
  private static let sumParts = 16

  /// Lets parts of the sum meet whole rows of B, and adds what comes of them.
  private static func streamSums(_ task: pk_gemm_task) {
    let (m, n, blocks, rowBlocks) = (task.m, task.n, pk_gemm_stream_blocks(task.k), rowBlocks(task))
    withScratch(sumParts * m * n) { sums in
      Parallel.forEach(sumParts * rowBlocks) { index in
        let part = index / rowBlocks
        let from = blocks * part / sumParts * Int(PK_STREAM_KC)
        let end = min(blocks * (part + 1) / sumParts * Int(PK_STREAM_KC), task.k)
        var whole = task
        whole.c = sums + part * m * n
        whole.ldc = n
        whole.beta = 0
        var piece = rowBlock(whole, index % rowBlocks, of: rowBlocks)
        let a = piece.a
        let most = 8 * Int(PK_STREAM_KC)
        withScratch(pk_gemm_stream_packed(piece.m, most) + Int(PK_GEMM_SCRATCH)) { scratch in
          let packed = scratch + Int(PK_GEMM_SCRATCH)
          for start in Swift.stride(from: from, to: end, by: most) {
            piece.k = min(most, end - start)
            piece.a = a + start
            piece.b = task.b + 4 * start * task.ldb
            withUnsafePointer(to: piece) { piece in
              for block in 0..<pk_gemm_stream_blocks(piece.pointee.k) {
                pk_gemm_stream_pack(piece, block, packed)
              }
              pk_gemm_stream(piece, packed, scratch)
            }
            piece.beta = 1
          }
        }
      }
      Parallel.split(m, grain: 8) { rows in
        for row in rows {
          let y = task.c + row * task.ldc
          if task.beta == 0 {
            y.update(from: sums + row * n, count: n)
          } else {
            if task.beta != 1 { pk_scale(task.beta, y, y, n) }
            pk_axpy(1, sums + row * n, y, n)
          }
          for part in 1..<sumParts { pk_axpy(1, sums + (part * m + row) * n, y, n) }
        }
      }
    }
  }

  /// Packs A, then lets parts of B's columns meet it. A packed A is kept below twelve megabytes.
  private static func streamColumns(_ task: pk_gemm_task) {
    let rowBlocks = rowBlocks(task)
    let most = max(Int(PK_STREAM_KC), (3 << 20) / task.m / Int(PK_STREAM_KC) * Int(PK_STREAM_KC))
    let pieces = (task.k + most - 1) / most
    let step = (task.k + pieces - 1) / pieces
    let size = pk_gemm_stream_packed((task.m + rowBlocks - 1) / rowBlocks, step)
    withScratch(rowBlocks * size) { packed in
      for from in Swift.stride(from: 0, to: task.k, by: step) {
        var piece = task
        piece.k = min(step, task.k - from)
        piece.a += from
        piece.b += 4 * (task.tb ? from : from * task.ldb)
        if from > 0 { piece.beta = 1 }
        streamPiece(piece, rowBlocks) { packed + $0 * size }
      }
    }
  }

  private static func streamPiece(
    _ task: pk_gemm_task, _ rowBlocks: Int,
    _ packed: (_ rowBlock: Int) -> UnsafeMutablePointer<Float>
  ) {
    let sumBlocks = pk_gemm_stream_blocks(task.k)
    Parallel.forEach(rowBlocks * sumBlocks) { index in
      let rows = index / sumBlocks
      withUnsafePointer(to: rowBlock(task, rows, of: rowBlocks)) {
        pk_gemm_stream_pack($0, index % sumBlocks, packed(rows))
      }
    }
    // Enough parts to even out cores of different speed; each reads the packed A once.
    let width = task.tb ? 112 : 64
    let columns = (task.n + width - 1) / width
    let parts = min(columns, max(8 * Parallel.mostParts, columns / 16))
    Parallel.forEach(parts * rowBlocks) { index in
      let (part, rows) = (index / rowBlocks, index % rowBlocks)
      let from = columns * part / parts * width
      let to = min(columns * (part + 1) / parts * width, task.n)
      let rowBlock = rowBlock(task, rows, of: rowBlocks)
      let piece = self.part(of: rowBlock, 0..<rowBlock.m, from..<to)
      withScratch(Int(PK_GEMM_SCRATCH)) { scratch in
        withUnsafePointer(to: piece) { pk_gemm_stream($0, packed(rows), scratch) }
      }
    }
  }

  // Columns are cut at multiples of the widest panel.
  private static func cut(_ n: Int, _ part: Int, _ parts: Int) -> Int {
    part == parts ? n : n * part / parts / 32 * 32
  }

  private static func runPart(_ task: pk_gemm_task, _ rows: Range<Int>, _ columns: Range<Int>) {
    guard !rows.isEmpty, !columns.isEmpty else { return }
    withScratch(Int(PK_GEMM_SCRATCH)) { scratch in
      withUnsafePointer(to: part(of: task, rows, columns)) { pk_gemm($0, scratch) }
    }
  }

  /// The product of some rows of op(A) with some columns of op(B).
  private static func part(
    of task: pk_gemm_task, _ rows: Range<Int>, _ columns: Range<Int>
  ) -> pk_gemm_task {
    var part = task
    part.m = rows.count
    part.n = columns.count
    part.a += task.ta ? rows.lowerBound : rows.lowerBound * task.lda
    part.c += rows.lowerBound * task.ldc + columns.lowerBound
    let size = task.format == PK_F32 ? 4 : 2
    part.b += size * (task.tb ? columns.lowerBound * task.ldb : columns.lowerBound)
    return part
  }
}
