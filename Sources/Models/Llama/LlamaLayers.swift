import NN
import PEFTSupport
import Tensors

/// Cosines and sines of the rows' positions.
typealias RotaryValues = (cosines: Tensor, sines: Tensor)

/// Attention and feed-forward network, each on the normalised input and added to it.
final class LlamaDecoderLayer: Module {
  let selfAttention: LlamaAttention
  let mlp: LlamaMLP
  let inputLayerNorm: RMSNorm
  let postAttentionLayerNorm: RMSNorm
  private let family: String

  init(_ shape: LlamaShape, index: Int, _ builder: ModuleBuilder) throws(PEFTError) {
    family = shape.family
    selfAttention = try LlamaAttention(shape, layer: index, builder["self_attn"])
    mlp = try LlamaMLP(shape, builder["mlp"])
    let norm = "\(shape.family)RMSNorm"
    inputLayerNorm = try builder.rmsNorm(
      "input_layernorm", shape.hidden, epsilon: shape.epsilon, typeName: norm)
    postAttentionLayerNorm = try builder.rmsNorm(
      "post_attention_layernorm", shape.hidden, epsilon: shape.epsilon, typeName: norm)
  }

  /// A layer with the same weights at another place.
  init(copying other: LlamaDecoderLayer, index: Int, path: String) {
    family = other.family
    selfAttention = LlamaAttention(
      copying: other.selfAttention, layer: index, path: "\(path).self_attn")
    mlp = LlamaMLP(copying: other.mlp)
    inputLayerNorm = other.inputLayerNorm.sharingParameters()
    postAttentionLayerNorm = other.postAttentionLayerNorm.sharingParameters()
  }

  func callAsFunction(
    _ x: Tensor, _ positions: RotaryValues, _ context: ForwardContext
  ) -> Tensor {
    let attended = x + selfAttention(inputLayerNorm(x, context), positions, context)
    return attended + mlp(postAttentionLayerNorm(attended, context), context)
  }

  var typeName: String { "\(family)DecoderLayer" }
  var children: [(name: String, module: any Module)] {
    [
      ("self_attn", selfAttention), ("mlp", mlp), ("input_layernorm", inputLayerNorm),
      ("post_attention_layernorm", postAttentionLayerNorm),
    ]
  }
}

/// Causal attention with rotary positions; several query heads may share a key-value head.
final class LlamaAttention: Module {
  let qProjection: Linear
  let kProjection: Linear
  let vProjection: Linear
  let oProjection: Linear
  private let dropout: Dropout
  private let layer: Int
  private let shape: LlamaShape

  init(_ shape: LlamaShape, layer: Int, _ builder: ModuleBuilder) throws(PEFTError) {
    self.shape = shape
    self.layer = layer
    let (queries, keys) = (shape.heads * shape.headDim, shape.keyValueHeads * shape.headDim)
    let bias = shape.queryKeyValueBias
    qProjection = try builder.linear("q_proj", shape.hidden, queries, bias: bias)
    kProjection = try builder.linear("k_proj", shape.hidden, keys, bias: bias)
    vProjection = try builder.linear("v_proj", shape.hidden, keys, bias: bias)
    oProjection = try builder.linear("o_proj", queries, shape.hidden, bias: shape.outputBias)
    dropout = builder.dropout("attention_dropout", shape.attentionDropout)
  }

  init(copying other: LlamaAttention, layer: Int, path: String) {
    shape = other.shape
    self.layer = layer
    qProjection = other.qProjection.sharingParameters()
    kProjection = other.kProjection.sharingParameters()
    vProjection = other.vProjection.sharingParameters()
    oProjection = other.oProjection.sharingParameters()
    dropout = other.dropout.atPath("\(path).attention_dropout")
  }

  func callAsFunction(
    _ x: Tensor, _ positions: RotaryValues, _ context: ForwardContext
  ) -> Tensor {
    let q = rotated(qProjection(x, context), positions)
    let k = rotated(kProjection(x, context), positions)
    let v = vProjection(x, context)
    let attended: Tensor
    if let cache = context.cache {
      attended = attendCached(q, k, v, cache, context.sequences)
    } else {
      attended = attention(
        q, k, v, context.sequences, heads: shape.heads, keyValueHeads: shape.keyValueHeads,
        causal: true, dropout: (dropout, context))
    }
    return oProjection(attended, context)
  }

  private func rotated(_ x: consuming Tensor, _ positions: RotaryValues) -> Tensor {
    rotary(x, cosines: positions.cosines, sines: positions.sines, headDim: shape.headDim)
  }

  /// Attention of new tokens to all tokens so far, sequence by sequence.
  private func attendCached(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, _ cache: KeyValueCache, _ sequences: SequenceLayout
  ) -> Tensor {
    var parts: [Tensor] = []
    for sequence in 0..<sequences.count {
      let range = sequences.range(sequence)
      let (keys, values) = cache.append(
        layer: layer, sequence: sequence, k: k.rowRange(range), v: v.rowRange(range))
      parts.append(
        attention(
          newest: q.rowRange(range), to: keys, values, heads: shape.heads,
          keyValueHeads: shape.keyValueHeads))
    }
    return parts.count == 1 ? parts[0] : Tensor.stackingRows(parts)
  }

  var typeName: String { "\(shape.family)Attention" }
  var children: [(name: String, module: any Module)] {
    [
      ("q_proj", qProjection), ("k_proj", kProjection), ("v_proj", vProjection),
      ("o_proj", oProjection),
    ]
  }
}

/// SwiGLU: down(silu(gate(x)) ∘ up(x)).
final class LlamaMLP: Module {
  let gateProjection: Linear
  let upProjection: Linear
  let downProjection: Linear
  private let family: String

  init(_ shape: LlamaShape, _ builder: ModuleBuilder) throws(PEFTError) {
    family = shape.family
    let bias = shape.feedForwardBias
    gateProjection = try builder.linear("gate_proj", shape.hidden, shape.intermediate, bias: bias)
    upProjection = try builder.linear("up_proj", shape.hidden, shape.intermediate, bias: bias)
    downProjection = try builder.linear("down_proj", shape.intermediate, shape.hidden, bias: bias)
  }

  init(copying other: LlamaMLP) {
    family = other.family
    gateProjection = other.gateProjection.sharingParameters()
    upProjection = other.upProjection.sharingParameters()
    downProjection = other.downProjection.sharingParameters()
  }

  func callAsFunction(_ x: Tensor, _ context: ForwardContext) -> Tensor {
    downProjection(
      swiGLU(gate: gateProjection(x, context), up: upProjection(x, context)), context)
  }

  var typeName: String { "\(family)MLP" }
  var children: [(name: String, module: any Module)] {
    [
      ("gate_proj", gateProjection), ("up_proj", upProjection), ("down_proj", downProjection),
      ("act_fn", Inert("SiLUActivation")),
    ]
  }
}
