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
      """)

  @Option(help: ArgumentHelp("The model's folder.", valueName: "dir"))
  var model: String
  @OptionGroup var adapters: AdapterOptions
  @OptionGroup var active: ActiveOptions
  @Option(help: ArgumentHelp("The text to continue.", valueName: "text"))
  var prompt: String
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
    let ids = tokenizer.encode(prompt).ids
    let generation: Generation
    do { generation = try network.generation([ids], settings) } catch {
      throw error.located(at: "--prompt")
    }
    var decoder = tokenizer.makeDecoder()
    for id in ids { _ = decoder.append(id) }
    if !noEcho { try Terminal.write(prompt) }
    var clock = GenerationClock(promptTokens: ids.count)
    for tokens in generation {
      clock.tick()
      for token in tokens { try Terminal.write(decoder.append(token.token)) }
    }
    try Terminal.write(decoder.finish() + "\n")
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

  init(promptTokens: Int) { self.promptTokens = promptTokens }

  /// Counts a token.
  mutating func tick() {
    last = .now
    if first == nil { first = last }
    count += 1
  }

  /// Tokens and speeds, the prompt and the rest apart.
  var summary: String {
    let prefill = Self.seconds(start, first ?? last)
    var text = "\(promptTokens) prompt tokens in \(fixed(prefill, 3)) s; \(count) new tokens"
    if count > 1, let first {
      // The first token comes with the prompt's pass.
      let rate = Double(count - 1) / max(Self.seconds(first, last), 1e-9)
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
