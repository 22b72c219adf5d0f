import Models
import PEFTCore
import PEFTSupport
import Tensors
import Tokenizers

/// Makes data sets out of data files: tokenises once, checks everything.
public struct DatasetBuilder: Sendable {
  /// Length of an example when neither the configuration nor the tokenizer says.
  public static let defaultMaxLength = 512

  /// The settings of the data.
  public let configuration: DataConfiguration
  /// What the model takes.
  public let limits: InputLimits
  /// The classes, where they have names.
  public let labels: LabelSet?
  /// What a sequence's labels are.
  public let problem: ProblemType
  /// How many numbers a sequence has in a regression; `nil` does not check.
  public let targetCount: Int?
  /// Most tokens of an example.
  public let maxLength: Int
  private let task: any TrainableTask
  private let tokenizer: Tokenizer?

  /// Creates a builder.
  ///
  /// - Parameters:
  ///   - task: The task.
  ///   - configuration: Columns and lengths.
  ///   - limits: What the model takes.
  ///   - labels: The classes; needed where the task has any.
  ///   - problem: What a sequence's labels are.
  ///   - targetCount: How many numbers a sequence has in a regression; `nil` does not check.
  ///   - tokenizer: Not needed where all files hold tokens.
  /// - Throws: ``PEFTError`` when `max_length` is beyond the model, or the task cannot be trained.
  public init(
    task: TaskType, configuration: DataConfiguration, limits: InputLimits, labels: LabelSet?,
    problem: ProblemType = .singleLabel, targetCount: Int? = nil, tokenizer: Tokenizer?
  ) throws(PEFTError) {
    self.task = try task.training()
    self.configuration = configuration
    self.limits = limits
    self.labels = labels
    self.problem = problem
    self.targetCount = targetCount
    let positions = limits.positions ?? .max
    if let wanted = configuration.maxLength, wanted > positions {
      throw PEFTError(
        .invalidConfiguration,
        "'max_length' is \(wanted), but the model has only \(positions) positions")
    }
    let isText = self.task.formats.first == .text
    let usual =
      isText
      ? Self.defaultMaxLength : tokenizer?.truncation?.maxLength ?? Self.defaultMaxLength
    maxLength = configuration.maxLength ?? min(usual, positions)
    var tokenizer = tokenizer
    // Rows are packed, and what is not a sequence to classify is cut here rather than dropped.
    tokenizer?.padding = nil
    if self.task.formats.first != .classification { tokenizer?.truncation = nil }
    self.tokenizer = tokenizer
  }

  /// The examples of a file.
  ///
  /// - Throws: ``PEFTError`` with the line of what is wrong.
  public func dataset(_ source: DataSource) throws(PEFTError) -> Dataset {
    try task.dataset(source, self)
  }

  /// The tokenizer, without padding.
  ///
  /// - Throws: ``PEFTError`` when there is none.
  public func requireTokenizer() throws(PEFTError) -> Tokenizer {
    guard let tokenizer else {
      throw PEFTError(.invalidConfiguration, "this data needs a tokenizer")
    }
    return tokenizer
  }

  /// Checks that the model can take an example.
  ///
  /// - Throws: ``PEFTError`` with the place.
  public func check(_ example: Example, at location: String) throws(PEFTError) {
    try limits.check(example, at: location, isStrict: true)
  }

  // MARK: Sequences

  /// The examples of texts, or pairs of them, with labels.
  func sequences(_ source: DataSource) throws(PEFTError) -> Dataset {
    var encoder = try requireTokenizer().makeEncoder()
    var examples: [Example] = []
    examples.reserveCapacity(source.records.count)
    var full = 0
    for record in source.records {
      let text = try record.text(configuration.textColumn, setBy: "text_column")
      var pair: String?
      if let column = configuration.textPairColumn {
        pair = try record.text(column, setBy: "text_pair_column")
      }
      let encoding = encoder.encode(text, pair: pair, maxLength: maxLength)
      if encoding.count == maxLength { full += 1 }
      var example = Example(
        tokenIDs: encoding.ids, typeIDs: segments(encoding.typeIDs), labels: [])
      try label(&example, with: record, column: configuration.labelColumn, byName: true)
      try check(example, at: record.location)
      examples.append(example)
    }
    return Dataset(examples, truncatedCount: full)
  }

  /// The segments where they say anything.
  func segments(_ ids: [Int32]) -> [Int32]? {
    limits.hasSegments && ids.contains { $0 != 0 } ? ids : nil
  }

  // MARK: Language models

