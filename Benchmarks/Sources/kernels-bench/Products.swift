import BLASKernels

/// Random numbers in fresh memory.
func random(_ count: Int, stream: UInt64 = 1) -> MutableSlice<Float> {
  let slice = MutableSlice<Float>(count: count)
  Random.uniform(seed: 1, stream: stream, low: -1, high: 1, into: slice)
  return slice
}

/// f32 products: forward (NT), input gradient (NN), weight gradient (TN).
func benchmarkGEMM() {
  let shapes: [(Transpose, Transpose, Int, Int, Int)] = [
    // LoRA with rank 8 to 64 on MiniLM, forward and gradients.
    (.no, .yes, 450, 8, 384), (.no, .yes, 450, 384, 8), (.no, .yes, 450, 8, 1536),
    (.no, .yes, 450, 1536, 8), (.no, .yes, 450, 16, 384), (.no, .yes, 450, 64, 384),
    (.no, .yes, 450, 384, 64), (.no, .no, 450, 8, 384), (.no, .no, 450, 384, 8),
    (.yes, .no, 384, 8, 450), (.yes, .no, 8, 384, 450), (.yes, .no, 1536, 8, 450),
    // And on Qwen2.
    (.no, .yes, 128, 8, 896), (.no, .yes, 128, 4864, 8), (.no, .yes, 512, 8, 4864),
    (.no, .yes, 512, 896, 8), (.yes, .no, 4864, 8, 512), (.yes, .no, 8, 896, 512),
    // Dense layers of MiniLM.
    (.no, .yes, 450, 384, 384), (.no, .yes, 450, 1536, 384), (.no, .yes, 450, 384, 1536),
    (.no, .no, 450, 384, 384), (.no, .no, 450, 384, 1536), (.yes, .no, 384, 384, 450),
    (.no, .yes, 32, 77, 384), (.no, .yes, 32, 384, 384),
    // And of Qwen2.
    (.no, .yes, 128, 896, 896), (.no, .yes, 128, 128, 896), (.no, .yes, 128, 4864, 896),
    (.no, .yes, 128, 896, 4864), (.no, .no, 128, 4864, 896), (.no, .no, 128, 896, 4864),
    (.no, .yes, 512, 4864, 896), (.no, .no, 512, 896, 4864), (.no, .yes, 512, 896, 4864),
    (.no, .no, 512, 4864, 896), (.no, .no, 512, 896, 896), (.no, .yes, 512, 896, 896),
    (.no, .yes, 512, 151_936, 896), (.no, .no, 512, 896, 151_936), (.no, .yes, 4, 4864, 896),
    (.no, .yes, 16, 4864, 896),
    // Tiny and large.
    (.no, .yes, 16, 16, 32), (.no, .no, 14, 32, 14), (.no, .yes, 2048, 2048, 2048),
  ]
  for (ta, tb, m, n, k) in shapes {
    let (a, b) = (random(m * k).readOnly, random(k * n, stream: 2).readOnly)
    let c = MutableSlice<Float>(count: m * n)
    func contender(_ name: String, _ backend: GEMMBackend, _ route: GEMMRoute) -> Contender {
      Contender(name: name) {
        BLAS.gemm(ta, tb, m: m, n: n, k: k, a, b, into: c, backend: backend, route: route)
      }
    }
    var contenders = [
      contender("chosen", .standard, .automatic), contender("own", .standard, .own),
    ]
    if GEMMBackend.available.contains(.oneDNN) {
      contenders.append(contender("oneDNN", .oneDNN, .library))
    }
    contenders.append(contender("OpenBLAS", .openBLAS, .library))
    let form = (ta == .yes ? "T" : "N") + (tb == .yes ? "T" : "N")
    report(
      "\(form) \(m)×\(n)×\(k)", amount: 2 * Double(m * n * k), unit: "GFLOP/s", contenders)
  }
}

