import Models
import PEFTCore
import PEFTSupport
import Tensors
import Tokenizers

/// What a model can take in, for checks before a kernel reads beyond a table.
public struct InputLimits: Sendable {
  /// Rows of the embedding.
  public var vocabulary: Int
  /// Most tokens of a sequence.
  public var positions: Int
  /// Number of segments; 1 for models that know none.
  public var types: Int

  /// Creates limits.
  public init(vocabulary: Int, positions: Int, types: Int = 1) {
    self.vocabulary = vocabulary
    self.positions = positions
    self.types = types
  }

  /// The limits in a config.json.
  public init(_ configuration: ModelConfiguration) throws(PEFTError) {
    vocabulary = try configuration.int("vocab_size", default: .max)
    positions = try configuration.int("max_position_embeddings", default: .max)
    types = try configuration.int("type_vocab_size", default: 1)
  }

  func check(_ example: Example, at location: String) throws(PEFTError) {
    let count = example.tokenIDs.count
    if count == 0 { throw PEFTError(.invalidData, "holds no token", at: location) }
    if count > positions {
      throw PEFTError(
        .invalidData, "\(count) tokens are more than the model's \(positions) positions",
        at: location, remedy: "Shorten it, or set 'max_length'.")
    }
    for id in example.tokenIDs where id < 0 || Int(id) >= vocabulary {
      throw PEFTError(
        .invalidData, "the token id \(id) is outside of the model's vocabulary of \(vocabulary)",
        at: location, remedy: "The tokenizer belongs to another model.")
    }
    for id in example.typeIDs ?? [] where id < 0 || Int(id) >= max(types, 1) {
      throw PEFTError(
        .invalidData, "the segment \(id) is not known; the model has \(types)", at: location)
    }
  }
}

/// Makes data sets out of data files: tokenises once, checks everything.
public struct DatasetBuilder: Sendable {
  /// Length of an example when neither the configuration nor the tokenizer says.
  public static let defaultMaxLength = 512

  private let task: TaskType
  private let configuration: DataConfiguration
  private let limits: InputLimits
  private let labels: LabelSet?
  private let tokenizer: Tokenizer?
  private let maxLength: Int

  /// Creates a builder.
  ///
  /// - Parameters:
  ///   - task: SEQ_CLS or CAUSAL_LM.
  ///   - configuration: Columns and lengths.
  ///   - limits: What the model takes.
  ///   - labels: The classes; needed for SEQ_CLS.
  ///   - tokenizer: Not needed where all files hold tokens.
  /// - Throws: ``PEFTError`` when `max_length` is beyond the model.
  public init(
    task: TaskType, configuration: DataConfiguration, limits: InputLimits, labels: LabelSet?,
    tokenizer: Tokenizer?
  ) throws(PEFTError) {
    self.task = task
    self.configuration = configuration
    self.limits = limits
    self.labels = labels
    if let wanted = configuration.maxLength, wanted > limits.positions {
      throw PEFTError(
        .invalidConfiguration,
        "'max_length' is \(wanted), but the model has only \(limits.positions) positions")
    }
    let usual =
      task == .sequenceClassification
      ? tokenizer?.truncation?.maxLength ?? Self.defaultMaxLength : Self.defaultMaxLength
    maxLength = configuration.maxLength ?? min(usual, limits.positions)
    var tokenizer = tokenizer
    // Rows are packed, and long texts of language models are cut here rather than dropped.
    tokenizer?.padding = nil
    if task == .causalLM { tokenizer?.truncation = nil }
    self.tokenizer = tokenizer
  }

  /// The examples of a file.
  ///
  /// - Throws: ``PEFTError`` with the line of what is wrong.
  public func dataset(_ source: DataSource) throws(PEFTError) -> Dataset {
    switch source.format {
    case .tokens: return try tokens(source)
    case .text: return try text(source)
    case .classification, .auto: return try classification(source)
    }
  }

