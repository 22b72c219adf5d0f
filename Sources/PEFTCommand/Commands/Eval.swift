import ArgumentParser
import PEFT

/// `peft eval`.
struct Eval: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compute loss and accuracy of a model with an adapter on a data file.",
    discussion: """
      Column names and the length limit are those of the training, where the adapter's folder \
      holds them.
      """)

  @Option(help: "The folder of the base model.")
  var model: String

  @Option(help: "The folder of the adapter; without one the model is evaluated as it is.")
  var adapter: String?

  @Option(help: "The data: .csv, .tsv, .jsonl, .json or .txt.")
  var data: String

  @Option(help: "SEQ_CLS or CAUSAL_LM; the adapter's own unless given.")
  var task: String?

  @Option(help: "float32 or bfloat16: what the model's matrices are kept in.")
  var precision = "float32"

  @Option(help: "auto, classification, text or tokens.")
  var dataFormat = "auto"

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
    if batchSize < 1 { throw ValidationError("--batch-size must be at least 1.") }
    if let maxLength, maxLength < 2 { throw ValidationError("--max-length must be at least 2.") }
  }

  func run() throws {
    guard let precision = WeightPrecision(rawValue: precision) else {
      throw ValidationError("--precision is '\(precision)'; float32 or bfloat16 was expected.")
    }
    guard let format = DataConfiguration.Format(rawValue: dataFormat) else {
      throw ValidationError(
        "--data-format is '\(dataFormat)'; auto, classification, text or tokens was expected.")
    }
    let adapted = try AdaptedModel(
      model, adapter: adapter, task: task, precision: precision, registry: .standard)
    var settings = adapted.data
    settings.format = format
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
