import ArgumentParser
import PEFT

/// `peft predict`.
struct Predict: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Classify texts, label words or answer questions with a model and an adapter.",
    discussion: """
      The texts are the arguments, or the lines or records of --input, or the lines of the \
      standard input that are not empty. Prints a line for each of them, fields separated by tabs:

        SEQ_CLS       the text, its label and the label's probability; of several labels those \
      above a half, each with its probability; of a regression the numbers
        TOKEN_CLS     the words, then their labels, separated by spaces
        QUESTION_ANS  the question, the answer and its probability; questions are the arguments, \
      with --context, or records with question and context
      """)

  @Option(help: "The folder of the base model.")
  var model: String

  @Option(help: "The folder of the adapter; without one the model is used as it is.")
  var adapter: String?

  @Option(
    help: "SEQ_CLS, TOKEN_CLS or QUESTION_ANS; the adapter's, else the model's own.")
  var task: String?

  @Option(
    help: "Records of texts or words (.csv, .tsv, .jsonl, .ndjson, .json), else a text a line.")
  var input: String?

  @Option(help: "The column of the text in --input.")
  var textColumn: String?

  @Option(help: "The column of the second text in --input.")
  var textPairColumn: String?

  @Option(help: "What the answers to the questions are taken from.")
  var context: String?

  @OptionGroup var options: RunOptions

  @Option(help: "Most tokens of a text.")
  var maxLength: Int?

  @Option(help: "Texts of a forward pass, of SEQ_CLS.")
  var batchSize = 32

  @Flag(help: "Print a JSON object for each text.")
  var json = false

  @Argument(help: "The texts.")
  var texts: [String] = []

  func validate() throws {
    try RunOptions.check(batchSize: batchSize, maxLength: maxLength)
    if input != nil, !texts.isEmpty {
      throw ValidationError("Give either --input or texts, not both.")
    }
    if input != nil, context != nil {
      throw ValidationError("--context: the records of --input have contexts of their own.")
    }
  }

  func run() throws {
    options.apply()
    let adapted = try AdaptedModel(
      model, adapter: adapter, task: task, precision: options.precision, registry: .standard)
    if context != nil, adapted.task != .questionAnswering {
      throw PEFTError(
        .invalidConfiguration, "the task \(adapted.task.name) takes no context", at: "--context")
    }
    let tokenizer = try adapted.tokenizer()
    switch adapted.task {
    case .tokenClassification: try label(adapted, tokenizer)
    case .questionAnswering: try answer(adapted, tokenizer)
    default: try classify(adapted, tokenizer)
    }
  }

  // MARK: Sequences

  private func classify(_ adapted: AdaptedModel, _ tokenizer: Tokenizer) throws {
    func answer(_ items: [(text: String, pair: String?)]) throws(PEFTError) {
      let judgements = try adapted.judge(items, tokenizer: tokenizer, maxLength: maxLength)
      for (item, judgement) in zip(items, judgements) {
        try Terminal.write(line(item, judgement) + "\n")
      }
    }
    guard let input else {
      return try forEachLine { (lines) throws(PEFTError) in
        try answer(lines.map { (text: $0, pair: String?.none) })
      }
    }
    let items = try DataFile.texts(input, columns(adapted.data))
    for start in stride(from: 0, to: items.count, by: batchSize) {
      try answer(Array(items[start..<min(start + batchSize, items.count)]))
    }
  }

  private func line(_ item: (text: String, pair: String?), _ judgement: Judgement) -> String {
    var members: [(String, JSONValue)] = [("text", .string(item.text))]
    if let pair = item.pair { members.append(("text_pair", .string(pair))) }
    let text = [item.text, item.pair].compactMap { $0 }.joined(separator: " | ")
    let fields: [String]
    switch judgement {
    case .label(let prediction):
      fields = [prediction.label, fixed(prediction.probability, 4)]
      members += [
        ("label", .string(prediction.label)), ("probability", .double(prediction.probability)),
      ]
    case .labels(let all):
      let chosen = all.filter { $0.probability > 0.5 }
      fields = [
        chosen.map(\.label).joined(separator: ", "),
        chosen.map { fixed($0.probability, 4) }.joined(separator: ", "),
      ]
      let probabilities = all.map { ($0.label, JSONValue.double($0.probability)) }
      members += [
        ("labels", .array(chosen.map { .string($0.label) })),
        ("probabilities", .object(JSONObject(probabilities))),
      ]
    case .values(let values):
      fields = [values.map { fixed(Double($0), 4) }.joined(separator: ", ")]
      members.append(("values", .array(values.map { .double(Double($0)) })))
    }
    return output(members, [text] + fields)
  }

  // MARK: Tokens

  private func label(_ adapted: AdaptedModel, _ tokenizer: Tokenizer) throws {
    func answer(_ texts: [[String]]) throws(PEFTError) {
      let tags = try adapted.tag(texts, tokenizer: tokenizer, maxLength: maxLength)
      for (words, predictions) in zip(texts, tags) {
        let labels = predictions.map { $0?.label ?? "?" }
        let members: [(String, JSONValue)] = [
          ("words", .array(words.map { .string($0) })),
          ("labels", .array(predictions.map { $0.map { .string($0.label) } ?? .null })),
          (
            "probabilities", .array(predictions.map { $0.map { .double($0.probability) } ?? .null })
          ),
        ]
        let fields = [words.joined(separator: " "), labels.joined(separator: " ")]
        try Terminal.write(output(members, fields) + "\n")
      }
    }
    guard let input else {
      return try forEachLine { (lines) throws(PEFTError) in try answer(lines.map(DataFile.split)) }
    }
    // Printed as it comes, each text on its own.
    for words in try DataFile.words(input, columns(adapted.data)) { try answer([words]) }
  }

  private func answer(_ adapted: AdaptedModel, _ tokenizer: Tokenizer) throws {
    func answer(_ question: String, _ context: String) throws(PEFTError) {
      let found = try adapted.answer(
        question, context: context, tokenizer: tokenizer, maxLength: maxLength)
      let members: [(String, JSONValue)] = [
        ("question", .string(question)), ("answer", .string(found.text)),
        ("probability", .double(found.probability)),
      ]
      try Terminal.write(
        output(members, [question, found.text, fixed(found.probability, 4)]) + "\n")
    }
    for (name, value) in [("--text-column", textColumn), ("--text-pair-column", textPairColumn)]
    where value != nil {
      throw PEFTError(
        .invalidConfiguration, "the task QUESTION_ANS reads the columns question and context",
        at: name, remedy: "Rename the columns of the file.")
    }
    if let input {
      for (question, context) in try DataFile.questions(input) { try answer(question, context) }
      return
    }
    guard let context else {
      throw PEFTError(
        .invalidConfiguration, "a question needs a context to answer it from", at: "--context",
        remedy: "Give it, or records with question and context with --input.")
    }
    try forEachLine { (lines) throws(PEFTError) in
      for line in lines { try answer(line, context) }
    }
  }

  // MARK: Input and output

  private func columns(_ trained: DataConfiguration) -> DataConfiguration {
    var columns = trained
    columns.textColumn = textColumn ?? columns.textColumn
    columns.textPairColumn = textPairColumn ?? columns.textPairColumn
    return columns
  }

  /// Calls `body` with the arguments, or with the lines of the standard input, a few at a time.
  private func forEachLine(_ body: ([String]) throws(PEFTError) -> Void) throws(PEFTError) {
    if !texts.isEmpty {
      for start in stride(from: 0, to: texts.count, by: batchSize) {
        try body(Array(texts[start..<min(start + batchSize, texts.count)]))
      }
      return
    }
    // A person gets an answer after every line.
    let size = Terminal.isInteractive ? 1 : batchSize
    var pending: [String] = []
    while let text = readLine() {
      if text.allSatisfy(\.isWhitespace) { continue }
      pending.append(text)
      if pending.count == size {
        try body(pending)
        pending.removeAll()
      }
    }
    try body(pending)
  }

  /// One line: a JSON object, or fields, whatever is in them.
  private func output(_ members: [(String, JSONValue)], _ fields: [String]) -> String {
    if json { return JSONValue.object(JSONObject(members)).text(.spaced) }
    return fields.map { String($0.map { $0 == "\t" || $0.isNewline ? " " : $0 }) }
      .joined(separator: "\t")
  }
}
