import BenchClock
import PEFT

extension AdaptedModel {
  /// Training steps, forward passes and decoded tokens of every method on the one model, by turns.
  func turns() throws -> [(String, JSONValue)] {
    for method in settings.methodNames { try add(method) }
    let batch = Batch(settings)
    var result = [
      ("training_step_seconds", try trainingSteps(batch)),
      ("forward_seconds", try forwardPasses(batch)),
    ]
    if settings.decode > 0, let language = loaded.model as? any CausalLanguageModel {
      let prompt = Array(batch.tokens.tokenIDs.prefix(16))
      result.append(("decode_token_seconds", try decodedTokens(language, after: prompt)))
    }
    return result + [("rows", .int(settings.rows))]
  }

  /// Adds a method's adapter, away from the start, where B is zero.
  private func add(_ method: String) throws {
    let members: Members = ["edora", "lora-xs"].contains(method) ? Self.randomFactors : [:]
    try model.add(method, any: config(method, adding: members), seed: 1)
    for (index, tensor) in try model.tensors(of: method).enumerated()
    where tensor.key.contains("lora_") && tensor.parameter.value.sumOfSquares == 0 {
      let key = DropoutKey(seed: 7, stream: UInt64(index))
      tensor.parameter.assign(.normal(tensor.parameter.shape, deviation: 0.01, key: key))
    }
  }

  /// The seconds of what each method does in each round after the first; every other round goes through the
  /// methods backwards.
  private func times(
    rounds: Int, _ body: (_ method: String, _ round: Int) throws -> Double
  ) throws -> JSONValue {
    let methods = settings.methodNames
    var seconds: [String: [JSONValue]] = [:]
    for round in 0...rounds {
      for method in round % 2 == 0 ? methods : methods.reversed() {
        try model.setActive([method])
        let time = try body(method, round)
        if round > 0 { seconds[method, default: []].append(.double(time)) }
      }
    }
    return .object(JSONObject(methods.map { ($0, .array(seconds[$0] ?? [])) }))
  }

  private func trainingSteps(_ batch: Batch) throws -> JSONValue {
    var optimizers: [String: AdamW] = [:]
    return try times(rounds: settings.rounds) { method, round in
      let optimizer = optimizers[method] ?? AdamW(model.trainableTensors)
      optimizers[method] = optimizer
      return try clock.measure {
        var context = ForwardContext(batch.tokens.layout)
        context.dropoutSeed = UInt64(round)
        let logits = try logits(batch, context)
        optimizer.update(try crossEntropy(logits, labels: batch.labels).backward())
      }
    }
  }

  private func forwardPasses(_ batch: Batch) throws -> JSONValue {
    try times(rounds: settings.rounds) { _, _ in
      try withoutGradients {
        let context = ForwardContext(batch.tokens.layout)
        return try clock.measure {
          // Of a language model only the hidden states: an output layer would cover the difference.
          if let model = loaded.model as? any CausalLanguageModel {
            _ = model.lastHiddenState(batch.tokens, context)
          } else {
            _ = try logits(batch, context)
          }
        }
      }
    }
  }

  private func decodedTokens(
    _ language: any CausalLanguageModel, after prompt: [Int32]
  ) throws -> JSONValue {
    try times(rounds: max(2, settings.rounds / 2)) { _, _ in
      let generation = try language.generation(
        [prompt], GenerationSettings(maxNewTokens: settings.decode + 1))
      let steps = generation.makeIterator()
      _ = steps.next()
      return clock.measure { while steps.next() != nil {} } / Double(settings.decode)
    }
  }

  private func logits(_ batch: Batch, _ context: ForwardContext) throws -> Tensor {
    switch loaded.model {
    case let model as any CausalLanguageModel: return model.logits(batch.tokens, context)
    case let model as any SequenceClassifier: return model.logits(batch.tokens, context)
    default: throw PEFTError(.unsupported, "has no such head", at: settings.folder)
    }
  }
}

/// A row of tokens and its next ones, or questions as banking77 has them, of 4 to 30 tokens, and their classes.
struct Batch {
  let tokens: TokenBatch
  let labels: [Int32]

  init(_ settings: Settings) {
    var sequences: [[Int32]] = []
    var left = settings.rows
    while left > 0 {
      let place = sequences.count
      let length = settings.task == .causal ? left : min(4 + (place * 7) % 27, left)
      sequences.append((0..<length).map { Int32(($0 * 7919 + place * 104_729) % 20_000 + 1000) })
      left -= length
    }
    tokens = TokenBatch(sequences)
    switch settings.task {
    case .causal: labels = sequences.flatMap { $0.dropFirst() + [ignoredLabel] }
    case .classify: labels = sequences.indices.map { Int32($0 % 77) }
    }
  }
}
