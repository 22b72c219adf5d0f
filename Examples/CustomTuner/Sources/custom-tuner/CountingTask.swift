import PEFT

/// A task that a tiny model can get better at: sequences that count up in steps of three.
enum CountingTask {
  static let vocabulary = 48

  /// The model: a Llama of two layers with random weights.
  static let configuration = """
    {
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": \(vocabulary),
      "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
      "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
      "initializer_range": 0.3, "tie_word_embeddings": false
    }
    """

  /// Eight sequences of sixteen tokens.
  static func batch(_ step: Int) -> TokenBatch {
    TokenBatch(
      (0..<8).map { row in
        (0..<16).map { Int32((step * 5 + row * 7 + $0 * 3) % vocabulary) }
      })
  }

  /// Mean cross-entropy of the next token.
  static func loss(
    _ model: any CausalLanguageModel, _ batch: TokenBatch
  ) throws(PEFTError) -> Tensor {
    let labels = (0..<batch.layout.count).flatMap { sequence in
      batch.layout.range(sequence).dropFirst().map { batch.tokenIDs[$0] } + [ignoredLabel]
    }
    return try crossEntropy(model.logits(batch, ForwardContext(batch.layout)), labels: labels)
  }
}
