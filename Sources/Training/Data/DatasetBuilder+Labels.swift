import Models
import PEFTCore
import PEFTSupport
import Tensors
import Tokenizers

extension DatasetBuilder {
  /// Gives an example the label, the labels or the numbers of its sequence.
  ///
  /// - Parameters:
  ///   - example: The example.
  ///   - record: Where they stand.
  ///   - column: In which column.
  ///   - byName: Whether a number is looked for among the names first, as text is.
  /// - Throws: ``PEFTError`` with the place of a label that the model does not have.
  func label(
    _ example: inout Example, with record: DataRecord, column: String, byName: Bool
  ) throws(PEFTError) {
    guard let value = record.values[column], !value.isNull else {
      throw record.missing(column, setBy: "label_column")
    }
    switch problem {
    case .singleLabel:
      example.labels = try classes(
        [value], at: record.location, byName: byName, allowsIgnored: false)
    case .multiLabel:
      var targets = [Float](repeating: 0, count: labels?.count ?? 0)
      let ids = try classes(
        value.array ?? [value], at: record.location, byName: byName, allowsIgnored: false)
      for id in ids { targets[Int(id)] = 1 }
      example.targets = targets
    case .regression:
      example.targets = try record.numbers(column)
      if let targetCount, example.targets.count != targetCount {
        throw PEFTError(
          .invalidData,
          "'\(column)' holds \(example.targets.count) numbers, the model gives "
            + "\(targetCount)", at: record.location,
          remedy: "Every record has as many as the first one of the training data.")
      }
    }
  }

  /// The ids of labels: names, or numbers from 0.
  ///
  /// A text of digits is a number too, since CSV files have no others. Where names are numbers
  /// themselves, another number is an unknown name and no id.
  ///
  /// - Parameters:
  ///   - values: The labels.
  ///   - location: Where they stand.
  ///   - byName: Whether a number is looked for among the names first: labels may be "3", "5", "10".
  ///   - allowsIgnored: Whether ``Tensors/ignoredLabel`` may be among them, as it may for tokens.
  /// - Throws: ``PEFTError`` with the place of one that the model does not have.
  func classes(
    _ values: [JSONValue], at location: String, byName: Bool, allowsIgnored: Bool
  ) throws(PEFTError) -> [Int32] {
    guard let labels else {
      throw PEFTError(.invalidConfiguration, "this data needs labels", at: location)
    }
    var ids: [Int32] = []
    ids.reserveCapacity(values.count)
    for value in values {
      if LabelSet.isIgnored(value) {
        guard allowsIgnored else {
          throw PEFTError(
            .invalidData,
            "the label of a sequence is \(ignoredLabel), which marks tokens that do "
              + "not count", at: location, remedy: "Remove the label, or the record.")
        }
        ids.append(ignoredLabel)
        continue
      }
      guard let name = LabelSet.name(of: value) else {
        throw PEFTError(
          .invalidData,
          "a label is \(value.kindName) (\(value.text())), a name or an integer was expected",
          at: location)
      }
      let isID = !byName && value.int != nil
      if !isID, let id = labels.id(of: name) {
        ids.append(id)
      } else if isID || !labels.hasNumbers, let number = Self.classNumber(name) {
        guard number >= 0, number < labels.count else {
          throw PEFTError(
            .invalidData, "the label \(name) is not one of the model's \(labels.count) classes",
            at: location, remedy: "Classes count from 0.")
        }
        ids.append(Int32(number))
      } else {
        ids.append(try labels.id(of: name, at: location))
      }
    }
    return ids
  }

  /// The number that a label is, with or without quotes.
  private static func classNumber(_ name: String) -> Int? {
    let digits = name.hasPrefix("-") ? name.dropFirst() : name[...]
    return digits.allSatisfy { "0"..."9" ~= $0 } ? Int(name) : nil
  }

  // MARK: Words

  /// The examples of words with a label each.
  ///
  /// Words are tokenised one by one; the first token of a word has its label, the others none
  /// unless `label_all_tokens` is set, and special tokens have none.
  func words(_ source: DataSource) throws(PEFTError) -> Dataset {
    let tokenizer = try requireTokenizer()
    var encoder = WordEncoder(tokenizer, limits: limits)
    var examples: [Example] = []
    var cut = 0
    for record in source.records {
      let words = try record.words(configuration)
      let tags = try record.tags(configuration, count: words.count)
      let ids = try classes(tags, at: record.location, byName: true, allowsIgnored: true)
      let (encoded, kept) = encoder.encode(words, maxLength: maxLength)
      if kept < words.count { cut += 1 }
      var example = encoded.example
      for (place, word) in encoded.words.enumerated() {
        guard let word else { continue }
        let isFirst = place == 0 || encoded.words[place - 1] != word
        if isFirst || configuration.labelsAllTokens { example.labels[place] = ids[word] }
      }
      try check(example, at: record.location)
      examples.append(example)
    }
    return Dataset(examples, truncatedCount: cut)
  }
}