  /// The examples of a language model.
  func text(_ source: DataSource) throws(PEFTError) -> Dataset {
    let tokenizer = try requireTokenizer()
    var encoder = tokenizer.makeEncoder()
    var examples: [Example] = []
    var full = 0
    if let text = source.text {
      let ids = encoder.encode(text).ids
      for start in stride(from: 0, to: ids.count, by: maxLength) {
        let block = Array(ids[start..<min(start + maxLength, ids.count)])
        // A last block of one token has nothing to predict.
        if block.count < 2, start > 0 { continue }
        let example = Example(tokenIDs: block, labels: block)
        try check(example, at: source.path)
        examples.append(example)
      }
    }
    for record in source.records {
      var ids = encoder.encode(
        try record.text(configuration.textColumn, setBy: "text_column")
      ).ids
      // So that the model learns where a text ends.
      if let end = tokenizer.eosTokenID, ids.last != end { ids.append(end) }
      if ids.count > maxLength {
        ids.removeSubrange(maxLength...)
        full += 1
      }
      let example = Example(tokenIDs: ids, labels: ids)
      try check(example, at: record.location)
      examples.append(example)
    }
    try requireTargets(examples, source)
    return Dataset(examples, truncatedCount: full)
  }

  /// Refuses data without a token to predict.
  func requireTargets(_ examples: [Example], _ source: DataSource) throws(PEFTError) {
    let hasTargets = examples.contains { example in
      example.labels.dropFirst().contains { $0 != ignoredLabel }
    }
    if !hasTargets {
      throw PEFTError(
        .invalidData, "the data is empty: no token has a label to predict", at: source.path)
    }
  }

  // MARK: Token ids

  /// The examples of token ids.
  ///
  /// - Parameters:
  ///   - source: The file.
  ///   - labelsAreTokens: Whether each token has a label.
  ///   - addLabels: Gives an example its labels.
  func tokens(
    _ source: DataSource, labelsAreTokens: Bool = false,
    addLabels: (DataRecord, inout Example) throws(PEFTError) -> Void
  ) throws(PEFTError) -> Dataset {
    var examples: [Example] = []
    examples.reserveCapacity(source.records.count)
    for record in source.records {
      let ids = try record.integers("input_ids")
      guard let ids else { throw record.missing("input_ids", setBy: "data_format") }
      let types = try record.integers("token_type_ids", count: ids.count)
      let mask = try record.integers("attention_mask", count: ids.count)
      var example = Example(tokenIDs: ids, typeIDs: types.flatMap(segments), labels: [])
      if let mask, mask.contains(0) { example.mask = mask.map { $0 == 0 ? 0 : 1 } }
      try addLabels(record, &example)
      example.dropPadding(isLabelled: labelsAreTokens)
      try check(example, at: record.location)
      examples.append(example)
    }
    return Dataset(examples)
  }

  /// Refuses labels that are no tokens.
  func checkLabels(_ example: Example, at location: String) throws(PEFTError) {
    for label in example.labels where label != ignoredLabel {
      if label < 0 || Int(label) >= limits.vocabulary {
        throw PEFTError(
          .invalidData,
          "the label \(label) is outside of the model's vocabulary of "
            + "\(limits.vocabulary)", at: location,
          remedy: "\(ignoredLabel) marks what is not counted.")
      }
    }
  }
}

extension InputLimits {
  /// Checks that a model can take an example.
  ///
  /// - Throws: ``PEFTError`` with the place.
  func check(_ example: Example, at location: String, isStrict: Bool) throws(PEFTError) {
    // A sequence without rows has no place in a batch: it would get the answer of another.
    if example.tokenIDs.isEmpty {
      throw PEFTError(.invalidData, "holds no token", at: location)
    }
    do {
      try check(
        ids: example.tokenIDs, types: example.typeIDs, length: example.tokenIDs.count,
        name: "input_ids", isStrict: isStrict)
    } catch {
      throw error.located(at: location)
    }
  }
}

extension Example {
  /// Removes hidden tokens at the end: nothing sees them, and packed rows need no padding.
  fileprivate mutating func dropPadding(isLabelled: Bool) {
    guard let flags = mask else { return }
    var count = flags.count
    while count > 1, flags[count - 1] == 0, !isLabelled || labels[count - 1] == ignoredLabel {
      count -= 1
    }
    tokenIDs.removeSubrange(count...)
    typeIDs?.removeSubrange(count...)
    if isLabelled { labels.removeSubrange(count...) }
    let rest = flags[..<count]
    mask = rest.contains(0) ? Array(rest) : nil
  }
}

extension DataRecord {
  /// A list of integers; `nil` when there is none.
  func integers(_ key: String, count: Int? = nil) throws(PEFTError) -> [Int32]? {
    guard let value = values[key], !value.isNull else { return nil }
    guard let elements = value.array else {
      throw PEFTError(
        .invalidData, "'\(key)' is \(value.kindName), a list of integers was expected",
        at: location)
    }
    var result: [Int32] = []
    result.reserveCapacity(elements.count)
    for element in elements {
      guard let number = element.int, let small = Int32(exactly: number) else {
        throw PEFTError(
          .invalidData, "'\(key)' holds \(element.text()), integers were expected", at: location)
      }
      result.append(small)
    }
    if let count, result.count != count {
      throw PEFTError(
        .invalidData, "'\(key)' has \(result.count) elements, 'input_ids' has \(count)",
        at: location)
    }
    return result
  }
}