  private func requireTokenizer() throws(PEFTError) -> Tokenizer {
    guard let tokenizer else {
      throw PEFTError(.invalidConfiguration, "this data needs a tokenizer")
    }
    return tokenizer
  }

  // MARK: Classification

  private func classification(_ source: DataSource) throws(PEFTError) -> Dataset {
    var encoder = try requireTokenizer().makeEncoder()
    guard let labels else {
      throw PEFTError(.invalidConfiguration, "this data needs labels", at: source.path)
    }
    var examples: [Example] = []
    examples.reserveCapacity(source.records.count)
    var full = 0
    for record in source.records {
      let text = try record.text(configuration.textColumn, setBy: "text_column")
      var pair: String?
      if let column = configuration.textPairColumn {
        pair = try record.text(column, setBy: "text_pair_column")
      }
      let name = try record.labelName(configuration.labelColumn)
      let id = try labels.id(of: name, at: record.location)
      let encoding = encoder.encode(text, pair: pair, maxLength: maxLength)
      if encoding.count == maxLength { full += 1 }
      let example = Example(
        tokenIDs: encoding.ids, typeIDs: segments(encoding.typeIDs), labels: [id])
      try limits.check(example, at: record.location)
      examples.append(example)
    }
    return Dataset(examples, truncatedCount: full)
  }

  /// The segments where they say anything.
  private func segments(_ ids: [Int32]) -> [Int32]? {
    limits.types > 1 && ids.contains { $0 != 0 } ? ids : nil
  }

  // MARK: Language models

  private func text(_ source: DataSource) throws(PEFTError) -> Dataset {
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
        try limits.check(example, at: source.path)
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
      try limits.check(example, at: record.location)
      examples.append(example)
    }
    try requireTargets(examples, source)
    return Dataset(examples, truncatedCount: full)
  }

  private func requireTargets(_ examples: [Example], _ source: DataSource) throws(PEFTError) {
    let hasTargets = examples.contains { example in
      example.labels.dropFirst().contains { $0 != ignoredLabel }
    }
    if !hasTargets {
      throw PEFTError(
        .invalidData, "the data is empty: no token has a label to predict", at: source.path)
    }
  }

  // MARK: Token ids

  private func tokens(_ source: DataSource) throws(PEFTError) -> Dataset {
    var examples: [Example] = []
    examples.reserveCapacity(source.records.count)
    for record in source.records {
      let ids = try record.integers("input_ids")
      guard let ids else { throw record.missing("input_ids", setBy: "data_format") }
      let types = try record.integers("token_type_ids", count: ids.count)
      let mask = try record.integers("attention_mask", count: ids.count)
      var example = Example(tokenIDs: ids, typeIDs: types.flatMap(segments), labels: [])
      if let mask, mask.contains(0) { example.mask = mask.map { $0 == 0 ? 0 : 1 } }
      example.labels =
        task == .causalLM
        ? try record.integers("labels", count: ids.count) ?? ids : [try label(of: record)]
      example.dropPadding(isLabelled: task == .causalLM)
      try limits.check(example, at: record.location)
      if task == .causalLM { try checkLabels(example, at: record.location) }
      examples.append(example)
    }
    if task == .causalLM { try requireTargets(examples, source) }
    return Dataset(examples)
  }

  private func label(of record: DataRecord) throws(PEFTError) -> Int32 {
    guard let value = record.values["label"] else {
      throw PEFTError(.invalidData, "there is no 'label'", at: record.location)
    }
    let count = labels?.count ?? 0
    guard case .int(let id) = value else {
      let name = try record.labelName("label")
      return try labels?.id(of: name, at: record.location) ?? 0
    }
    guard id >= 0, id < count else {
      throw PEFTError(
        .invalidData, "the label \(id) is not one of the model's \(count) classes",
        at: record.location, remedy: "Classes count from 0.")
    }
    return Int32(id)
  }

  private func checkLabels(_ example: Example, at location: String) throws(PEFTError) {
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
