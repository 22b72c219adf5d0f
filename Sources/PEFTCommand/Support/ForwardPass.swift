import PEFT

/// What a model makes of an input.
struct ForwardPass {
  /// "logits"; "start_logits" and "end_logits"; or "last_hidden_state". Shapes `[batch, labels]`,
  /// `[batch, tokens, classes]`, `[batch, tokens]` or `[batch, tokens, hidden]`.
  let outputs: [(name: String, value: Tensor)]
  /// The mean loss, when there are labels and the task has one.
  let loss: Tensor?

  /// Runs a model in evaluation mode: dropout is off.
  ///
  /// - Parameters:
  ///   - model: The model.
  ///   - input: The input.
  ///   - task: FEATURE_EXTRACTION gives hidden states whatever head the model has.
  ///   - adapters: The adapter of each row; `nil` uses the active ones everywhere.
  /// - Throws: ``PEFTError`` for an input that the model cannot take.
  init(
    _ model: any TransformerModel, _ input: ForwardInput, task: TaskType,
    adapters: SequenceAdapters? = nil
  ) throws(PEFTError) {
    func context(_ batch: TokenBatch) -> ForwardContext {
      var context = ForwardContext(batch.layout)
      context.sequenceAdapters = adapters
      return context
    }
    if let model = model as? any SequenceClassifier, task != .featureExtraction {
      self = try Self.classification(model, input, context)
      return
    }
    let batch = input.rectangle
    do { try batch.check(model.inputLimits) } catch { throw error.located(at: input.path) }
    let context = context(batch)
    guard task != .featureExtraction, let head = model as? any TokenOutputModel else {
      let hidden = model.lastHiddenState(batch, context)
      self.init([("last_hidden_state", Self.rectangle(hidden, input))], loss: nil)
      return
    }
    let logits = head.logits(batch, context)
    if head is any QuestionAnswerer {
      self.init(
        ["start_logits", "end_logits"].enumerated().map { column, name in
          let values = logits.scalars
          let part = (0..<logits.rows).map { values[2 * $0 + column] }
          return (name, Tensor(shape: [input.batch, input.width], scalars: part))
        },
        loss: input.answerRows.map {
          spanCrossEntropy(logits, offsets: batch.layout.offsets, starts: $0.starts, ends: $0.ends)
        })
      return
    }
    let labels =
      head is any CausalLanguageModel
      ? try input.nextTokenLabels(logits.columns) : try input.tokenLabels(logits.columns)
    var loss: Tensor?
    if let labels { loss = try crossEntropy(logits, labels: labels) }
    self.init([("logits", Self.rectangle(logits, input))], loss: loss)
  }

  private init(_ outputs: [(name: String, value: Tensor)], loss: Tensor?) {
    self.outputs = outputs
    self.loss = loss
  }

  private static func rectangle(_ rows: Tensor, _ input: ForwardInput) -> Tensor {
    rows.reshaped([input.batch, input.width, rows.columns])
  }

  private static func classification(
    _ model: any SequenceClassifier, _ input: ForwardInput,
    _ context: (TokenBatch) -> ForwardContext
  ) throws(PEFTError) -> ForwardPass {
    let configuration = model.configuration
    let padding = try configuration.optionalInt("pad_token_id").map(Int32.init(clamping:))
    let batch = input.trimmed(paddingToken: model.readsLastToken ? padding : nil)
    do { try batch.check(model.inputLimits) } catch { throw error.located(at: input.path) }
    let logits = model.logits(batch, context(batch))
    // As transformers decides where config.json does not: one number is a regression, and labels
    // that are no integers are several for each sequence.
    let implied: ProblemType =
      logits.columns == 1 ? .regression : input.targets == nil ? .singleLabel : .multiLabel
    var loss: Tensor?
    switch try configuration.problemType() ?? implied {
    case .singleLabel:
      if let labels = try input.classLabels(logits.columns) {
        loss = try crossEntropy(logits, labels: labels)
      }
    case .multiLabel:
      loss = try input.numbers(logits.columns).map { binaryCrossEntropy(logits, targets: $0) }
    case .regression:
      loss = try input.numbers(logits.columns).map { meanSquaredError(logits, targets: $0) }
    }
    return ForwardPass([("logits", logits)], loss: loss)
  }
}
