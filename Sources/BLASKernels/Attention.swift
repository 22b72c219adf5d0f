import CKernels

/// Attention over packed sequences, without a score matrix.
///
/// Rows of all sequences lie one after another without padding: q and the output are
/// `[tokens, heads · headDim]`, k and v `[keyTokens, kvHeads · headDim]`; with fewer key-value heads, `heads / kvHeads`
/// query heads share one. Query i of a sequence with Q queries and K keys stands at position K − Q + i, so queries
/// are the last rows of their sequence: K > Q with a key-value cache.
public struct Attention: Sendable {
  /// Query heads.
  public var heads: Int
  /// Key and value heads, a divisor of `heads`.
  public var kvHeads: Int
  /// A head's width.
  public var headDim: Int
  /// Where each sequence's queries start, and the end: one more than there are sequences.
  public var queryOffsets: [Int32]
  /// Where each sequence's keys and values start, and the end.
  public var keyOffsets: [Int32]
  /// The number of keys of each sequence, where it is less than the distance to the next: a cache with room.
  public var keyCounts: [Int32]?
  /// Whether a query sees keys up to its own position only.
  public var isCausal: Bool
  /// Multiplies the scores.
  public var scale: Float
  /// The probability of dropping an attention weight.
  public var dropout: Float = 0
  /// The seed of the dropout.
  public var seed: UInt64 = 0
  /// The stream of the dropout; one for each layer and step.
  public var stream: UInt64 = 0

  /// An attention problem.
  ///
  /// `keyOffsets` are `queryOffsets`, `kvHeads` are `heads` and the scale is 1 / √headDim unless given.
  public init(
    heads: Int, kvHeads: Int? = nil, headDim: Int, queryOffsets: [Int32],
    keyOffsets: [Int32]? = nil, keyCounts: [Int32]? = nil, isCausal: Bool, scale: Float? = nil
  ) {
    self.heads = heads
    self.kvHeads = kvHeads ?? heads
    self.headDim = headDim
    self.queryOffsets = queryOffsets
    self.keyOffsets = keyOffsets ?? queryOffsets
    self.keyCounts = keyCounts
    self.isCausal = isCausal
    self.scale = scale ?? 1 / Float(headDim).squareRoot()
  }

  /// out = softmax(scale q kᵀ + mask) v of every head and sequence.
  ///
  /// - Parameters:
  ///   - q: `[tokens, heads · headDim]`.
  ///   - k: `[keyTokens, kvHeads · headDim]`.
  ///   - v: Like `k`.
  ///   - keyMask: `[keyTokens]`, 0 for keys that nobody sees.
  ///   - out: Like `q`; a row that sees no key becomes 0. Must not overlap a source.
  ///   - logSumExp: `[heads, tokens]`: log Σ exp of the scores, −∞ for rows that see no key.
  public func forward(
    q: Slice<Float>, k: Slice<Float>, v: Slice<Float>, keyMask: Slice<UInt8>? = nil,
    into out: MutableSlice<Float>, logSumExp: MutableSlice<Float>
  ) {
    let sequences = checkedSequences(q.count, k.count, v.count, keyMask?.count)
    precondition(out.count == q.count, "the output has another size")
    precondition(logSumExp.count == heads * tokens, "logSumExp has another size")
    var problem = problem(q, k, v, keyMask)
    problem.outMutable = out.pointer
    problem.lseMutable = logSumExp.pointer
    let block = 32
    var tasks: [(sequence: Int, head: Int, first: Int)] = []
    for (index, sequence) in sequences.enumerated() {
      for head in 0..<heads {
        for first in stride(from: 0, to: sequence.queryCount, by: block) {
          tasks.append((index, head, first))
        }
      }
    }
    withUnsafePointer(to: problem) { problem in
      Parallel.forEach(tasks.count) { index in
        let task = tasks[index]
        let sequence = sequences[task.sequence]
        let last = min(task.first + block, sequence.queryCount)
        withScratch(sequence.keyCount + 64) { scratch in
          pk_attention_forward(problem, sequence, task.head, task.first, last, scratch)
        }
      }
    }
  }

