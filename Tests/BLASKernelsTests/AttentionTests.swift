import Testing

@testable import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Expected values: the definition of attention and its analytic gradient, in double precision.
extension Kernels {
  @Suite struct AttentionTests {
    struct Case {
      var name: String
      var attention: Attention
      var hidden: [Int] = []
    }

    static func offsets(_ counts: [Int]) -> [Int32] {
      counts.reduce(into: [0]) { $0.append($0.last! + Int32($1)) }
    }

    static let cases: [Case] = {
      var cases = [
        Case(
          name: "short sequences",
          attention: Attention(
            heads: 3, headDim: 32, queryOffsets: offsets([5, 1, 17, 40, 9]), isCausal: false)),
        Case(
          name: "hidden keys",
          attention: Attention(
            heads: 2, headDim: 16, queryOffsets: offsets([6, 3, 20]), isCausal: false),
          hidden: [0, 5, 6, 7, 8, 20, 28]),
        Case(
          name: "causal, grouped",
          attention: Attention(
            heads: 6, kvHeads: 2, headDim: 64, queryOffsets: offsets([70, 33]), isCausal: true)),
        Case(
          name: "causal, hidden keys",
          attention: Attention(
            heads: 2, kvHeads: 1, headDim: 20, queryOffsets: offsets([9, 40]), isCausal: true),
          hidden: [0, 1, 9, 30]),
        Case(
          name: "odd width",
          attention: Attention(
            heads: 2, headDim: 7, queryOffsets: offsets([11, 0, 2]), isCausal: true, scale: 0.3)),
        Case(
          name: "long",
          attention: Attention(
            heads: 2, kvHeads: 1, headDim: 64, queryOffsets: offsets([300]), isCausal: true)),
        Case(
          name: "wide heads",
          attention: Attention(
            heads: 1, headDim: 128, queryOffsets: offsets([65, 30]), isCausal: false)),
        Case(
          name: "cache",
          attention: Attention(
            heads: 4, kvHeads: 2, headDim: 32, queryOffsets: offsets([1, 3]),
            keyOffsets: offsets([50, 200]), isCausal: true)),
        Case(
          name: "cache with room",
          attention: Attention(
            heads: 4, kvHeads: 2, headDim: 32, queryOffsets: offsets([1, 1]),
            keyOffsets: offsets([50, 300]), keyCounts: [37, 290], isCausal: true)),
        Case(
          name: "dropout",
          attention: Attention(
            heads: 4, kvHeads: 2, headDim: 16, queryOffsets: offsets([30, 70]), isCausal: true)),
      ]
      cases[cases.count - 1].attention.dropout = 0.3
      cases[cases.count - 1].attention.seed = 11
      cases[cases.count - 1].attention.stream = 12
      return cases
    }()

    struct Reference {
      var out: [Double]
      var lse: [Double]
      var dq: [Double]
      var dk: [Double]
      var dv: [Double]
    }

    static func reference(
      _ a: Attention, q: [Float], k: [Float], v: [Float], visible: [Bool], dOut: [Float]
    ) -> Reference {
      let (d, tokens) = (a.headDim, a.tokens)
      let (wide, narrow) = (a.heads * d, a.kvHeads * d)
      var r = Reference(
        out: Array(repeating: 0, count: q.count),
        lse: Array(repeating: -.infinity, count: a.heads * tokens),
        dq: Array(repeating: 0, count: q.count), dk: Array(repeating: 0, count: k.count),
        dv: Array(repeating: 0, count: k.count))
      var dropoutOffset = 0
      for s in 0..<a.queryOffsets.count - 1 {
        let (q0, k0) = (Int(a.queryOffsets[s]), Int(a.keyOffsets[s]))
        let queries = Int(a.queryOffsets[s + 1]) - q0
        let keys = a.keyCounts.map { Int($0[s]) } ?? Int(a.keyOffsets[s + 1]) - k0
        let stride = (keys + 63) / 64 * 64
        for h in 0..<a.heads {
          let kv = h / (a.heads / a.kvHeads)
          for i in 0..<queries {
            let limit = a.isCausal ? keys - queries + i : keys - 1
            let seen = (0..<keys).filter { $0 <= limit && visible[k0 + $0] }
            guard !seen.isEmpty else { continue }
            let qAt = (q0 + i) * wide + h * d
            func kAt(_ j: Int) -> Int { (k0 + j) * narrow + kv * d }
            let scores = seen.map { j in
              Double(a.scale)
                * (0..<d).reduce(0) { $0 + Double(q[qAt + $1]) * Double(k[kAt(j) + $1]) }
            }
            let lse = log(scores.reduce(0) { $0 + exp($1) })
            r.lse[h * tokens + q0 + i] = lse
            let p = scores.map { exp($0 - lse) }
            let keep = seen.map { j -> Double in
              guard a.dropout > 0 else { return 1 }
              let index = dropoutOffset + (h * queries + i) * stride + j
              let bits = RandomTests.bits(index, seed: a.seed, stream: a.stream)
              return Double(bits) >= Double(a.dropout) * 4_294_967_296
                ? 1 / (1 - Double(a.dropout)) : 0
            }
            var delta = 0.0
            var dp = [Double](repeating: 0, count: seen.count)
            for (n, j) in seen.enumerated() {
              for c in 0..<d {
                r.out[qAt + c] += p[n] * keep[n] * Double(v[kAt(j) + c])
                dp[n] += keep[n] * Double(dOut[qAt + c]) * Double(v[kAt(j) + c])
                r.dv[kAt(j) + c] += p[n] * keep[n] * Double(dOut[qAt + c])
              }
              delta += p[n] * dp[n]
            }
            for (n, j) in seen.enumerated() {
              let ds = p[n] * (dp[n] - delta) * Double(a.scale)
              for c in 0..<d {
                r.dq[qAt + c] += ds * Double(k[kAt(j) + c])
                r.dk[kAt(j) + c] += ds * Double(q[qAt + c])
              }
            }
          }
        }
        dropoutOffset += a.heads * queries * stride
      }
      return r
    }

