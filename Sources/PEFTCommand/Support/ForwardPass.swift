import PEFT

/// What a model makes of an input.
struct ForwardPass {
  /// "logits" or "last_hidden_state".
  let outputName: String
  /// `[batch, labels]`, `[batch, tokens, vocabulary]` or `[batch, tokens, hidden]`.
  let output: Tensor
  /// The mean loss, when there are labels and the task has one.
  let loss: Tensor?

  /// Runs a model in evaluation mode: dropout is off.
  ///
  /// - Parameters:
  ///   - model: The model.
  ///   - input: The batch.
  ///   - adapters: The adapter of each row; `nil` uses the active ones everywhere.
  /// - Throws: ``PEFTError`` for an input that the model cannot take.
  init(
    _ model: any TransformerModel, _ input: ForwardInput, adapters: SequenceAdapters? = nil
  ) throws(PEFTError) {
    func context(_ batch: TokenBatch) -> ForwardContext {
      var context = ForwardContext(batch.layout)
      context.sequenceAdapters = adapters
      return context
    }
    switch model {
    case let model as any SequenceClassifier:
      self = try Self.classification(model, input, context)
    case let model as any CausalLanguageModel:
      self = try Self.languageModel(model, input, context)
    default:
      let batch = input.rectangle
      try Self.check(batch, model, input)
      let hidden = model.lastHiddenState(batch, context(batch))
      self.init(
        outputName: "last_hidden_state",
        output: hidden.reshaped([input.batch, input.width, hidden.columns]), loss: nil)
    }
  }

  private init(outputName: String, output: Tensor, loss: Tensor?) {
    self.outputName = outputName
    self.output = output
    self.loss = loss
  }

  private static func classification(
    _ model: any SequenceClassifier, _ input: ForwardInput,
    _ context: (TokenBatch) -> ForwardContext
  ) throws(PEFTError) -> ForwardPass {
    let padding = try model.configuration.optionalInt("pad_token_id")
    let batch = input.trimmed(paddingToken: model.readsLastToken ? padding.map(Int32.init) : nil)
    try check(batch, model, input)
    let logits = model.logits(batch, context(batch))
    var loss: Tensor?
    if let labels = try input.classLabels(logits.columns) {
      // One label is a regression, as in transformers.
      loss =
        logits.columns == 1
        ? meanSquaredError(logits, targets: labels.map(Float.init))
        : try crossEntropy(logits, labels: labels)
    }
    return ForwardPass(outputName: "logits", output: logits, loss: loss)
  }

  private static func languageModel(
    _ model: any CausalLanguageModel, _ input: ForwardInput,
    _ context: (TokenBatch) -> ForwardContext
  ) throws(PEFTError) -> ForwardPass {
    let batch = input.rectangle
    try check(batch, model, input)
    let logits = model.logits(batch, context(batch))
    var loss: Tensor?
    if let labels = try input.nextTokenLabels(logits.columns) {
      loss = try crossEntropy(logits, labels: labels)
    }
    return ForwardPass(
      outputName: "logits", output: logits.reshaped([input.batch, input.width, logits.columns]),
      loss: loss)
  }

  private static func check(
    _ batch: TokenBatch, _ model: any TransformerModel, _ input: ForwardInput
  ) throws(PEFTError) {
    do { try batch.check(model.inputLimits) } catch { throw error.located(at: input.path) }
  }
}
