import NN
import PEFTSupport
import Tensors

/// Llama or Qwen2 with a classifier on the hidden state of the last token that is not padding.
public final class LlamaForSequenceClassification: HeadedModel, SequenceClassifier {
  /// The model below the head.
  public let base: LlamaModel
  let score: Linear
  private let family: String

  init(
    _ configuration: ModelConfiguration, _ shape: LlamaShape, labels: Int, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    family = shape.family
    base = try LlamaModel(configuration, shape, builder["model"])
    score = try builder.linear("score", shape.hidden, labels, bias: false)
  }

  /// Whether the classifier reads the last token's state instead of the first's.
  public var readsLastToken: Bool { true }

  /// The logits of a batch.
  public func logits(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    score(lastHiddenState(batch, context).selectRows(pooledRows(batch)), context)
  }

  /// The row of each sequence that decides: the last one whose token is not padding, whatever the
  /// mask says, and the first one where all are; as transformers finds it.
  private func pooledRows(_ batch: TokenBatch) -> [Int32] {
    guard let padding = base.paddingIndex.map(Int32.init(clamping:)) else {
      return batch.layout.lastRows
    }
    return (0..<batch.layout.count).map { sequence in
      let rows = batch.layout.range(sequence)
      return Int32(rows.last { batch.tokenIDs[$0] != padding } ?? rows.lowerBound)
    }
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "\(family)ForSequenceClassification" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [("model", base), ("score", score)]
  }
}

/// Llama or Qwen2 with a classifier on every token's hidden state.
public final class LlamaForTokenClassification: HeadedModel, TokenClassifier {
  /// The model below the head.
  public let base: LlamaModel
  let dropout: Dropout
  let score: Linear
  private let family: String

  init(
    _ configuration: ModelConfiguration, _ shape: LlamaShape, labels: Int, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    family = shape.family
    base = try LlamaModel(configuration, shape, builder["model"])
    let fallback = try configuration.probability("hidden_dropout", default: 0.1)
    dropout = builder.dropout(
      "dropout", try configuration.probability("classifier_dropout", default: fallback))
    score = try builder.linear(
      "score", shape.hidden, labels,
      bias: try configuration.bool("token_classification_bias", default: true))
  }

  /// The logits of rows of hidden states, `[rows, labels]`.
  public func logits(fromHidden hidden: Tensor, _ context: ForwardContext) -> Tensor {
    score(dropout(hidden, context), context)
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "\(family)ForTokenClassification" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [("model", base), ("dropout", dropout), ("score", score)]
  }
}

/// Llama or Qwen2 with the logits of an answer's first and last token.
public final class LlamaForQuestionAnswering: HeadedModel, QuestionAnswerer {
  /// The model below the head.
  public let base: LlamaModel
  let qaOutputs: Linear
  private let family: String

  init(
    _ configuration: ModelConfiguration, _ shape: LlamaShape, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    family = shape.family
    base = try LlamaModel(configuration, shape, builder["transformer"])
    qaOutputs = try builder.linear("qa_outputs", shape.hidden, 2, bias: true)
  }

  /// The logits of rows of hidden states, `[rows, 2]`.
  public func logits(fromHidden hidden: Tensor, _ context: ForwardContext) -> Tensor {
    qaOutputs(hidden, context)
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "\(family)ForQuestionAnswering" }
  /// The parts, with their attribute names; transformers calls the base differently here.
  public var children: [(name: String, module: any Module)] {
    [("transformer", base), ("qa_outputs", qaOutputs)]
  }
}

extension ModelFamily {
  static let llama = decoder("llama", "Llama")
  static let qwen2 = decoder("qwen2", "Qwen2")

  private static func decoder(_ modelType: String, _ family: String) -> ModelFamily {
    ModelFamily(
      modelType: modelType,
      basePrefix: { $0 == .questionAnswering ? "transformer" : "model" },
      outputHeads: { head in
        switch head {
        case .none, .seq2SeqLM: return []
        case .causalLM: return ["lm_head"]
        case .sequenceClassification, .tokenClassification: return ["score"]
        case .questionAnswering: return ["qa_outputs"]
        }
      },
      build: { configuration, head, builder throws(PEFTError) in
        let shape = try LlamaShape(configuration, family: family)
        switch head {
        case .none: return try LlamaModel(configuration, shape, builder)
        case .causalLM: return try LlamaForCausalLM(configuration, shape, builder)
        case .sequenceClassification(let labels):
          return try LlamaForSequenceClassification(
            configuration, shape, labels: labels, builder)
        case .tokenClassification(let labels):
          return try LlamaForTokenClassification(configuration, shape, labels: labels, builder)
        case .questionAnswering:
          return try LlamaForQuestionAnswering(configuration, shape, builder)
        case .seq2SeqLM:
          throw head.missing(
            "a \(family) decoder", at: configuration.path,
            heads: "CAUSAL_LM, SEQ_CLS, TOKEN_CLS, QUESTION_ANS or FEATURE_EXTRACTION")
        }
      })
  }
}