    @Test(arguments: 0..<cases.count) func matchesTheDefinition(index: Int) {
      let (a, name) = (Self.cases[index].attention, Self.cases[index].name)
      let qCount = a.tokens * a.heads * a.headDim
      let keyTokens = Int(a.keyOffsets.last!)
      let kCount = keyTokens * a.kvHeads * a.headDim
      let q = numbers(qCount, seed: 1, in: -2...2)
      let (k, v) = (numbers(kCount, seed: 2, in: -2...2), numbers(kCount, seed: 3))
      let dOut = numbers(qCount, seed: 4)
      var visible = [Bool](repeating: true, count: keyTokens)
      for i in Self.cases[index].hidden { visible[i] = false }
      let mask = Self.cases[index].hidden.isEmpty ? nil : Slice(visible.map { UInt8($0 ? 1 : 0) })
      let expected = Self.reference(a, q: q, k: k, v: v, visible: visible, dOut: dOut)
      func run() -> [[Float]] {
        let (out, dq) = (
          MutableSlice<Float>(repeating: .nan, count: qCount),
          MutableSlice<Float>(repeating: .nan, count: qCount)
        )
        let (dk, dv) = (
          MutableSlice<Float>(repeating: .nan, count: kCount),
          MutableSlice<Float>(repeating: .nan, count: kCount)
        )
        let lse = MutableSlice<Float>(repeating: .nan, count: a.heads * a.tokens)
        a.forward(
          q: Slice(q), k: Slice(k), v: Slice(v), keyMask: mask, into: out, logSumExp: lse)
        a.backward(
          q: Slice(q), k: Slice(k), v: Slice(v), keyMask: mask, out: out.readOnly,
          logSumExp: lse.readOnly, dOut: Slice(dOut), dq: dq, dk: dk, dv: dv)
        return [out.array, lse.array, dq.array, dk.array, dv.array]
      }
      atEveryLevel { level in
        let results = run()
        let comment = Comment("\(name), \(level)")
        #expect(errorOfLargest(results[0], expected.out) < 3e-6, comment)
        for (x, y) in zip(results[1], expected.lse) {
          #expect(y == -.infinity ? x == -.infinity : abs(Double(x) - y) < 5e-6, comment)
        }
        #expect(errorOfLargest(results[2], expected.dq) < 5e-6, comment)
        // Rows of a cache beyond its count are nobody's, and are not touched.
        let used = Set(
          (0..<a.keyOffsets.count - 1).flatMap { s -> [Int] in
            let start = Int(a.keyOffsets[s])
            let end = a.keyCounts.map { start + Int($0[s]) } ?? Int(a.keyOffsets[s + 1])
            return Array(start..<end)
          })
        for (result, reference) in [(results[3], expected.dk), (results[4], expected.dv)] {
          let width = a.kvHeads * a.headDim
          let kept = result.indices.filter { used.contains($0 / width) }
          #expect(
            errorOfLargest(kept.map { result[$0] }, kept.map { reference[$0] }) < 5e-6, comment)
        }
        func bits(_ results: [[Float]]) -> [[UInt32]] { results.map { $0.map(\.bitPattern) } }
        #expect(bits(run()) == bits(results), comment)
      }
    }
  }
}
