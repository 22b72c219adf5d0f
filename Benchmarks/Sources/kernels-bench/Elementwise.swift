import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Elementwise kernels, in bytes that they read and write, beside libm where it has the function.
func benchmarkElementwise() {
  let count = 450 * 1536
  let (x, z) = (random(count).readOnly, random(count, stream: 2).readOnly)
  let y = MutableSlice<Float>(count: count)
  func line(_ name: String, _ streams: Int, _ body: @escaping () -> Void) {
    report(
      "\(name) of \(count)", amount: Double(4 * count * streams), unit: "GB/s",
      [Contender(name: "own", body: body)], seconds: 0.2)
  }
  func beside(_ name: String, _ body: @escaping () -> Void, _ libm: @escaping (Float) -> Float) {
    report(
      "\(name) of \(count)", amount: Double(8 * count), unit: "GB/s",
      [
        Contender(name: "own", body: body),
        Contender(name: "libm") {
          y.withMutableSpan { y in x.withSpan { x in for i in 0..<count { y[i] = libm(x[i]) } } }
        },
      ], seconds: 0.3)
  }
  beside("exp", { VectorMath.exp(x, into: y) }, { expf($0) })
  beside("tanh", { VectorMath.tanh(x, into: y) }, { tanhf($0) })
  beside("gelu", { VectorMath.gelu(x, into: y) }, { 0.5 * $0 * (1 + erff($0 * 0.70710678)) })
  line("gelu backward", 3) { VectorMath.geluBackward(input: x, z, into: y) }
  line("geluTanh", 2) { VectorMath.geluTanh(x, into: y) }
  line("silu", 2) { VectorMath.silu(x, into: y) }
  line("swiglu", 3) { VectorMath.swiglu(gate: x, up: z, into: y) }
  line("add", 3) { VectorMath.add(x, z, into: y) }
  line("axpy", 3) { VectorMath.axpy(0.5, x, into: y) }
  line("scale", 2) { VectorMath.scale(0.5, x, into: y) }
  line("copy", 2) { y.copy(from: x) }
  line("dot", 2) { _ = VectorMath.dot(x, z) }
  line("sum of squares", 1) { _ = VectorMath.sumOfSquares(x) }
  line("all finite", 1) { _ = VectorMath.allFinite(x) }
  line("dropout", 2) { Random.dropout(x, p: 0.1, seed: 1, stream: 2, into: y) }
  line("uniform", 1) { Random.uniform(seed: 1, stream: 2, into: y) }
  line("normal", 1) { Random.normal(seed: 1, stream: 2, into: y) }
  let (p, m, v) = (random(count), random(count), MutableSlice<Float>(repeating: 1, count: count))
  line("adamW", 7) {
    Optimizers.adamW(
      parameter: p, gradient: x, firstMoment: m, secondMoment: v, step: 10, learningRate: 1e-9)
  }
  let half = MutableSlice<UInt16>(count: count)
  for format in HalfFormat.allCases {
    report(
      "narrow to \(format)", amount: Double(6 * count), unit: "GB/s",
      [Contender(name: "own") { Conversion.narrow(x, to: format, into: half) }], seconds: 0.2)
    report(
      "widen from \(format)", amount: Double(6 * count), unit: "GB/s",
      [Contender(name: "own") { Conversion.widen(half.readOnly, from: format, into: y) }],
      seconds: 0.2)
  }
  for size in [16, 512, 8192] {
    let (a, b) = (random(size).readOnly, MutableSlice<Float>(count: size))
    report(
      "scale of \(size), for its overhead", amount: Double(8 * size), unit: "GB/s",
      [Contender(name: "own") { VectorMath.scale(0.5, a, into: b) }], seconds: 0.1)
  }
  report(
    "an allocation of 1 MB, recycled", amount: 1e3, unit: "K/s",
    [Contender(name: "own") { _ = Storage.allocate(byteCount: 1 << 20) }], seconds: 0.1)
}

