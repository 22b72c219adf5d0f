import NN
import PEFTSupport
import Tensors

/// BERT with a classifier on the pooled state.
public final class BertForSequenceClassification: HeadedModel, SequenceClassifier {
  /// The model below the head.
  public let base: BertModel
  let dropout: Dropout
  let classifier: Linear

  init(
    _ configuration: ModelConfiguration, _ shape: BertShape, labels: Int, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    base = try BertModel(configuration, shape, builder["bert"])
    dropout = builder.dropout("dropout", shape.classifierDropout)
    classifier = try builder.linear("classifier", shape.hidden, labels, bias: true)
  }

  /// Whether the classifier reads the last token's state instead of the first's.
  public var readsLastToken: Bool { false }

  /// The logits of a batch.
  public func logits(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    classifier(dropout(base.pooled(batch, context), context), context)
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "BertForSequenceClassification" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [("bert", base), ("dropout", dropout), ("classifier", classifier)]
  }
}

/// BERT without a pooler, with a classifier on every token's hidden state.
public final class BertForTokenClassification: HeadedModel, TokenClassifier {
  /// The model below the head.
  public let base: BertModel
  let dropout: Dropout
  let classifier: Linear

  init(
    _ configuration: ModelConfiguration, _ shape: BertShape, labels: Int, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    base = try BertModel(configuration, shape, builder["bert"], hasPooler: false)
    dropout = builder.dropout("dropout", shape.classifierDropout)
    classifier = try builder.linear("classifier", shape.hidden, labels, bias: true)
  }

  /// The logits of rows of hidden states, `[rows, labels]`.
  public func logits(fromHidden hidden: Tensor, _ context: ForwardContext) -> Tensor {
    classifier(dropout(hidden, context), context)
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "BertForTokenClassification" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [("bert", base), ("dropout", dropout), ("classifier", classifier)]
  }
}

/// BERT without a pooler, with the logits of an answer's first and last token.
public final class BertForQuestionAnswering: HeadedModel, QuestionAnswerer {
  /// The model below the head.
  public let base: BertModel
  let qaOutputs: Linear

  init(
    _ configuration: ModelConfiguration, _ shape: BertShape, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    base = try BertModel(configuration, shape, builder["bert"], hasPooler: false)
    qaOutputs = try builder.linear("qa_outputs", shape.hidden, 2, bias: true)
  }

  /// The logits of rows of hidden states, `[rows, 2]`.
  public func logits(fromHidden hidden: Tensor, _ context: ForwardContext) -> Tensor {
    qaOutputs(hidden, context)
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "BertForQuestionAnswering" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    [("bert", base), ("qa_outputs", qaOutputs)]
  }
}

extension ModelFamily {
  static let bert = ModelFamily(
    modelType: "bert", basePrefix: { _ in "bert" },
    outputHeads: { head in
      switch head {
      case .sequenceClassification, .tokenClassification: return ["classifier"]
      case .questionAnswering: return ["qa_outputs"]
      default: return []
      }
    },
    build: { configuration, head, builder throws(PEFTError) in
      let shape = try BertShape(configuration)
      switch head {
      case .none: return try BertModel(configuration, shape, builder)
      case .sequenceClassification(let labels):
        return try BertForSequenceClassification(configuration, shape, labels: labels, builder)
      case .tokenClassification(let labels):
        return try BertForTokenClassification(configuration, shape, labels: labels, builder)
      case .questionAnswering:
        return try BertForQuestionAnswering(configuration, shape, builder)
      case .causalLM, .seq2SeqLM:
        throw head.missing(
          "a BERT encoder", at: configuration.path,
          heads: "SEQ_CLS, TOKEN_CLS, QUESTION_ANS or FEATURE_EXTRACTION")
      }
    })
}
