import NN
import Tensors

/// Token ids of a batch, packed: the sequences stand one after the other.
public struct TokenBatch: Sendable {
  /// One id for each row.
  public var tokenIDs: [Int32]
  /// Segment of each row, for encoders that know segments; `nil` is segment 0 everywhere.
  public var tokenTypeIDs: [Int32]?
  /// Which rows form which sequence.
  public var layout: SequenceLayout

  /// Creates a batch.
  public init(tokenIDs: [Int32], tokenTypeIDs: [Int32]? = nil, layout: SequenceLayout) {
    precondition(tokenIDs.count == layout.rows)
    precondition(tokenTypeIDs.map { $0.count == layout.rows } ?? true)
    self.tokenIDs = tokenIDs
    self.tokenTypeIDs = tokenTypeIDs
    self.layout = layout
  }

  /// Packs sequences.
  public init(_ sequences: [[Int32]], tokenTypeIDs: [[Int32]]? = nil) {
    self.init(
      tokenIDs: sequences.flatMap { $0 }, tokenTypeIDs: tokenTypeIDs?.flatMap { $0 },
      layout: SequenceLayout(lengths: sequences.map(\.count)))
  }
}

/// A transformer with Hugging Face's structure and names.
public protocol TransformerModel: Module {
  /// The members of config.json that it was built from.
  var configuration: ModelConfiguration { get }
  /// The ranges that token ids, positions and segments must stay in.
  var inputLimits: InputLimits { get }

  /// The hidden states after the last layer, `[rows, hidden]`.
  func lastHiddenState(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor
}

/// A model that is a head on another one.
public protocol HeadedModel: TransformerModel {
  /// The model below the head.
  associatedtype Base: TransformerModel
  /// The model below the head.
  var base: Base { get }
}

extension HeadedModel {
  /// The members of config.json that it was built from.
  public var configuration: ModelConfiguration { base.configuration }
  /// What the model can take as input.
  public var inputLimits: InputLimits { base.inputLimits }

  /// The hidden states after the last layer, `[rows, hidden]`.
  public func lastHiddenState(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    base.lastHiddenState(batch, context)
  }
}

/// A model with one row of logits for each sequence.
public protocol SequenceClassifier: TransformerModel {
  /// Whether the class is read off the last row of a sequence, as decoders do, or the first.
  var readsLastToken: Bool { get }

  /// The logits, `[sequences, labels]`.
  func logits(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor
}

/// A model with logits for each token, that are a function of the token's hidden state.
public protocol TokenOutputModel: TransformerModel {
  /// The logits of rows of hidden states: `[rows, hidden]` to `[rows, outputs]`.
  func logits(fromHidden hidden: Tensor, _ context: ForwardContext) -> Tensor
}

extension TokenOutputModel {
  /// The logits of every token, `[rows, outputs]`.
  public func logits(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    logits(fromHidden: lastHiddenState(batch, context), context)
  }

  /// The logits of some tokens, `[rows.count, outputs]`; no others go through the output layer.
  public func logits(_ batch: TokenBatch, rows: [Int32], _ context: ForwardContext) -> Tensor {
    logits(fromHidden: lastHiddenState(batch, context).selectRows(rows), context)
  }
}

/// A model with a row of class logits for each token.
public protocol TokenClassifier: TokenOutputModel {}

/// A model with two logits for each token: that an answer begins there, and that it ends there.
public protocol QuestionAnswerer: TokenOutputModel {}

/// A model with a row of vocabulary logits for each token.
public protocol CausalLanguageModel: TokenOutputModel {
  /// An empty cache for so many sequences of at most `capacity` tokens.
  func makeCache(sequences: Int, capacity: Int) -> KeyValueCache
}
