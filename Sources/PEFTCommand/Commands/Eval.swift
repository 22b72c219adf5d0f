import ArgumentParser
import PEFT

/// `peft eval`.
struct Eval: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compute the loss and the metrics of a model with an adapter on a data file.",
    discussion: """
      Column names and the length limit are those of the training, where the adapter's folder \
      holds them.
      """)

  @Option(help: "The folder of the base model.")
  var model: String

  @Option(help: "The folder of the adapter; without one the model is evaluated as it is.")
  var adapter: String?

  @Option(help: "The data: .csv, .tsv, .jsonl (.ndjson), .json or .txt.")
  var data: String

  @Option(
    help: "SEQ_CLS, TOKEN_CLS, QUESTION_ANS or CAUSAL_LM; the adapter's, else the model's own.")
  var task: String?

  @OptionGroup var options: RunOptions

  @Option(
    help: "auto, classification, token_classification, question_answering, text or tokens.")
  var dataFormat = DataConfiguration.Format.auto

  @Option(help: "The column of the text.")
  var textColumn: String?

  @Option(help: "The column of the second text.")
  var textPairColumn: String?

  @Option(help: "The column of the label.")
  var labelColumn: String?

  @Option(help: "Most tokens of an example.")
  var maxLength: Int?

  @Option(help: "Examples of a forward pass.")
  var batchSize = 32

  @Flag(help: "Print one JSON object.")
  var json = false

  @Flag(name: .shortAndLong, help: "Show no progress.")
  var quiet = false

  func validate() throws {
    try RunOptions.check(batchSize: batchSize, maxLength: maxLength)
  }

  func run() throws {
    options.apply()
    let adapted = try AdaptedModel(
      model, adapter: adapter, task: task, precision: options.precision, registry: .standard)
    var settings = adapted.data
    settings.format = dataFormat
    settings.textColumn = textColumn ?? settings.textColumn
    settings.textPairColumn = textPairColumn ?? settings.textPairColumn
    settings.labelColumn = labelColumn ?? settings.labelColumn
    settings.maxLength = maxLength ?? settings.maxLength

    let reporter = ProgressReporter(Terminal.progress, loggingSteps: 1)
    defer { reporter.close() }
    let showsProgress = !quiet
    let result = try adapted.evaluate(data, data: settings, batchSize: batchSize) { done, total in
      if showsProgress { reporter.handle(.evaluating(done: done, total: total)) }
    }
    reporter.close()
    if json {
      let members = [("examples", JSONValue.int(result.examples))] + result.members("eval")
      try Terminal.write(JSONValue.object(JSONObject(members)).text(.spaced) + "\n")
    } else {
      try Terminal.write("\(grouped(result.examples)) examples: \(result.summary)\n")
    }
  }
}

extension DataConfiguration.Format: ExpressibleByArgument {}
