import NN
import PEFTSupport
import Tensors

/// The numbers of a BERT model.
struct BertShape {
  let vocabulary: Int
  let hidden: Int
  let layers: Int
  let heads: Int
  let intermediate: Int
  let positions: Int
  let types: Int
  let epsilon: Double
  let hiddenDropout: Double
  let attentionDropout: Double
  let classifierDropout: Double
  let activation: Activation
  let paddingIndex: Int?

  init(_ configuration: ModelConfiguration) throws(PEFTError) {
    vocabulary = try configuration.int("vocab_size", default: 30522)
    hidden = try configuration.int("hidden_size", default: 768)
    layers = try configuration.int("num_hidden_layers", default: 12)
    heads = try configuration.int("num_attention_heads", default: 12)
    intermediate = try configuration.int("intermediate_size", default: 3072)
    positions = try configuration.int("max_position_embeddings", default: 512)
    types = try configuration.int("type_vocab_size", default: 2)
    epsilon = try configuration.double("layer_norm_eps", default: 1e-12)
    hiddenDropout = try configuration.probability("hidden_dropout_prob", default: 0.1)
    attentionDropout = try configuration.probability("attention_probs_dropout_prob", default: 0.1)
    classifierDropout = try configuration.probability("classifier_dropout", default: hiddenDropout)
    paddingIndex = try configuration.optionalInt("pad_token_id") ?? 0
    let name = try configuration.string("hidden_act", default: "gelu")
    guard let activation = Activation(rawValue: name) else {
      throw configuration.unsupported("hidden_act", "'\(name)'")
    }
    self.activation = activation
    let kind = try configuration.string("position_embedding_type", default: "absolute")
    if kind != "absolute" {
      throw configuration.unsupported("position_embedding_type", "'\(kind)'")
    }
    if try configuration.bool("is_decoder", default: false) {
      throw configuration.unsupported("is_decoder", "true")
    }
    guard hidden % heads == 0 else {
      throw PEFTError(
        .invalidConfiguration,
        "'hidden_size' \(hidden) is not a multiple of 'num_attention_heads' \(heads)",
        at: configuration.path)
    }
  }
}

/// BERT (Devlin et al., arXiv 1810.04805): a bidirectional encoder with post-norm layers.
public final class BertModel: TransformerModel {
  /// The members of config.json that it was built from.
  public let configuration: ModelConfiguration
  let embeddings: BertEmbeddings
  let encoder: BertEncoder
  /// The pooler; models with a head on every token have none.
  let pooler: BertPooler?

  init(
    _ configuration: ModelConfiguration, _ shape: BertShape, _ builder: ModuleBuilder,
    hasPooler: Bool = true
  ) throws(PEFTError) {
    self.configuration = configuration
    embeddings = try BertEmbeddings(shape, builder["embeddings"])
    encoder = try BertEncoder(shape, builder["encoder"])
    pooler = hasPooler ? try BertPooler(shape, builder["pooler"]) : nil
  }

  /// What the model can take as input.
  public var inputLimits: InputLimits {
    InputLimits(
      vocabulary: embeddings.wordEmbeddings.count, positions: embeddings.positionEmbeddings.count,
      positionsAreTable: true, tokenTypes: embeddings.tokenTypeEmbeddings.count)
  }

  /// The hidden states after the last layer, `[rows, hidden]`.
  public func lastHiddenState(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    encoder(embeddings(batch, context), firstRowsOnly: false, context)
  }

  /// The pooled state of each sequence, `[sequences, hidden]`: tanh of a linear map of the first
  /// token's hidden state.
  func pooled(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    let first = encoder(embeddings(batch, context), firstRowsOnly: true, context)
    return pooler.map { $0(first, context) } ?? first
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "BertModel" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [("embeddings", embeddings), ("encoder", encoder)]
      + (pooler.map { [("pooler", $0)] } ?? [])
  }
}
