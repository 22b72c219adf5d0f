import ArgumentParser
import PEFT

/// `peft predict`.
struct Predict: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Classify texts with a model and an adapter.",
    discussion: """
      The texts are the arguments, or the lines or records of --input, or the lines of the \
      standard input. Prints for each text the text, its label and the label's probability, \
      separated by tabs.
      """)

  @Option(help: "The folder of the base model.")
  var model: String

  @Option(help: "The folder of the adapter; without one the model is used as it is.")
  var adapter: String?

  @Option(help: "A file: .csv, .tsv, .jsonl or .json with a text column, else a text a line.")
  var input: String?

  @Option(help: "The column of the text in --input.")
  var textColumn: String?

  @Option(help: "The column of the second text in --input.")
  var textPairColumn: String?

  @Option(help: "float32 or bfloat16: what the model's matrices are kept in.")
  var precision = "float32"

  @Option(help: "Most tokens of a text.")
  var maxLength: Int?

  @Option(help: "Texts of a forward pass.")
  var batchSize = 32

  @Flag(help: "Print a JSON object for each text.")
  var json = false

  @Argument(help: "The texts.")
  var texts: [String] = []

  func validate() throws {
    if batchSize < 1 { throw ValidationError("--batch-size must be at least 1.") }
    if let maxLength, maxLength < 2 { throw ValidationError("--max-length must be at least 2.") }
    if input != nil, !texts.isEmpty {
      throw ValidationError("Give either --input or texts, not both.")
    }
  }

  func run() throws {
    guard let precision = WeightPrecision(rawValue: precision) else {
      throw ValidationError("--precision is '\(precision)'; float32 or bfloat16 was expected.")
    }
    let adapted = try AdaptedModel(
      model, adapter: adapter, task: adapter == nil ? "SEQ_CLS" : nil, precision: precision,
      registry: .standard)
    let tokenizer = try adapted.tokenizer()
    func answer(_ items: [(text: String, pair: String?)]) throws(PEFTError) {
      let predictions = try adapted.classify(items, tokenizer: tokenizer, maxLength: maxLength)
      for (item, prediction) in zip(items, predictions) {
        try Terminal.write(line(item, prediction) + "\n")
      }
    }
    if input == nil, texts.isEmpty {
      // A person gets an answer after every line.
      let size = Terminal.isInteractive ? 1 : batchSize
      var pending: [(text: String, pair: String?)] = []
      while let text = readLine() {
        pending.append((text, nil))
        if pending.count == size {
          try answer(pending)
          pending.removeAll()
        }
      }
      return try answer(pending)
    }
    let items =
      try input.map { (path) throws(PEFTError) in try read(path, adapted.data) }
      ?? texts.map { ($0, nil) }
    for start in stride(from: 0, to: items.count, by: batchSize) {
      try answer(Array(items[start..<min(start + batchSize, items.count)]))
    }
  }

  /// The texts of a file.
  private func read(
    _ path: String, _ trained: DataConfiguration
  ) throws(PEFTError) -> [(text: String, pair: String?)] {
    var columns = trained
    columns.textColumn = textColumn ?? columns.textColumn
    columns.textPairColumn = textPairColumn ?? columns.textPairColumn
    return try DataFile.texts(path, columns)
  }

  private func line(_ item: (text: String, pair: String?), _ prediction: Prediction) -> String {
    if json {
      var members: [(String, JSONValue)] = [("text", .string(item.text))]
      if let pair = item.pair { members.append(("text_pair", .string(pair))) }
      members += [
        ("label", .string(prediction.label)), ("probability", .double(prediction.probability)),
      ]
      return JSONValue.object(JSONObject(members)).text(.spaced)
    }
    // One text is one line of three fields, whatever is in it.
    let text = [item.text, item.pair].compactMap { $0 }.joined(separator: " | ")
      .map { $0 == "\t" || $0.isNewline ? " " : $0 }
    return "\(String(text))\t\(prediction.label)\t\(fixed(prediction.probability, 4))"
  }
}
