import NN
import PEFTSupport
import Tensors

/// Llama (Touvron et al., arXiv 2302.13971) and Qwen2: a decoder with RMS norms, rotary positions,
/// grouped-query attention and SwiGLU.
public final class LlamaModel: TransformerModel, ReplicatesLayers {
  /// The members of config.json that it was built from.
  public let configuration: ModelConfiguration
  let embedTokens: Embedding
  let layers: ModuleList<LlamaDecoderLayer>
  let norm: RMSNorm
  private let shape: LlamaShape
  private let path: String

  init(
    _ configuration: ModelConfiguration, _ shape: LlamaShape, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    self.configuration = configuration
    self.shape = shape
    path = builder.path
    embedTokens = try builder.embedding(
      "embed_tokens", shape.vocabulary, shape.hidden, paddingIndex: shape.paddingIndex)
    var layers: [LlamaDecoderLayer] = []
    for index in 0..<shape.layers {
      layers.append(
        try LlamaDecoderLayer(shape, index: index, builder["layers"]["\(index)"]))
    }
    self.layers = ModuleList(layers)
    norm = try builder.rmsNorm(
      "norm", shape.hidden, epsilon: shape.epsilon, typeName: "\(shape.family)RMSNorm")
  }

  /// The token that fills up batches, `pad_token_id`.
  var paddingIndex: Int? { shape.paddingIndex }

  /// Number of layers.
  public var layerCount: Int { layers.elements.count }

  /// Makes the stack of layers anew from its own layers, which share their weights.
  public func replicateLayers(_ sources: [Int]) -> () -> Void {
    let (list, before) = (layers, layers.elements)
    let prefix = path.isEmpty ? "layers" : "\(path).layers"
    list.elements = sources.enumerated().map { index, source in
      LlamaDecoderLayer(copying: before[source], index: index, path: "\(prefix).\(index)")
    }
    assignOwners(list.elements, sources: sources, originals: before)
    return { list.elements = before }
  }

  /// What the model can take as input.
  public var inputLimits: InputLimits {
    InputLimits(
      vocabulary: embedTokens.count, positions: shape.positions, positionsAreTable: false)
  }

  /// The hidden states after the last layer, `[rows, hidden]`.
  public func lastHiddenState(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    let positions = shape.rotary(batch.layout.positions)
    var x = embedTokens(batch.tokenIDs, context)
    for layer in layers.elements {
      if context.recomputesBlocks && context.isTraining {
        x = checkpoint([x]) { layer($0[0], positions, context) }
      } else {
        x = layer(x, positions, context)
      }
    }
    context.cache?.advance(by: (0..<batch.layout.count).map { batch.layout.range($0).count })
    return norm(x, context)
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "\(shape.family)Model" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [
      ("embed_tokens", embedTokens), ("layers", layers), ("norm", norm),
      ("rotary_emb", Inert("\(shape.family)RotaryEmbedding")),
    ]
  }
}

/// Llama or Qwen2 with its output head, tied to the embedding or not.
public final class LlamaForCausalLM: HeadedModel, CausalLanguageModel {
  /// The model below the head.
  public let base: LlamaModel
  let lmHead: Linear
  private let family: String

  init(
    _ configuration: ModelConfiguration, _ shape: LlamaShape, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    family = shape.family
    base = try LlamaModel(configuration, shape, builder["model"])
    if shape.isTied {
      var parameters = base.embedTokens.parameters
      parameters.isTied = true
      lmHead = Linear(parameters, inputFeatures: shape.hidden, outputFeatures: shape.vocabulary)
    } else {
      lmHead = try builder.linear("lm_head", shape.hidden, shape.vocabulary, bias: false)
    }
  }

  /// An empty cache of keys and values for generation.
  public func makeCache(sequences: Int, capacity: Int) -> KeyValueCache {
    KeyValueCache(layers: base.layers.elements.count, sequences: sequences, capacity: capacity)
  }

  /// The logits of rows of hidden states, `[rows, vocabulary]`.
  public func logits(fromHidden hidden: Tensor, _ context: ForwardContext) -> Tensor {
    lmHead(hidden, context)
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "\(family)ForCausalLM" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [("model", base), ("lm_head", lmHead)]
  }
}
