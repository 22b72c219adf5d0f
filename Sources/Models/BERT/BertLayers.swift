import NN
import PEFTSupport
import Tensors

/// Word, position and segment embeddings, normalised.
final class BertEmbeddings: Module {
  let wordEmbeddings: Embedding
  let positionEmbeddings: Embedding
  let tokenTypeEmbeddings: Embedding
  let layerNorm: LayerNorm
  let dropout: Dropout

  init(_ shape: BertShape, _ builder: ModuleBuilder) throws(PEFTError) {
    wordEmbeddings = try builder.embedding(
      "word_embeddings", shape.vocabulary, shape.hidden, paddingIndex: shape.paddingIndex)
    positionEmbeddings = try builder.embedding(
      "position_embeddings", shape.positions, shape.hidden)
    tokenTypeEmbeddings = try builder.embedding("token_type_embeddings", shape.types, shape.hidden)
    layerNorm = try builder.layerNorm("LayerNorm", shape.hidden, epsilon: shape.epsilon)
    dropout = builder.dropout("dropout", shape.hiddenDropout)
  }

  func callAsFunction(_ batch: TokenBatch, _ context: ForwardContext) -> Tensor {
    let types = batch.tokenTypeIDs ?? [Int32](repeating: 0, count: batch.tokenIDs.count)
    let sum =
      wordEmbeddings(batch.tokenIDs, context) + tokenTypeEmbeddings(types, context)
    let positions = positionEmbeddings(batch.layout.positions, context)
    return dropout(layerNorm(sum, residual: positions, context), context)
  }

  var typeName: String { "BertEmbeddings" }
  var children: [(name: String, module: any Module)] {
    [
      ("word_embeddings", wordEmbeddings), ("position_embeddings", positionEmbeddings),
      ("token_type_embeddings", tokenTypeEmbeddings), ("LayerNorm", layerNorm),
      ("dropout", dropout),
    ]
  }
}

/// The stack of layers.
final class BertEncoder: ReplicatesLayers {
  let layer: ModuleList<BertLayer>
  private let path: String

  init(_ shape: BertShape, _ builder: ModuleBuilder) throws(PEFTError) {
    path = builder.path
    var layers: [BertLayer] = []
    for index in 0..<shape.layers {
      layers.append(try BertLayer(shape, builder["layer"]["\(index)"]))
    }
    layer = ModuleList(layers)
  }

  var layerCount: Int { layer.elements.count }

  func replicateLayers(_ sources: [Int]) -> () -> Void {
    let (list, before) = (layer, layer.elements)
    list.elements = sources.enumerated().map { index, source in
      BertLayer(copying: before[source], path: "\(path).layer.\(index)")
    }
    assignOwners(list.elements, sources: sources, originals: before)
    return { list.elements = before }
  }

  /// Runs the layers.
  ///
  /// - Parameter firstRowsOnly: Whether only the first token of each sequence is wanted: then the
  ///   last layer computes keys and values for all tokens and the rest for those alone.
  func callAsFunction(
    _ x: Tensor, firstRowsOnly: Bool, _ context: ForwardContext
  ) -> Tensor {
    var x = x
    for (index, layer) in layer.elements.enumerated() {
      let firstOnly = firstRowsOnly && index == self.layer.elements.count - 1
      x =
        context.recomputesBlocks && context.isTraining
        ? checkpoint([x]) { layer($0[0], firstRowsOnly: firstOnly, context) }
        : layer(x, firstRowsOnly: firstOnly, context)
    }
    return x
  }

  var typeName: String { "BertEncoder" }
  var children: [(name: String, module: any Module)] { [("layer", layer)] }
}

/// Attention and feed-forward network, each followed by a residual sum and a norm.
final class BertLayer: Module {
  let attention: BertAttention
  let intermediate: BertIntermediate
  let output: BertOutput

  init(_ shape: BertShape, _ builder: ModuleBuilder) throws(PEFTError) {
    attention = try BertAttention(shape, builder["attention"])
    intermediate = try BertIntermediate(shape, builder["intermediate"])
    output = try BertOutput("BertOutput", shape.intermediate, shape, builder["output"])
  }

  /// A layer with the same weights at another place.
  init(copying other: BertLayer, path: String) {
    attention = BertAttention(copying: other.attention, path: "\(path).attention")
    intermediate = BertIntermediate(copying: other.intermediate)
    output = BertOutput(copying: other.output, path: "\(path).output")
  }

  func callAsFunction(
    _ x: Tensor, firstRowsOnly: Bool, _ context: ForwardContext
  ) -> Tensor {
    let attended = attention(x, firstRowsOnly: firstRowsOnly, context)
    return output(intermediate(attended, context), residual: attended, context)
  }

  var typeName: String { "BertLayer" }
  var children: [(name: String, module: any Module)] {
    [("attention", attention), ("intermediate", intermediate), ("output", output)]
  }
}

/// Self-attention with its output projection.
final class BertAttention: Module {
  let selfAttention: BertSelfAttention
  let output: BertOutput

