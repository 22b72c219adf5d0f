import Models
import PEFTCore
import PEFTSupport
import Tensors

/// A data file, read and recognised, not yet tokenised.
public struct DataSource: Sendable {
  /// The file.
  public let path: String
  /// What it holds; never `auto`.
  public let format: DataConfiguration.Format
  /// Its records; none for plain text.
  public let records: [DataRecord]
  /// The text of a plain-text file.
  public let text: String?
  /// The column with the labels of sequences: the configured one; of token ids else `label`, or `labels`
  /// where it is no list with a label for each token.
  public let labelColumn: String

  /// Reads a file.
  ///
  /// - Parameters:
  ///   - path: The file.
  ///   - configuration: The format and the columns.
  ///   - task: The task, where it is known already.
  /// - Throws: ``PEFTError`` naming the file and line of what is wrong.
  public init(
    _ path: String, _ configuration: DataConfiguration, task: TaskType?
  ) throws(PEFTError) {
    self.path = path
    if case .plainText = try DataFile.Container(path) {
      guard [.auto, .text].contains(configuration.format) else {
        throw PEFTError(
          .invalidConfiguration,
          "'data_format' is \(configuration.format.rawValue), but a .txt file holds text", at: path)
      }
      labelColumn = configuration.labelColumn
      text = try DataFile.text(path)
      records = []
      format = .text
    } else {
      text = nil
      records = try DataFile.records(path)
      format =
        configuration.format == .auto
        ? Self.format(of: records[0], configuration, task) : configuration.format
      labelColumn =
        format == .tokens
        ? Self.labelColumn(of: records[0].values, configuration.labelColumn, task)
        : configuration.labelColumn
    }
    if let task { try check(task) }
  }

  /// The column with the label of a sequence of token ids.
  private static func labelColumn(
    of values: JSONObject, _ configured: String, _ task: TaskType?
  ) -> String {
    if let found = [configured, "label"].first(where: { values[$0] != nil }) { return found }
    guard let labels = values["labels"] else { return configured }
    return task == .sequenceClassification || labels.array == nil ? "labels" : configured
  }

  private static func format(
    of record: DataRecord, _ configuration: DataConfiguration, _ task: TaskType?
  ) -> DataConfiguration.Format {
    if record.values["input_ids"] != nil { return .tokens }
    if let task, let format = try? task.training().formats.first { return format }
    if record.values["question"] != nil, record.values["context"] != nil {
      return .questionAnswering
    }
    if ["words", "tokens"].contains(where: { record.values[$0]?.array != nil }) {
      return .tokenClassification
    }
    return record.values[configuration.labelColumn] == nil ? .text : .classification
  }

  private func check(_ task: TaskType) throws(PEFTError) {
    guard format != .tokens, format != .auto else { return }
    // A task that cannot be trained says so when it is.
    guard let formats = try? task.training().formats else { return }
    if !formats.contains(format) {
      throw PEFTError(
        .invalidData, "data of the format '\(format.rawValue)' does not fit the task \(task.name)",
        at: path, remedy: "Check 'task_type' and 'data_format'.")
    }
  }

  /// The task that the data speaks for; `nil` when it could be either.
  var impliedTask: TaskType? {
    switch format {
    case .classification: return .sequenceClassification
    case .text: return .causalLM
    case .tokenClassification: return .tokenClassification
    case .questionAnswering: return .questionAnswering
    case .tokens:
      let values = records[0].values
      if let label = values[labelColumn], labelColumn != "labels" || label.array == nil {
        return .sequenceClassification
      }
      if values["start_positions"] != nil { return .questionAnswering }
      return values["labels"] != nil ? .causalLM : nil
    case .auto: return nil
    }
  }

  /// The names of the labels that occur, without ``Tensors/ignoredLabel``.
  ///
  /// - Throws: ``PEFTError`` with the place of a record without a usable label.
  func labelNames(_ configuration: DataConfiguration) throws(PEFTError) -> [String] {
    var names: [String] = []
    names.reserveCapacity(records.count)
    for record in records {
      let column = configuration.labelColumn
      if format == .tokenClassification {
        for tag in try record.tags(configuration, count: nil) where !LabelSet.isIgnored(tag) {
          names.append(try record.labelName(tag, in: "tags"))
        }
      } else if let labels = record.values[column]?.array {
        for label in labels where !LabelSet.isIgnored(label) {
          names.append(try record.labelName(label, in: column))
        }
      } else if record.values[column].map(LabelSet.isIgnored) != true {
        names.append(try record.labelName(column))
      }
    }
    return names
  }

  /// Most classes of a tokens file, where nothing but the largest id says how many there are.
  private static let mostClasses = 1 << 20

  /// The largest class of a tokens file, or `nil` when it names its labels.
  ///
  /// - Parameter column: "label", or "labels" with one for each token.
  /// - Throws: ``PEFTError`` with the place of a class for which no head would have room.
  func largestLabel(_ column: String) throws(PEFTError) -> Int? {
    var largest: Int?
    for record in records {
      for value in record.values[column]?.array ?? [record.values[column] ?? .null] {
        guard let label = value.int else { return nil }
        if label >= Self.mostClasses {
          throw PEFTError(
            .invalidData,
            "the class \(label) in '\(column)' is beyond the largest, "
              + "\(Self.mostClasses - 1)", at: record.location,
            remedy: "Classes count from 0 without gaps.")
        }
        largest = max(largest ?? 0, label)
      }
    }
    return largest
  }

  /// What the labels of sequences are, by those of the first record: a list of names, or numbers
  /// with a fraction. In CSV files, which have no types, all labels must be numbers and one of them
  /// no integer.
  var impliedProblem: ProblemType {
    let value = records.first?.values[labelColumn]
    func isFraction(_ value: JSONValue) -> Bool {
      if case .double = value { return true }
      return false
    }
    if let elements = value?.array {
      return elements.contains(where: isFraction) ? .regression : .multiLabel
    }
    if value?.string != nil { return hasWrittenNumbers ? .regression : .singleLabel }
    return value.map(isFraction) == true ? .regression : .singleLabel
  }

  private var hasWrittenNumbers: Bool {
    guard path.hasSuffix(".csv") || path.hasSuffix(".tsv") else { return false }
    var hasFraction = false
    for record in records {
      guard let text = record.values[labelColumn]?.string, let number = Double(text),
        number.isFinite
      else { return false }
      if Int(text) == nil { hasFraction = true }
    }
    return hasFraction
  }
}

extension DataRecord {
  /// The name of the record's label.
  func labelName(_ column: String) throws(PEFTError) -> String {
    guard let value = values[column] else { throw missing(column, setBy: "label_column") }
    return try labelName(value, in: column)
  }

  /// The name of a label that is somewhere in a column.
  func labelName(_ value: JSONValue, in column: String) throws(PEFTError) -> String {
    guard let name = LabelSet.name(of: value) else {
      throw PEFTError(
        .invalidData,
        "the label in '\(column)' is \(value.kindName) (\(value.text())), a name or "
          + "an integer was expected", at: location)
    }
    return name
  }
}
