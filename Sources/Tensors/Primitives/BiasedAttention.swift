import BLASKernels

/// Attention between equally long sequences with a number added to each score.
///
/// The probabilities are kept, `[sequences, heads, queries, keys]`: meant for relative positions
/// and masks that ``attention(_:_:_:_:keyMask:)`` does not know.
public struct BiasedAttention: Sendable {
  /// Number of heads.
  public var heads: Int
  /// Number of sequences.
  public var sequences: Int
  /// Queries of each sequence.
  public var queries: Int
  /// Keys of each sequence.
  public var keys: Int
  /// Added to the scores, `[queries, keys]` for all or `[sequences · heads, queries, keys]`; −∞
  /// hides a key.
  public var bias: Tensor
  /// `[sequences · keys]`, 0 for keys that nobody sees.
  public var keyMask: [UInt8]?
  /// Chance of a probability to be zeroed, and which mask.
  public var dropout: (probability: Float, key: DropoutKey)?

  /// Describes the attention.
  public init(
    heads: Int, sequences: Int, queries: Int, keys: Int, bias: Tensor, keyMask: [UInt8]? = nil,
    dropout: (probability: Float, key: DropoutKey)? = nil
  ) {
    precondition(
      bias.count == queries * keys || bias.count == sequences * heads * queries * keys,
      "a bias \(bias.shape) for \(sequences)·\(heads) heads of \(queries)×\(keys)")
    self.heads = heads
    self.sequences = sequences
    self.queries = queries
    self.keys = keys
    self.bias = bias.detached
    self.keyMask = keyMask
    self.dropout = dropout
  }

