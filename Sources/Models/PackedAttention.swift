import BLASKernels
import NN
import Tensors

/// Attention within the sequences of a layout, with scores scaled by 1/√headDim.
///
/// - Parameters:
///   - q: `[rows, heads·headDim]`.
///   - k: `[keyRows, keyValueHeads·headDim]`.
///   - v: Shape of k.
///   - sequences: Which rows belong together.
///   - heads: Query heads.
///   - keyValueHeads: Key and value heads.
///   - causal: Whether a row sees only rows up to its own.
///   - firstRowsOnly: Whether q has just the first row of each sequence.
///   - dropout: The site of dropout on the attention weights, and the pass.
func attention(
  _ q: Tensor, _ k: Tensor, _ v: Tensor, _ sequences: SequenceLayout, heads: Int,
  keyValueHeads: Int, causal: Bool, firstRowsOnly: Bool = false,
  dropout: (site: Dropout, context: ForwardContext)? = nil
) -> Tensor {
  var problem = Attention(
    heads: heads, kvHeads: keyValueHeads, headDim: q.columns / heads,
    queryOffsets: firstRowsOnly ? (0...Int32(sequences.count)).map { $0 } : sequences.offsets,
    keyOffsets: sequences.offsets, isCausal: causal)
  if let dropout, let key = dropout.site.key(dropout.context) {
    problem.dropout = Float(dropout.site.probability)
    problem.seed = key.seed
    problem.stream = key.stream
  }
  return Tensors.attention(q, k, v, problem, keyMask: sequences.keyMask)
}

/// Causal attention of one sequence's newest rows to all of its rows so far.
func attention(
  newest q: Tensor, to k: Tensor, _ v: Tensor, heads: Int, keyValueHeads: Int
) -> Tensor {
  Tensors.attention(
    q, k, v,
    Attention(
      heads: heads, kvHeads: keyValueHeads, headDim: q.columns / heads,
      queryOffsets: [0, Int32(q.rows)], keyOffsets: [0, Int32(k.rows)], isCausal: true))
}
