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
    // Tasks: queries of one head, in blocks; heads that share keys together when each has few queries.
    let group = heads / kvHeads
    let shares =
      group > 1 && tokens * kvHeads <= sequences.count * kvHeads * 4
      && sequences.count * kvHeads >= Parallel.threadCount
    let (step, block) = (shares ? group : 1, 64)
    var tasks: [(sequence: Int, head: Int, first: Int)] = []
    for (index, sequence) in sequences.enumerated() {
      for first in stride(from: 0, to: sequence.queryCount, by: block) {
        for head in stride(from: 0, to: heads, by: step) { tasks.append((index, head, first)) }
      }
    }
    run(tasks.count, sequences) { index, scratch in
      let task = tasks[index]
      let sequence = sequences[task.sequence]
      withUnsafePointer(to: problem) { problem in
        pk_attention_forward(
          problem, sequence, task.head, step, task.first,
          min(task.first + block, sequence.queryCount), scratch)
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
    // One task for all heads that share keys, or with few of these one for each head, added up afterwards.
    let group = heads / kvHeads
    let whole = sequences.count * kvHeads >= Parallel.threadCount || group == 1
    let step = whole ? group : 1
    let parts = heads / step
    let longest = sequences.reduce(0) { max($0, $1.keyCount) }
    let partSize = longest * headDim
    let partial = MutableSlice<Float>(count: whole ? 0 : 2 * sequences.count * parts * partSize)
    let width = kvHeads * headDim
    run(sequences.count * parts, sequences) { index, scratch in
      let sequence = sequences[index / parts]
      let head = index % parts * step
      let column = sequence.key * width + head / group * headDim
      let own = partial.pointer + 2 * index * (whole ? 0 : partSize)
      withUnsafePointer(to: problem) { problem in
        pk_attention_backward(
          problem, sequence, head, step, whole ? dk.pointer + column : own,
          whole ? dv.pointer + column : own + partSize, whole ? width : headDim, scratch)
      }
    }
    guard !whole else { return }
    Parallel.forEach(sequences.count * kvHeads) { index in
      let sequence = sequences[index / kvHeads]
      let (kvHead, first) = (index % kvHeads, index / kvHeads * heads + index % kvHeads * group)
      for (which, gradient) in [dk, dv].enumerated() {
        for key in 0..<sequence.keyCount {
          let to = gradient.pointer + (sequence.key + key) * width + kvHead * headDim
          for part in 0..<group {
            let from = partial.pointer + (2 * (first + part) + which) * partSize + key * headDim
            if part == 0 {
              to.update(from: from, count: headDim)
            } else {
              pk_add(to, from, to, headDim)
            }
          }
        }
      }
    }
    withExtendedLifetime(partial) {}
  }

  // Spreads tasks over the threads in parts that have one scratch each.
  private func run(
    _ count: Int, _ sequences: [pk_sequence],
    _ body: (_ task: Int, _ scratch: UnsafeMutablePointer<Float>) -> Void
  ) {
    let longest = sequences.reduce(0) { max($0, $1.keyCount) }
    let work = sequences.reduce(0) { $0 + $1.queryCount * $1.keyCount } * heads * headDim
    let parts = min(Parallel.mostParts, count, max(1, work / 100_000))
    Parallel.forEach(parts) { part in
      withScratch(pk_attention_scratch(longest, headDim)) { scratch in
        for task in stride(from: part, to: count, by: parts) { body(task, scratch) }
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
      dout: nil, outMutable: nil, lseMutable: nil, dq: nil, tokens: tokens,
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
      dropoutOffset += UInt64(heads * ((keyCount + 3) / 4) * ((queryCount + 15) / 16) * 64)
    }
    return sequences
  }
}
