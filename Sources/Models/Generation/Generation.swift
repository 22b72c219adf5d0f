import BLASKernels
import NN
import PEFTSupport
import Tensors

/// A token that a generation produced.
public struct GeneratedToken: Sendable, Equatable {
  /// Which prompt it continues.
  public var sequence: Int
  /// The token.
  public var token: Int32
  /// Whether the sequence ends with it.
  public var isLast: Bool
}

/// Continuations of prompts, token by token: a sequence of steps, each with one token for every
/// prompt that is not finished.
///
/// The first step runs the model over all prompts (prefill), each further one over the newest
/// tokens only; the rest comes from a cache. Nothing is recorded for gradients.
///
/// ```swift
/// for step in try model.generation([ids], GenerationSettings(maxNewTokens: 100)) {
///   for token in step { print(decoder.append(token.token), terminator: "") }
/// }
/// ```
public final class Generation: Sequence, IteratorProtocol {
  private let model: any CausalLanguageModel
  private let settings: GenerationSettings
  private let cache: KeyValueCache
  /// Tokens that the model has yet to see, for each running sequence.
  private var input: [[Int32]]
  /// The prompts that the rows of the cache belong to.
  private var running: [Int]
  private var adapters: SequenceAdapters?
  private var step = 0
  /// What ended it before its time: logits that are not numbers, of which no token can be chosen.
  public private(set) var failure: PEFTError?
  /// Largest total length of a sequence.
  private let longest: [Int]

  fileprivate init(
    _ model: any CausalLanguageModel, _ prompts: [[Int32]], _ settings: GenerationSettings,
    adapters: SequenceAdapters?
  ) throws(PEFTError) {
    precondition(adapters.map { $0.count == prompts.count } ?? true)
    self.model = model
    self.settings = settings
    self.adapters = adapters
    let limits = model.inputLimits
    var longest: [Int] = []
    for prompt in prompts {
      if prompt.isEmpty {
        throw PEFTError(
          .invalidData, "the prompt has no tokens",
          remedy: "Begin with at least one token, such as the one that begins a text.")
      }
      if let positions = limits.positions, prompt.count > positions {
        throw PEFTError(
          .invalidData, "the prompt has \(prompt.count) tokens, the model takes \(positions)",
          remedy: "Shorten the prompt.")
      }
      let (total, overflows) = prompt.count.addingReportingOverflow(settings.maxNewTokens)
      longest.append(Swift.min(overflows ? .max : total, limits.positions ?? .max))
    }
    try TokenBatch(prompts).check(limits, name: "the prompt")
    self.longest = longest
    input = prompts
    running = settings.maxNewTokens > 0 ? Array(prompts.indices) : []
    cache = model.makeCache(sequences: prompts.count, capacity: longest.max() ?? 0)
  }

  /// The next token of every prompt that is not finished; `nil` when all are, and after a
  /// ``failure``.
  public func next() -> [GeneratedToken]? {
    guard !running.isEmpty else { return nil }
    let logits = withoutGradients { self.logits() }
    if !Self.areNumbers(logits) {
      failure = PEFTError(
        .numericalFailure, "the logits of new token \(step + 1) are not all numbers",
        remedy: "Look for weights that are not finite in the model and its adapters.")
      running = []
      return nil
    }
    var tokens: [GeneratedToken] = []
    for (row, token) in choose(logits).enumerated() {
      let sequence = running[row]
      let length = cache.lengths[row] + 1
      let isLast =
        settings.stopTokens.contains(token) || length >= longest[sequence]
        || step + 1 >= settings.maxNewTokens
      tokens.append(GeneratedToken(sequence: sequence, token: token, isLast: isLast))
    }
    step += 1
    input = tokens.map { [$0.token] }
    drop(finished: tokens)
    return tokens
  }

  /// The logits after the newest token of every running sequence, `[running, vocabulary]`.
  private func logits() -> Tensor {
    let layout = SequenceLayout(continuing: cache.lengths, by: input.map(\.count))
    var context = ForwardContext(layout)
    context.cache = cache
    context.sequenceAdapters = adapters
    let batch = TokenBatch(tokenIDs: input.flatMap { $0 }, layout: layout)
    let hidden = model.lastHiddenState(batch, context).selectRows(layout.lastRows)
    context.sequences = SequenceLayout(lengths: running.map { _ in 1 })
    return model.logits(fromHidden: hidden, context)
  }

  /// Whether they can be compared and added up; −∞ only rules a token out.
  private static func areNumbers(_ logits: Tensor) -> Bool {
    logits.slice.withSpan { logits in
      for place in 0..<logits.count where !(logits[place] < .infinity) { return false }
      return true
    }
  }

  private func choose(_ logits: Tensor) -> [Int32] {
    guard let sampling = settings.sampling else { return logits.argmaxOfRows }
    return running.enumerated().map { row, sequence in
      // Independent of the other prompts: a stream for each sequence and step.
      let stream = UInt64(sequence) << 32 | UInt64(step)
      let uniform = Self.uniform(seed: sampling.seed, stream: stream)
      return sampling.draw(logits.rowRange(row..<row + 1).scalars, uniform: uniform)
    }
  }

  /// A uniform number of 48 bits: those of one float are too coarse for large vocabularies.
  private static func uniform(seed: UInt64, stream: UInt64) -> Double {
    let floats = MutableSlice<Float>(count: 2)
    Random.uniform(seed: seed, stream: stream, into: floats)
    return Double(floats[0]) + Double(floats[1]) / Double(1 << 24)
  }

  private func drop(finished tokens: [GeneratedToken]) {
    let rows = tokens.indices.filter { !tokens[$0].isLast }
    guard rows.count < running.count else { return }
    running = rows.map { running[$0] }
    input = rows.map { input[$0] }
    adapters = adapters?.keeping(rows)
    cache.keep(rows)
  }
}

extension CausalLanguageModel {
  /// Continues prompts token by token.
  ///
  /// - Parameters:
  ///   - prompts: Token ids, none empty.
  ///   - settings: How.
  ///   - adapters: The adapter of each prompt, for a mixed batch; `nil` uses the active ones.
  /// - Throws: ``PEFTError`` `invalidData` for a prompt that is empty, too long, or has a token
  ///   that the model does not know.
  public func generation(
    _ prompts: [[Int32]], _ settings: GenerationSettings = GenerationSettings(),
    adapters: SequenceAdapters? = nil
  ) throws(PEFTError) -> Generation {
    try Generation(self, prompts, settings, adapters: adapters)
  }

  /// The continuations of prompts, complete: new tokens only.
  ///
  /// - Throws: What ``generation(_:_:adapters:)`` throws, and its ``Generation/failure``.
  public func generate(
    _ prompts: [[Int32]], _ settings: GenerationSettings = GenerationSettings(),
    adapters: SequenceAdapters? = nil
  ) throws(PEFTError) -> [[Int32]] {
    var result = prompts.map { _ in [Int32]() }
    let generation = try generation(prompts, settings, adapters: adapters)
    for step in generation {
      for token in step { result[token.sequence].append(token.token) }
    }
    if let failure = generation.failure { throw failure }
    return result
  }
}