  /// The gradients of ``forward(q:k:v:keyMask:into:logSumExp:)``; scores are computed again, block by block.
  ///
  /// - Parameters:
  ///   - q: As in the forward.
  ///   - k: As in the forward.
  ///   - v: As in the forward.
  ///   - keyMask: As in the forward.
  ///   - out: What the forward wrote.
  ///   - logSumExp: What the forward wrote.
  ///   - dOut: The gradient of `out`.
  ///   - dq: Like `q`; overwritten. Gradients must not overlap sources or each other.
  ///   - dk: Like `k`; overwritten.
  ///   - dv: Like `v`; overwritten.
  public func backward(
    q: Slice<Float>, k: Slice<Float>, v: Slice<Float>, keyMask: Slice<UInt8>? = nil,
    out: Slice<Float>, logSumExp: Slice<Float>, dOut: Slice<Float>,
    dq: MutableSlice<Float>, dk: MutableSlice<Float>, dv: MutableSlice<Float>
  ) {
    let sequences = checkedSequences(q.count, k.count, v.count, keyMask?.count)
    precondition(
      out.count == q.count && dOut.count == q.count && dq.count == q.count && dk.count == k.count
        && dv.count == v.count, "a gradient has another size")
    precondition(logSumExp.count == heads * tokens, "logSumExp has another size")
    var problem = problem(q, k, v, keyMask)
    problem.out = out.pointer
    problem.lse = logSumExp.pointer
    problem.dout = dOut.pointer
    problem.dq = dq.pointer
    problem.dk = dk.pointer
    problem.dv = dv.pointer
    withUnsafePointer(to: problem) { problem in
      Parallel.forEach(sequences.count * kvHeads) { index in
        let sequence = sequences[index / kvHeads]
        withScratch(2 * (sequence.keyCount + 64)) { scratch in
          pk_attention_backward(problem, sequence, index % kvHeads, scratch)
        }
      }
    }
  }

  /// The number of query rows.
  public var tokens: Int { Int(queryOffsets.last ?? 0) }

  private func problem(
    _ q: Slice<Float>, _ k: Slice<Float>, _ v: Slice<Float>, _ keyMask: Slice<UInt8>?
  ) -> pk_attention {
    pk_attention(
      q: q.pointer, k: k.pointer, v: v.pointer, keyMask: keyMask?.pointer, out: nil, lse: nil,
      dout: nil, outMutable: nil, lseMutable: nil, dq: nil, dk: nil, dv: nil, tokens: tokens,
      heads: heads, kvHeads: kvHeads, headDim: headDim, ldq: heads * headDim,
      ldk: kvHeads * headDim, ldv: kvHeads * headDim, ldo: heads * headDim, scale: scale,
      causal: isCausal, dropout: dropout, random: pk_random(seed: seed, stream: stream))
  }

  private func checkedSequences(
    _ qCount: Int, _ kCount: Int, _ vCount: Int, _ maskCount: Int?
  ) -> [pk_sequence] {
    precondition(kvHeads > 0 && heads % kvHeads == 0, "kvHeads must divide heads")
    precondition(queryOffsets.count == keyOffsets.count, "as many key as query offsets")
    precondition(keyCounts == nil || keyCounts!.count + 1 == keyOffsets.count, "key counts")
    let keyTokens = Int(keyOffsets.last ?? 0)
    precondition(
      qCount == tokens * heads * headDim && kCount >= keyTokens * kvHeads * headDim
        && vCount == kCount && maskCount ?? keyTokens >= keyTokens, "a matrix has another size")
    var sequences: [pk_sequence] = []
    var dropoutOffset: UInt64 = 0
    for i in 0..<max(queryOffsets.count - 1, 0) {
      let (query, key) = (Int(queryOffsets[i]), Int(keyOffsets[i]))
      let queryCount = Int(queryOffsets[i + 1]) - query
      let room = Int(keyOffsets[i + 1]) - key
      let keyCount = keyCounts.map { Int($0[i]) } ?? room
      precondition(
        queryCount >= 0 && keyCount <= room && keyCount >= (isCausal ? queryCount : 0),
        "offsets fall, or there are fewer keys than queries")
      sequences.append(
        pk_sequence(
          query: query, queryCount: queryCount, key: key, keyCount: keyCount,
          dropoutOffset: dropoutOffset))
      dropoutOffset += UInt64(heads * queryCount * ((keyCount + 63) / 64 * 64))
    }
    return sequences
  }
}
