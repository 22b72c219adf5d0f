import BLASKernels
import Foundation
import Testing

@testable import Tensors

/// Attention and rotary positions against their formulas in double precision.
struct AttentionTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var problem: Attention
    var mask: [UInt8]?
    var testDescription: String { name }
  }

  static let cases: [Case] = [
    Case(
      name: "bidirectional",
      problem: Attention(heads: 3, headDim: 5, queryOffsets: [0, 4, 5, 9], isCausal: false)),
    Case(
      name: "causal",
      problem: Attention(heads: 2, headDim: 8, queryOffsets: [0, 1, 8], isCausal: true)),
    Case(
      name: "grouped queries",
      problem: Attention(
        heads: 4, kvHeads: 2, headDim: 6, queryOffsets: [0, 3, 10], isCausal: true)),
    Case(
      name: "one key-value head, own scale",
      problem: Attention(
        heads: 3, kvHeads: 1, headDim: 4, queryOffsets: [0, 5], isCausal: false, scale: 0.7)),
    Case(
      name: "masked keys",
      problem: Attention(heads: 2, headDim: 4, queryOffsets: [0, 3, 7], isCausal: false),
      mask: [1, 0, 1, 0, 0, 0, 0]),
    Case(
      name: "masked keys, causal",
      problem: Attention(heads: 2, headDim: 4, queryOffsets: [0, 6], isCausal: true),
      mask: [0, 1, 1, 0, 1, 1]),
    Case(
      name: "first queries only",
      problem: Attention(
        heads: 2, headDim: 4, queryOffsets: [0, 1, 2, 3], keyOffsets: [0, 4, 5, 9],
        isCausal: false)),
    Case(
      name: "last queries, causal",
      problem: Attention(
        heads: 2, kvHeads: 1, headDim: 4, queryOffsets: [0, 2, 3], keyOffsets: [0, 6, 10],
        isCausal: true)),
    Case(
      name: "longer than a block",
      problem: Attention(heads: 1, headDim: 16, queryOffsets: [0, 70, 75], isCausal: true)),
  ]

  private func inputs(_ problem: Attention) -> (q: Parameter, k: Parameter, v: Parameter) {
    let keys = Int(problem.keyOffsets.last!)
    return (
      parameter([problem.tokens, problem.heads * problem.headDim]),
      parameter([keys, problem.kvHeads * problem.headDim], seed: 2),
      parameter([keys, problem.kvHeads * problem.headDim], seed: 3)
    )
  }

  /// softmax(scale·q·kᵀ)·v for each head, and zeros where a query sees no key.
  private func reference(
    _ problem: Attention, _ mask: [UInt8]?, _ q: [Double], _ k: [Double], _ v: [Double]
  ) -> [Double] {
    let d = problem.headDim
    var out = [Double](repeating: 0, count: q.count)
    for s in 0..<problem.queryOffsets.count - 1 {
      let queries = Int(problem.queryOffsets[s])..<Int(problem.queryOffsets[s + 1])
      let keys = Int(problem.keyOffsets[s])..<Int(problem.keyOffsets[s + 1])
      for (i, query) in queries.enumerated() {
        for head in 0..<problem.heads {
          let kv = head / (problem.heads / problem.kvHeads)
          var weights: [(key: Int, weight: Double)] = []
          for (j, key) in keys.enumerated() {
            if problem.isCausal, j > keys.count - queries.count + i { continue }
            if let mask, mask[key] == 0 { continue }
            var dot = 0.0
            for c in 0..<d {
              dot +=
                q[(query * problem.heads + head) * d + c] * k[(key * problem.kvHeads + kv) * d + c]
            }
            weights.append((key, exp(dot * Double(problem.scale))))
          }
          let total = weights.reduce(0) { $0 + $1.weight }
          for (key, weight) in weights {
            for c in 0..<d {
              out[(query * problem.heads + head) * d + c] +=
                weight / total * v[(key * problem.kvHeads + kv) * d + c]
            }
          }
        }
      }
    }
    return out
  }

  @Test(arguments: cases)
  func followsItsFormula(_ test: Case) {
    let (q, k, v) = inputs(test.problem)
    let expected = reference(
      test.problem, test.mask, q.value.doubles, k.value.doubles, v.value.doubles)
    let actual = attention(q.value, k.value, v.value, test.problem, keyMask: test.mask)
    #expect(error(actual, expected) < 1e-5)
    let check = GradientCheck([q, k, v], elements: 24) {
      attention(q.tensor, k.tensor, v.tensor, test.problem, keyMask: test.mask)
    }
    #expect(check.maximumError < 5e-3)
    for trainable in [q, k, v] {
      for other in [q, k, v] { other.isTrainable = other === trainable }
      let single = GradientCheck([trainable], elements: 8) {
        attention(q.tensor, k.tensor, v.tensor, test.problem, keyMask: test.mask)
      }
      #expect(single.maximumError < 5e-3)
    }
  }

  @Test func dropoutOfWeightsIsUnbiasedAndDifferentiable() {
    var problem = Attention(heads: 2, headDim: 4, queryOffsets: [0, 6, 9], isCausal: true)
    let (q, k, v) = inputs(problem)
    let plain = attention(q.value, k.value, v.value, problem)
    problem.dropout = 0.4
    problem.seed = 11
    let once = attention(q.value, k.value, v.value, problem)
    #expect(once.scalars == attention(q.value, k.value, v.value, problem).scalars)
    #expect(once.scalars != plain.scalars)
    let check = GradientCheck([q, k, v]) { attention(q.tensor, k.tensor, v.tensor, problem) }
    #expect(check.maximumError < 5e-3)
    // The mean over many masks: weights have a deviation of at most √(0.4/0.6), values are below 1,
    // so a mean of 2,000 has a standard error below 0.02.
    var mean = [Double](repeating: 0, count: plain.count)
    for stream in 0..<2000 {
      problem.stream = UInt64(stream)
      let sample = attention(q.value, k.value, v.value, problem).doubles
      for i in mean.indices { mean[i] += sample[i] / 2000 }
    }
    let difference = zip(mean, plain.doubles).map { abs($0 - $1) }.max()!
    #expect(difference < 0.1)
  }

  @Test(arguments: [(1, 1, 2), (3, 2, 4), (5, 3, 10)])
  func rotaryTurnsPairs(_ tokens: Int, _ heads: Int, _ headDim: Int) {
    let x = parameter([tokens, heads * headDim])
    let half = headDim / 2
    let angles = (0..<tokens * half).map { Double($0) * 0.37 + 0.1 }
    let cosines = Tensor(shape: [tokens, half], scalars: angles.map { Float(cos($0)) })
    let sines = Tensor(shape: [tokens, half], scalars: angles.map { Float(sin($0)) })
    func run(_ x: Tensor) -> Tensor { rotary(x, cosines: cosines, sines: sines, headDim: headDim) }
    let values = x.value.doubles
    var expected = values
    for token in 0..<tokens {
      for head in 0..<heads {
        let start = (token * heads + head) * headDim
        for i in 0..<half {
          let angle = angles[token * half + i]
          let (a, b) = (values[start + i], values[start + half + i])
          expected[start + i] = a * cos(angle) - b * sin(angle)
          expected[start + half + i] = b * cos(angle) + a * sin(angle)
        }
      }
    }
    #expect(error(run(x.value), expected) < 1e-6)
    #expect(x.value.doubles == values)
    #expect(GradientCheck([x]) { run(x.tensor) * run(x.tensor) }.maximumError < 2e-3)
  }
}
