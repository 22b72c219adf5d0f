import PEFT

/// What a model makes of a few fixed tokens, to compare two models.
struct MergeProbe {
  /// Logits, or hidden states of a model without a head.
  let output: Tensor
  /// "logit" or "hidden state".
  let quantity: String

  /// Runs a model on two short sequences of tokens spread over the vocabulary.
  init(_ model: any TransformerModel) throws(PEFTError) {
    let limits = model.inputLimits
    let length = min(12, limits.positions ?? 12)
    let sequences = [length, (length + 1) / 2].map { count in
      (0..<count).map { Int32((1 + $0 * 7919 + count) % limits.vocabulary) }
    }
    let batch = TokenBatch(sequences)
    let context = ForwardContext(batch.layout)
    (output, quantity) = withoutGradients {
      switch model {
      case let model as any SequenceClassifier: return (model.logits(batch, context), "logit")
      case let model as any TokenOutputModel: return (model.logits(batch, context), "logit")
      default: return (model.lastHiddenState(batch, context), "hidden state")
      }
    }
  }

  /// The largest absolute difference.
  func difference(from other: MergeProbe) -> Double {
    zip(output.scalars, other.output.scalars).reduce(0) {
      max($0, abs(Double($1.0) - Double($1.1)))
    }
  }
}
