import BLASKernels

/// Attention beside the same made of library products and a score matrix.
func benchmarkAttention() {
  let lengths = (0..<32).map { 5 + ($0 * 11) % 19 }
  let minilm = Attention(
    heads: 12, headDim: 32,
    queryOffsets: lengths.reduce(into: [0]) { $0.append($0.last! + Int32($1)) }, isCausal: false)
  measure("MiniLM, 32 sequences of 5 to 23", minilm)
  var dropped = minilm
  dropped.dropout = 0.1
  measure("the same with dropout", dropped)
  for length: Int32 in [128, 512, 2048] {
    let qwen = Attention(
      heads: 14, kvHeads: 2, headDim: 64, queryOffsets: [0, length], isCausal: true)
    measure("Qwen2, 1 sequence of \(length)", qwen)
  }
  for keys: Int32 in [128, 2048] {
    let decode = Attention(
      heads: 14, kvHeads: 2, headDim: 64, queryOffsets: [0, 1], keyOffsets: [0, keys],
      isCausal: true)
    measure("Qwen2, 1 query, \(keys) keys", decode, backward: false)
  }
}

private func measure(_ name: String, _ attention: Attention, backward: Bool = true) {
  let width = attention.heads * attention.headDim
  let keyTokens = Int(attention.keyOffsets.last!)
  let keyWidth = attention.kvHeads * attention.headDim
  let (q, k, v) = (
    random(attention.tokens * width).readOnly, random(keyTokens * keyWidth, stream: 2).readOnly,
    random(keyTokens * keyWidth, stream: 3).readOnly
  )
  let out = MutableSlice<Float>(count: q.count)
  let lse = MutableSlice<Float>(count: attention.heads * attention.tokens)
  // Operations of both products over what is visible.
  var pairs = 0
  for s in 0..<attention.queryOffsets.count - 1 {
    let queries = Int(attention.queryOffsets[s + 1] - attention.queryOffsets[s])
    let keys = Int(attention.keyOffsets[s + 1] - attention.keyOffsets[s])
    pairs += attention.isCausal ? queries * keys - queries * (queries - 1) / 2 : queries * keys
  }
  let work = 4 * Double(pairs * attention.heads * attention.headDim)
  let forward = Contender(name: "own") {
    attention.forward(q: q, k: k, v: v, into: out, logSumExp: lse)
  }
  report(
    "\(name): forward", amount: work, unit: "GFLOP/s",
    [forward, Contender(name: "products") { composed(attention, q, k, v, out) }])
  guard backward else { return }
  let dOut = random(q.count, stream: 4).readOnly
  let (dq, dk, dv) = (
    MutableSlice<Float>(count: q.count), MutableSlice<Float>(count: k.count),
    MutableSlice<Float>(count: k.count)
  )
  forward.body()
  report(
    "\(name): backward", amount: 2.5 * work, unit: "GFLOP/s",
    [
      Contender(name: "own") {
        attention.backward(
          q: q, k: k, v: v, out: out.readOnly, logSumExp: lse.readOnly, dOut: dOut, dq: dq, dk: dk,
          dv: dv)
      }
    ])
}

/// The forward as products of the library with a softmax between, parallel over sequences and heads.
private func composed(
  _ a: Attention, _ q: Slice<Float>, _ k: Slice<Float>, _ v: Slice<Float>,
  _ out: MutableSlice<Float>
) {
  let (d, group) = (a.headDim, a.heads / a.kvHeads)
  let (width, keyWidth) = (a.heads * d, a.kvHeads * d)
  Parallel.forEach((a.queryOffsets.count - 1) * a.heads) { index in
    let (s, head) = (index / a.heads, index % a.heads)
    let (query, key) = (Int(a.queryOffsets[s]), Int(a.keyOffsets[s]))
    let (queries, keys) = (Int(a.queryOffsets[s + 1]) - query, Int(a.keyOffsets[s + 1]) - key)
    let scores = MutableSlice<Float>(count: queries * keys)
    let (qAt, kAt) = (query * width + head * d, key * keyWidth + head / group * d)
    BLAS.gemm(
      .no, .yes, m: queries, n: keys, k: d, alpha: a.scale, q[qAt...], lda: width, k[kAt...],
      ldb: keyWidth, into: scores, route: .library)
    if a.isCausal {
      for i in 0..<queries where keys - queries + i + 1 < keys {
        scores[i * keys + keys - queries + i + 1..<(i + 1) * keys].fill(-.infinity)
      }
    }
    Loss.softmax(rows: queries, columns: keys, scores.readOnly, into: scores)
    BLAS.gemm(
      .no, .no, m: queries, n: d, k: keys, scores.readOnly, v[kAt...], ldb: keyWidth,
      into: out[qAt...], ldc: width, route: .library)
  }
}