/// Kernels over rows, in bytes that they read and write.
func benchmarkRows() {
  for (rows, columns) in [(450, 384), (512, 896)] {
    let count = rows * columns
    let (x, dy) = (random(count).readOnly, random(count, stream: 2).readOnly)
    let (y, dx) = (MutableSlice<Float>(count: count), MutableSlice<Float>(count: count))
    let (w, b) = (random(columns).readOnly, random(columns).readOnly)
    let (dw, db) = (MutableSlice<Float>(count: columns), MutableSlice<Float>(count: columns))
    let (mean, rstd) = (MutableSlice<Float>(count: rows), MutableSlice<Float>(count: rows))
    func line(_ name: String, _ streams: Int, _ body: @escaping () -> Void) {
      report(
        "\(name) \(rows)×\(columns)", amount: Double(4 * count * streams), unit: "GB/s",
        [Contender(name: "own", body: body)], seconds: 0.2)
    }
    line("layerNorm", 2) {
      Norms.layerNorm(
        rows: rows, columns: columns, x, weight: w, bias: b, epsilon: 1e-5, mean: mean, rstd: rstd,
        into: y)
    }
    line("layerNorm with residual", 4) {
      Norms.layerNorm(
        rows: rows, columns: columns, x, residual: dy, sum: dx, weight: w, bias: b, epsilon: 1e-5,
        mean: mean, rstd: rstd, into: y)
    }
    line("layerNorm backward", 3) {
      Norms.layerNormBackward(
        rows: rows, columns: columns, x, weight: w, mean: mean.readOnly, rstd: rstd.readOnly, dy,
        into: dx)
    }
    line("layerNorm backward, all", 3) {
      Norms.layerNormBackward(
        rows: rows, columns: columns, x, weight: w, mean: mean.readOnly, rstd: rstd.readOnly, dy,
        weightGradient: dw, biasGradient: db, into: dx)
    }
    line("rmsNorm", 2) {
      Norms.rmsNorm(rows: rows, columns: columns, x, weight: w, epsilon: 1e-6, rstd: rstd, into: y)
    }
    line("rmsNorm backward", 3) {
      Norms.rmsNormBackward(
        rows: rows, columns: columns, x, weight: w, rstd: rstd.readOnly, dy, into: dx)
    }
    line("softmax", 2) { Loss.softmax(rows: rows, columns: columns, x, into: y) }
    line("addBias", 2) { Rows.addBias(rows: rows, columns: columns, x, b, into: y) }
    line("scaleColumns", 2) { Rows.scaleColumns(rows: rows, columns: columns, x, by: w, into: y) }
    line("columnSums", 1) { Rows.columnSums(rows: rows, columns: columns, x, into: dw) }
    line("columnDots", 2) { Rows.columnDots(rows: rows, columns: columns, x, dy, into: dw) }
    line("squaredNorms", 1) { Rows.squaredNorms(rows: rows, columns: columns, x, into: mean) }
    line("transpose", 2) { Rows.transpose(rows: rows, columns: columns, x, into: y) }
    line("argmax", 1) {
      Rows.argmax(rows: rows, columns: columns, x, into: MutableSlice<Int32>(count: rows))
    }
  }
  let (tokens, heads, dim) = (512, 14, 64)
  let x = random(tokens * heads * dim)
  let table = random(tokens * dim / 2).readOnly
  report(
    "rotary \(tokens)×\(heads)×\(dim)", amount: Double(8 * x.count), unit: "GB/s",
    [
      Contender(name: "own") {
        Rows.rotary(
          tokens: tokens, heads: heads, headDim: dim, x.readOnly, cosine: table, sine: table,
          into: x)
      }
    ], seconds: 0.2)
  let (rows, vocabulary) = (128, 151_936)
  let logits = random(rows * vocabulary)
  let labels = Slice((0..<rows).map { Int32($0 * 1000) })
  let lse = MutableSlice<Float>(count: rows)
  report(
    "crossEntropy \(rows)×\(vocabulary)", amount: Double(4 * logits.count), unit: "GB/s",
    [
      Contender(name: "own") {
        _ = try? Loss.crossEntropyForward(
          rows: rows, columns: vocabulary, logits: logits.readOnly, labels: labels, logSumExp: lse)
      }
    ])
  let gradient = MutableSlice<Float>(count: logits.count)
  report(
    "crossEntropy backward", amount: Double(8 * logits.count), unit: "GB/s",
    [
      Contender(name: "own") {
        Loss.crossEntropyBackward(
          rows: rows, columns: vocabulary, logits: logits.readOnly, labels: labels,
          logSumExp: lse.readOnly, scale: 0.1, into: gradient)
      }
    ])
}