/// What LoRA adds to a layer's output and to its input's gradient: thin sums into matrices that come from memory.
func benchmarkLowRank() {
  for (m, n, k) in [
    (450, 384, 8), (450, 1536, 8), (128, 896, 8), (128, 4864, 8), (512, 896, 8), (512, 4864, 8),
    (512, 4864, 32),
  ] {
    for tb in [Transpose.yes, .no] {
      let (a, b) = (random(m * k).readOnly, random(k * n, stream: 2).readOnly)
      // More than the caches hold, in turns.
      let outputs = (0..<max(2, 32_000_000 / (m * n))).map { _ in
        MutableSlice<Float>(repeating: 0, count: m * n)
      }
      func contender(_ name: String, _ route: GEMMRoute) -> Contender {
        Contender(name: name) {
          for output in outputs {
            BLAS.gemm(.no, tb, m: m, n: n, k: k, a, b, beta: 1, into: output, route: route)
          }
        }
      }
      report(
        "+= N\(tb == .yes ? "T" : "N") \(m)×\(n)×\(k)",
        amount: 2 * Double(m * n * k * outputs.count), unit: "GFLOP/s",
        [contender("chosen", .automatic), contender("own", .own), contender("library", .library)])
    }
  }
}

/// Products with 16-bit weights, beside the same in f32.
func benchmarkHalfGEMM() {
  for (m, n, k) in [
    (4, 4864, 896), (16, 4864, 896), (128, 896, 896), (128, 4864, 896), (128, 896, 4864),
    (512, 4864, 896), (512, 896, 4864),
  ] {
    for transposed in [true, false] {
      let (x, w) = (random(m * k).readOnly, random(k * n, stream: 2).readOnly)
      let c = MutableSlice<Float>(count: m * n)
      var contenders: [Contender] = []
      for (name, format, precision) in [
        ("bf16", HalfFormat.bfloat16, HalfPrecision.exact), ("f16", .float16, .exact),
        ("bf16 inputs", .bfloat16, .bfloat16Inputs),
      ] {
        if precision == .bfloat16Inputs, !InstructionSet.hasBFloat16 { continue }
        let half = MutableSlice<UInt16>(count: w.count)
        Conversion.narrow(w, to: format, into: half)
        contenders.append(
          Contender(name: name) {
            BLAS.gemm(
              x, weight: half.readOnly, format: format, transposeWeight: transposed, m: m, n: n,
              k: k, into: c, precision: precision)
          })
      }
      contenders.append(
        Contender(name: "f32") {
          BLAS.gemm(.no, transposed ? .yes : .no, m: m, n: n, k: k, x, w, into: c)
        })
      if GEMMBackend.available.contains(.oneDNN) {
        contenders.append(
          Contender(name: "oneDNN f32") {
            BLAS.gemm(
              .no, transposed ? .yes : .no, m: m, n: n, k: k, x, w, into: c, backend: .oneDNN,
              route: .library)
          })
      }
      report(
        "\(transposed ? "x Wᵀ" : "dy W") \(m)×\(n)×\(k)", amount: 2 * Double(m * n * k),
        unit: "GFLOP/s", contenders)
    }
  }
}

/// Matrix times vector, in bytes of the matrix.
func benchmarkGEMV() {
  for (rows, columns) in [(896, 896), (4864, 896), (896, 4864), (151_936, 896)] {
    let (w, x) = (random(rows * columns).readOnly, random(max(rows, columns)).readOnly)
    let y = MutableSlice<Float>(count: max(rows, columns))
    let half = MutableSlice<UInt16>(count: w.count)
    Conversion.narrow(w, to: .bfloat16, into: half)
    let library = GEMMBackend.available[0]
    for transpose in [Transpose.no, .yes] {
      let form = transpose == .no ? "W x" : "Wᵀ x"
      report(
        "\(form) f32 \(rows)×\(columns)", amount: Double(4 * w.count), unit: "GB/s",
        [
          Contender(name: "own") {
            BLAS.gemv(transpose: transpose, rows: rows, columns: columns, w, x, into: y)
          },
          Contender(name: library == .oneDNN ? "oneDNN" : "OpenBLAS") {
            let (n, k) = transpose == .no ? (rows, columns) : (columns, rows)
            BLAS.gemm(
              .no, transpose == .no ? .yes : .no, m: 1, n: n, k: k, x[0..<k], w, into: y[0..<n],
              backend: library, route: .library)
          },
        ])
      report(
        "\(form) bf16 \(rows)×\(columns)", amount: Double(2 * w.count), unit: "GB/s",
        [
          Contender(name: "own") {
            BLAS.gemv(
              transpose: transpose, rows: rows, columns: columns, half.readOnly, format: .bfloat16,
              x, into: y)
          }
        ])
    }
  }
}