  init(_ shape: BertShape, _ builder: ModuleBuilder) throws(PEFTError) {
    selfAttention = try BertSelfAttention(shape, builder["self"])
    output = try BertOutput("BertSelfOutput", shape.hidden, shape, builder["output"])
  }

  init(copying other: BertAttention, path: String) {
    selfAttention = BertSelfAttention(copying: other.selfAttention, path: "\(path).self")
    output = BertOutput(copying: other.output, path: "\(path).output")
  }

  func callAsFunction(
    _ x: Tensor, firstRowsOnly: Bool, _ context: ForwardContext
  ) -> Tensor {
    let queries = firstRowsOnly ? x.selectRows(context.sequences.firstRows) : x
    let attended = selfAttention(x, queries: queries, firstRowsOnly: firstRowsOnly, context)
    return output(attended, residual: queries, context)
  }

  var typeName: String { "BertAttention" }
  var children: [(name: String, module: any Module)] {
    [("self", selfAttention), ("output", output)]
  }
}

/// Multi-head attention of every token to every token of its sequence.
final class BertSelfAttention: Module {
  let query: Linear
  let key: Linear
  let value: Linear
  let dropout: Dropout
  private let heads: Int

  init(_ shape: BertShape, _ builder: ModuleBuilder) throws(PEFTError) {
    heads = shape.heads
    query = try builder.linear("query", shape.hidden, shape.hidden, bias: true)
    key = try builder.linear("key", shape.hidden, shape.hidden, bias: true)
    value = try builder.linear("value", shape.hidden, shape.hidden, bias: true)
    dropout = builder.dropout("dropout", shape.attentionDropout)
  }

  init(copying other: BertSelfAttention, path: String) {
    heads = other.heads
    query = other.query.sharingParameters()
    key = other.key.sharingParameters()
    value = other.value.sharingParameters()
    dropout = other.dropout.atPath("\(path).dropout")
  }

  func callAsFunction(
    _ x: Tensor, queries: Tensor, firstRowsOnly: Bool, _ context: ForwardContext
  ) -> Tensor {
    attention(
      query(queries, context), key(x, context), value(x, context), context.sequences,
      heads: heads, keyValueHeads: heads, causal: false, firstRowsOnly: firstRowsOnly,
      dropout: (dropout, context))
  }

  var typeName: String { "BertSelfAttention" }
  var children: [(name: String, module: any Module)] {
    [("query", query), ("key", key), ("value", value), ("dropout", dropout)]
  }
}

/// The first half of the feed-forward network.
final class BertIntermediate: Module {
  let dense: Linear
  private let activation: Activation

  init(_ shape: BertShape, _ builder: ModuleBuilder) throws(PEFTError) {
    dense = try builder.linear("dense", shape.hidden, shape.intermediate, bias: true)
    activation = shape.activation
  }

  init(copying other: BertIntermediate) {
    dense = other.dense.sharingParameters()
    activation = other.activation
  }

  func callAsFunction(_ x: Tensor, _ context: ForwardContext) -> Tensor {
    activation(dense(x, context))
  }

  var typeName: String { "BertIntermediate" }
  var children: [(name: String, module: any Module)] {
    [("dense", dense), ("intermediate_act_fn", activation.module)]
  }
}

/// A projection, dropout, the residual sum and a norm: the end of both halves of a layer.
final class BertOutput: Module {
  let dense: Linear
  let layerNorm: LayerNorm
  let dropout: Dropout
  let typeName: String

  init(
    _ typeName: String, _ inputs: Int, _ shape: BertShape, _ builder: ModuleBuilder
  ) throws(PEFTError) {
    self.typeName = typeName
    dense = try builder.linear("dense", inputs, shape.hidden, bias: true)
    layerNorm = try builder.layerNorm("LayerNorm", shape.hidden, epsilon: shape.epsilon)
    dropout = builder.dropout("dropout", shape.hiddenDropout)
  }

  init(copying other: BertOutput, path: String) {
    typeName = other.typeName
    dense = other.dense.sharingParameters()
    layerNorm = other.layerNorm.sharingParameters()
    dropout = other.dropout.atPath("\(path).dropout")
  }

  func callAsFunction(_ x: Tensor, residual: Tensor, _ context: ForwardContext) -> Tensor {
    layerNorm(dropout(dense(x, context), context), residual: residual, context)
  }

  var children: [(name: String, module: any Module)] {
    [("dense", dense), ("LayerNorm", layerNorm), ("dropout", dropout)]
  }
}

/// tanh of a linear map of the first token's state.
final class BertPooler: Module {
  let dense: Linear

  init(_ shape: BertShape, _ builder: ModuleBuilder) throws(PEFTError) {
    dense = try builder.linear("dense", shape.hidden, shape.hidden, bias: true)
  }

  func callAsFunction(_ x: Tensor, _ context: ForwardContext) -> Tensor {
    Activation.tanh(dense(x, context))
  }

  var typeName: String { "BertPooler" }
  var children: [(name: String, module: any Module)] {
    [("dense", dense), ("activation", Inert("Tanh"))]
  }
}
