import ArgumentParser
import PEFT

/// `peft generate`: text from a language model.
struct Generate: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Continue a text with a language model, printing it as it comes.",
    discussion: """
      Takes the likeliest token every time, unless --temperature, --top-k, --top-p or --seed asks \
      for a draw. Ends at the model's end token or after --max-new-tokens. Speed goes to standard \
      error.

      With several prompts, or --rows, the texts are continued in one batch, each with the adapter \
      of its row, and printed one after the other when they are complete. A single prompt is \
      continued once for each name.
      """)

  @Option(help: ArgumentHelp("The model's folder.", valueName: "dir"))
  var model: String
  @OptionGroup var adapters: AdapterOptions
  @OptionGroup var active: ActiveOptions
  @OptionGroup var rows: RowOptions
  @Option(
    name: .customLong("prompt"),
    help: ArgumentHelp("The text to continue; may be repeated.", valueName: "text"))
  var prompts: [String]
  @Option(help: ArgumentHelp("Most tokens to add.", valueName: "n"))
  var maxNewTokens = 256
  @OptionGroup var sampling: SamplingOptions
  @Flag(help: "Print the continuation without the prompt.")
  var noEcho = false
  @OptionGroup var options: RunOptions

  func validate() throws {
    if maxNewTokens < 1 {
      throw ValidationError("--max-new-tokens is \(maxNewTokens), a positive number was expected")
    }
  }

  func run() throws {
    options.apply()
    var settings = GenerationSettings(maxNewTokens: maxNewTokens)
    settings.sampling = try sampling.sampling()
    settings.stopTokens = try GenerationSettings.stopTokens(folder: model)
    var tokenizer = try Tokenizer(folder: model)
    tokenizer.truncation = nil
    tokenizer.padding = nil
    let session = try ModelSession(
      model: model, adapters: adapters.adapters, active: active.names,
      task: TaskType.causalLM.name, content: .weights(options.precision))
    guard let network = session.loaded.model as? any CausalLanguageModel else {
      throw PEFTError(.unsupported, "is no language model", at: model)
    }
    if settings.stopTokens.isEmpty, let end = tokenizer.eosTokenID {
      settings.stopTokens = [end]
    }
    // A single prompt is continued once for each name.
    let names = rows.names
    let prompts =
      prompts.count == 1
      ? Array(repeating: prompts[0], count: max(1, names?.count ?? 1)) : prompts
    let assignment = try rows.assignment(session.peft, count: prompts.count)
    let ids = prompts.map { tokenizer.encode($0).ids }
    let generation: Generation
    do { generation = try network.generation(ids, settings, adapters: assignment) } catch {
      throw error.located(at: "--prompt")
    }
    var decoders = ids.map { ids in
      var decoder = tokenizer.makeDecoder()
      for id in ids { _ = decoder.append(id) }
      return decoder
    }
    // One text is shown as it comes; several would be mixed up.
    let isAlone = prompts.count == 1
    var texts = noEcho ? prompts.map { _ in "" } : prompts
    if isAlone { try Terminal.write(texts[0]) }
    var clock = GenerationClock(promptTokens: ids.reduce(0) { $0 + $1.count })
    for tokens in generation {
      clock.tick(tokens.count)
      for token in tokens {
        let text = decoders[token.sequence].append(token.token)
        if isAlone { try Terminal.write(text) } else { texts[token.sequence] += text }
      }
    }
    for place in decoders.indices {
      let end = decoders[place].finish() + "\n"
      if isAlone {
        try Terminal.write(end)
      } else {
        let title = names.map { "\(place + 1) \($0[place])" } ?? "\(place + 1)"
        try Terminal.write("[\(title)]\n\(texts[place])\(end)")
      }
    }
    if let failure = generation.failure { throw failure.located(at: model) }
    let seed = settings.sampling.map { "; seed \($0.seed)" } ?? ""
    Terminal.writeError(clock.summary + seed + "\n")
  }
}

/// How tokens are drawn.
struct SamplingOptions: ParsableArguments {
  @Flag(help: "Take the likeliest token every time; the default.")
  var greedy = false
  @Option(
    help: ArgumentHelp(
      "Divides the logits before a draw: below 1 likely tokens gain. 0 is --greedy.",
      valueName: "t"))
  var temperature: Double?
  @Option(help: ArgumentHelp("Draw from the k likeliest tokens.", valueName: "k"))
  var topK: Int?
  @Option(
    help: ArgumentHelp(
      "Draw from the likeliest tokens that together have probability p.", valueName: "p"))
  var topP: Double?
  @Option(help: ArgumentHelp("Equal seeds give equal texts; random by default.", valueName: "n"))
  var seed: UInt64?

  func validate() throws {
    let others = temperature.map { $0 != 0 } ?? false || topK != nil || topP != nil
    if greedy || temperature == 0, others {
      throw ValidationError(
        "\(greedy ? "--greedy" : "--temperature 0") draws nothing: remove it, or the other "
          + "settings of a draw")
    }
  }

  /// The settings of a draw, or `nil` for greedy decoding.
  func sampling() throws(PEFTError) -> Sampling? {
    if greedy || temperature == 0 { return nil }
    if temperature == nil, topK == nil, topP == nil, seed == nil { return nil }
    return try Sampling(
      temperature: temperature ?? 1, topK: topK, topP: topP,
      seed: seed ?? .random(in: 0..<1_000_000))
  }
}

/// Measures a generation.
struct GenerationClock {
  private let promptTokens: Int
  private let start = ContinuousClock.now
  private var first: ContinuousClock.Instant?
  private var last = ContinuousClock.now
  private var count = 0
  private var firstCount = 1

  init(promptTokens: Int) { self.promptTokens = promptTokens }

  /// Counts the tokens of a step.
  mutating func tick(_ tokens: Int = 1) {
    last = .now
    if first == nil {
      first = last
      firstCount = tokens
    }
    count += tokens
  }

  /// Tokens and speeds, the prompt and the rest apart.
  var summary: String {
    let prefill = Self.seconds(start, first ?? last)
    var text = "\(promptTokens) prompt tokens in \(fixed(prefill, 3)) s; \(count) new tokens"
    if count > firstCount, let first {
      // The first tokens come with the prompts' pass.
      let rate = Double(count - firstCount) / max(Self.seconds(first, last), 1e-9)
      text += ", \(fixed(rate, 1)) tokens/s"
    }
    return text
  }

  private static func seconds(
    _ start: ContinuousClock.Instant, _ end: ContinuousClock.Instant
  ) -> Double {
    let duration = (end - start).components
    return Double(duration.seconds) + Double(duration.attoseconds) * 1e-18
  }
}