  /// softmax(q·kᵀ/√headDim + bias)·v of every head.
  ///
  /// - Parameters:
  ///   - q: `[sequences · queries, heads · headDim]`.
  ///   - k: `[sequences · keys, heads · headDim]`.
  ///   - v: Like `k`.
  public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
    let width = q.columns
    precondition(q.rows == sequences * queries && k.rows == sequences * keys && k.shape == v.shape)
    let (qValue, kValue, vValue) = (q.detached, k.detached, v.detached)
    let shape = Shape(self, width: width)
    let probabilities = self.probabilities(qValue, kValue, shape)
    let used = dropped(probabilities)
    let output = Tensor.filled(q.shape) { out in
      shape.forEachSequence { s in
        shape.product(
          .no, .no, m: queries, n: shape.headDim, k: keys, .scores(used.slice, s),
          .rows(vValue.slice, s, keys), into: .rows(out, s, queries))
      }
    }
    return output.recorded(from: [q, k, v]) { gradient, sink in
      let scale = 1 / Float(shape.headDim).squareRoot()
      var scores = Tensor(uninitialized: probabilities.shape)
      var dv = Tensor(uninitialized: vValue.shape)
      let dy = gradient.slice
      scores.withMutableSlice { scores in
        dv.withMutableSlice { dv in
          shape.forEachSequence { s in
            shape.product(
              .yes, .no, m: keys, n: shape.headDim, k: queries, .scores(used.slice, s),
              .rows(dy, s, queries), into: .rows(dv, s, keys))
            shape.product(
              .no, .yes, m: queries, n: keys, k: shape.headDim, .rows(dy, s, queries),
              .rows(vValue.slice, s, keys), into: .scores(scores, s))
          }
        }
      }
      scores = dropped(scores)
      scores.withMutableSlice {
        Loss.softmaxBackward(
          rows: sequences * heads * queries, columns: keys, output: probabilities.slice,
          $0.readOnly, into: $0)
      }
      sink.add(dv, to: 2)
      if sink.needs(0) {
        sink.add(
          Tensor.filled(qValue.shape) { dq in
            shape.forEachSequence { s in
              shape.product(
                .no, .no, m: queries, n: shape.headDim, k: keys, alpha: scale,
                .scores(scores.slice, s), .rows(kValue.slice, s, keys), into: .rows(dq, s, queries))
            }
          }, to: 0)
      }
      if sink.needs(1) {
        sink.add(
          Tensor.filled(kValue.shape) { dk in
            shape.forEachSequence { s in
              shape.product(
                .yes, .no, m: keys, n: shape.headDim, k: queries, alpha: scale,
                .scores(scores.slice, s), .rows(qValue.slice, s, queries), into: .rows(dk, s, keys))
            }
          }, to: 1)
      }
    }
  }

  private func probabilities(_ q: Tensor, _ k: Tensor, _ shape: Shape) -> Tensor {
    Tensor.filled([sequences, heads, queries, keys]) { p in
      shape.forEachSequence { s in
        shape.product(
          .no, .yes, m: queries, n: keys, k: shape.headDim,
          alpha: 1 / Float(shape.headDim).squareRoot(), .rows(q.slice, s, queries),
          .rows(k.slice, s, keys), into: .scores(p, s))
      }
      let size = queries * keys
      for head in 0..<sequences * heads {
        let start = bias.count == size ? 0 : head * size
        VectorMath.axpy(
          1, bias.slice[start..<start + size], into: p[head * size..<(head + 1) * size])
      }
      if let keyMask {
        for s in 0..<sequences {
          let row = keyMask[s * keys..<(s + 1) * keys].map { $0 == 0 ? -Float.infinity : 0 }
          let place = p[s * heads * size..<(s + 1) * heads * size]
          Rows.addBias(
            rows: heads * queries, columns: keys, place.readOnly, Slice(row), into: place)
        }
      }
      Loss.softmax(rows: sequences * heads * queries, columns: keys, p.readOnly, into: p)
    }
  }

  private func dropped(_ values: Tensor) -> Tensor {
    guard let dropout else { return values }
    return Tensors.dropout(values, probability: dropout.probability, key: dropout.key)
  }

  /// Products over the heads of one sequence.
  private struct Shape: Sendable {
    let heads: Int
    let headDim: Int
    let width: Int
    let scoreSize: Int
    let sequences: Int

    init(_ attention: BiasedAttention, width: Int) {
      heads = attention.heads
      headDim = width / attention.heads
      self.width = width
      scoreSize = attention.queries * attention.keys
      sequences = attention.sequences
    }

    enum Source {
      case scores(Slice<Float>, Int)
      case rows(Slice<Float>, Int, Int)
    }

    enum Destination {
      case scores(MutableSlice<Float>, Int)
      case rows(MutableSlice<Float>, Int, Int)
    }

    func forEachSequence(_ body: (Int) -> Void) { for s in 0..<sequences { body(s) } }

    func product(
      _ ta: Transpose, _ tb: Transpose, m: Int, n: Int, k: Int, alpha: Float = 1, _ a: Source,
      _ b: Source, into c: Destination
    ) {
      func matrix(_ source: Source) -> (Slice<Float>, Int?, Int) {
        switch source {
        case .scores(let x, let s): return (x[(s * heads * scoreSize)...], nil, scoreSize)
        case .rows(let x, let s, let count): return (x[(s * count * width)...], width, headDim)
        }
      }
      let (a, lda, strideA) = matrix(a)
      let (b, ldb, strideB) = matrix(b)
      switch c {
      case .scores(let c, let s):
        BLAS.batchedGEMM(
          ta, tb, count: heads, m: m, n: n, k: k, alpha: alpha, a, lda: lda, strideA: strideA, b,
          ldb: ldb, strideB: strideB, into: c[(s * heads * scoreSize)...], strideC: scoreSize)
      case .rows(let c, let s, let count):
        BLAS.batchedGEMM(
          ta, tb, count: heads, m: m, n: n, k: k, alpha: alpha, a, lda: lda, strideA: strideA, b,
          ldb: ldb, strideB: strideB, into: c[(s * count * width)...], ldc: width,
          strideC: headDim)
      }
    }
  }
}
