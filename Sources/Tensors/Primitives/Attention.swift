import BLASKernels

/// Scaled dot-product attention over packed sequences.
///
/// Sequences stand one after the other without padding; no score matrix is kept, the backward
/// pass recomputes the scores from their log-sum-exp.
///
/// - Parameters:
///   - q: `[tokens, heads·headDim]`.
///   - k: `[keyTokens, kvHeads·headDim]`; `heads` is a multiple of `kvHeads`.
///   - v: `[keyTokens, kvHeads·headDim]`.
///   - problem: Heads, offsets of the sequences, causality and dropout.
///   - keyMask: `[keyTokens]`, 0 for keys that nobody sees; `nil` when all are seen.
/// - Returns: `[tokens, heads·headDim]`.
public func attention(
  _ q: Tensor, _ k: Tensor, _ v: Tensor, _ problem: Attention, keyMask: [UInt8]? = nil
) -> Tensor {
  let mask = keyMask.map { Slice($0) }
  let (qValue, kValue, vValue) = (q.detached, k.detached, v.detached)
  let tokens = q.rows
  var output = Tensor(uninitialized: q.shape)
  var logSumExp = Tensor(uninitialized: [problem.heads, tokens])
  output.withMutableSlice { out in
    logSumExp.withMutableSlice { lse in
      problem.forward(
        q: qValue.slice, k: kValue.slice, v: vValue.slice, keyMask: mask, into: out,
        logSumExp: lse)
    }
  }
  let (outputValue, lse) = (output, logSumExp)
  return output.recorded(from: [q, k, v]) { gradient, sink in
    var dq = Tensor(uninitialized: qValue.shape)
    var dk = Tensor(uninitialized: kValue.shape)
    var dv = Tensor(uninitialized: vValue.shape)
    dq.withMutableSlice { dq in
      dk.withMutableSlice { dk in
        dv.withMutableSlice { dv in
          problem.backward(
            q: qValue.slice, k: kValue.slice, v: vValue.slice, keyMask: mask,
            out: outputValue.slice, logSumExp: lse.slice, dOut: gradient.slice, dq: dq, dk: dk,
            dv: dv)
        }
      }
    }
    sink.add(dq, to: 0)
    sink.add(dk, to: 1)
    sink.add(dv, to: 2)
  }
}

/// Rotary position embedding with rotated halves, as Llama and Qwen2 have it.
///
/// x′ = x∘cos(t) + rotateHalf(x)∘sin(t), for each head.
///
/// - Parameters:
///   - x: `[tokens, heads·headDim]`.
///   - cosines: cos of position times frequency, `[tokens, headDim/2]`.
///   - sines: The same of sin.
///   - headDim: Width of a head, even.
/// - Returns: Shape of x.
public func rotary(_ x: consuming Tensor, cosines: Tensor, sines: Tensor, headDim: Int) -> Tensor {
  let (tokens, heads) = (x.rows, x.columns / headDim)
  precondition(cosines.shape == [tokens, headDim / 2] && sines.shape == cosines.shape)
  let node = x.node
  var output = x.withoutGraph()
  output.withMutableSlice {
    Rows.rotary(
      tokens: tokens, heads: heads, headDim: headDim, $0.readOnly, cosine: cosines.slice,
      sine: sines.slice, inverse: false, into: $0)
  }
  return output.recorded(fromNodes: [node]) { gradient, sink in
    gradient.withMutableSlice {
      Rows.rotary(
        tokens: tokens, heads: heads, headDim: headDim, $0.readOnly, cosine: cosines.slice,
        sine: sines.slice, inverse: true, into: $0)
    }
    sink.add(gradient, to: 0)
  }
}