/// Tokenises texts that are split into words already.
struct WordEncoder: ~Copyable {
  /// Tokens, and for each the word that it is of.
  struct Encoded {
    var example: Example
    var words: [Int?]
  }

  private var encoder: Tokenizer.Encoder
  private let head: [Int32]
  private let tail: [Int32]

  init(_ tokenizer: Tokenizer, limits: InputLimits) {
    var tokenizer = tokenizer
    tokenizer.truncation = nil
    tokenizer.padding = nil
    encoder = tokenizer.makeEncoder()
    // What the post-processor puts around a text.
    let framed = encoder.encode("a")
    let inside = framed.specialTokensMask.indices.filter { !framed.specialTokensMask[$0] }
    head = Array(framed.ids[..<(inside.first ?? framed.count)])
    tail = Array(framed.ids[min((inside.last ?? framed.count) + 1, framed.count)...])
  }

  /// Encodes words, as many as fit.
  ///
  /// - Returns: The tokens, all without label, and the number of words that fitted.
  mutating func encode(_ words: [String], maxLength: Int) -> (Encoded, kept: Int) {
    var ids = head
    var owners: [Int?] = head.map { _ in nil }
    var kept = 0
    for (index, word) in words.enumerated() {
      let tokens = encoder.ids(of: word)
      if ids.count + tokens.count + tail.count > maxLength { break }
      ids += tokens
      owners += tokens.map { _ in index }
      kept += 1
    }
    ids += tail
    owners += tail.map { _ in nil }
    let example = Example(
      tokenIDs: ids, labels: Array(repeating: ignoredLabel, count: ids.count))
    return (Encoded(example: example, words: owners), kept)
  }
}

extension DataRecord {
  /// The words of a record: in the configured column, else in `words` or `tokens`.
  func words(_ configuration: DataConfiguration) throws(PEFTError) -> [String] {
    let column = listColumn(configuration.textColumn, else: ["words", "tokens"])
    guard let value = values[column] else { throw missing(column, setBy: "text_column") }
    guard let elements = value.array, !elements.isEmpty else {
      throw PEFTError(
        .invalidData, "'\(column)' is \(value.kindName), a list of words was expected",
        at: location)
    }
    var words: [String] = []
    for element in elements {
      guard let word = element.string else {
        throw PEFTError(
          .invalidData, "'\(column)' holds \(element.text()), words were expected", at: location)
      }
      words.append(word)
    }
    return words
  }

  /// The labels of a record's words: in the configured column, else in `tags`, `ner_tags` or
  /// `labels`.
  ///
  /// - Parameter count: How many there must be; `nil` does not check.
  func tags(
    _ configuration: DataConfiguration, count: Int?
  ) throws(PEFTError) -> [JSONValue] {
    let column = listColumn(configuration.labelColumn, else: ["tags", "ner_tags", "labels"])
    guard let value = values[column] else { throw missing(column, setBy: "label_column") }
    guard let elements = value.array else {
      throw PEFTError(
        .invalidData, "'\(column)' is \(value.kindName), a list of labels was expected",
        at: location)
    }
    if let count, elements.count != count {
      throw PEFTError(
        .invalidData, "there are \(elements.count) labels in '\(column)' for \(count) words",
        at: location)
    }
    return elements
  }

  private func listColumn(_ configured: String, else others: [String]) -> String {
    if values[configured] != nil { return configured }
    return others.first { values[$0] != nil } ?? configured
  }

  /// The number or numbers of a column; texts count, as CSV files have no numbers.
  func numbers(_ column: String) throws(PEFTError) -> [Float] {
    guard let value = values[column] else { throw missing(column, setBy: "label_column") }
    var numbers: [Float] = []
    for element in value.array ?? [value] {
      let number = element.double ?? element.string.flatMap { Double($0) }
      guard let number, number.isFinite else {
        throw PEFTError(
          .invalidData, "'\(column)' holds \(element.text()), a number was expected", at: location)
      }
      numbers.append(Float(number))
    }
    if numbers.isEmpty {
      throw PEFTError(.invalidData, "'\(column)' holds no number", at: location)
    }
    return numbers
  }

  /// `start_positions` and `end_positions` of a record of token ids.
  func answerTokens(count: Int) throws(PEFTError) -> [Int32] {
    var places: [Int32] = []
    for key in ["start_positions", "end_positions"] {
      guard let value = values[key] else { throw missing(key, setBy: "data_format") }
      guard let place = value.int, place >= 0, place < count else {
        throw PEFTError(
          .invalidData,
          "'\(key)' is \(value.text()), the place of one of the \(count) tokens was "
            + "expected", at: location)
      }
      places.append(Int32(place))
    }
    if places[1] < places[0] {
      throw PEFTError(
        .invalidData, "the answer ends at \(places[1]), before it begins at \(places[0])",
        at: location)
    }
    return places
  }
}
