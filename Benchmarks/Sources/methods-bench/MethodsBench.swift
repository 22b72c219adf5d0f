import ArgumentParser
import PEFT

extension WeightPrecision: @retroactive ExpressibleByArgument {}

/// What the model is trained for.
enum Task: String, CaseIterable, ExpressibleByArgument {
  case causal, classify

  /// The linear layers that are adapted unless others are named.
  var modules: String {
    switch self {
    case .causal: "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    case .classify: "query,key,value,dense"
    }
  }

  var head: ModelHead {
    switch self {
    case .causal: .causalLM
    case .classify: .sequenceClassification(labels: 77)
    }
  }

  var name: String { self == .causal ? "CAUSAL_LM" : "SEQ_CLS" }
}

/// What is measured, and on what.
struct Settings: ParsableArguments {
  @Argument(help: "Folder with config.json; weights are random.") var folder: String
  @Option(help: "What the model is trained for.") var task = Task.causal
  @Option(help: "Precision of the base's weights.") var precision = WeightPrecision.float32
  @Option(help: "Methods of `peft train`, comma-separated.") var methods = "lora,dora,edora,lora-xs"
  @Option(help: "Adapted modules, comma-separated; the task's linear layers unless given.")
  var modules: String?
  @Option(help: "Rank of the adapters; alpha is four times it.") var rank = 8
  @Option(help: "Tokens of a batch.") var rows = 128
  @Option(help: "Rounds in which each method takes its turn.") var rounds = 8
  @Option(help: "Tokens to decode.") var decode = 16
  @Flag(
    help: """
      Measure the processor's time instead of the clock's: with one thread it tells the methods \
      apart on a machine that does other things too.
      """) var processor = false

  var methodNames: [String] { methods.split(separator: ",").map(String.init) }

  func validate() throws {
    guard !methodNames.isEmpty else { throw ValidationError("--methods: name at least one.") }
    guard rank > 0, rows > 1, rounds > 0, decode >= 0 else {
      throw ValidationError(
        "--rank and --rounds are at least 1, --rows at least 2, --decode at least 0.")
    }
  }
}

@main
struct MethodsBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "methods-bench",
    abstract: "LoRA, DoRA, EDoRA and LoRA-XS on one model, in turns: training steps, inference.",
    discussion: """
      Prints one JSON object of seconds; compare/methods.py makes a table of it, with peft's \
      beside it. Threads: OMP_NUM_THREADS.
      """)
  @OptionGroup var settings: Settings
  @Flag(name: .customLong("init"), help: "Time initialisations instead.") var initialization = false

  func run() throws {
    let bench = try AdaptedModel(settings)
    let result = try initialization ? bench.initializations() : bench.turns()
    print(JSONValue.object(JSONObject(result)).text())
  }
}
