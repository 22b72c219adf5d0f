import PEFTCore
import PEFTSupport

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
      text = try DataFile.text(path)
      records = []
      format = .text
    } else {
      text = nil
      records = try DataFile.records(path)
      format =
        configuration.format == .auto
        ? Self.format(of: records[0], configuration, task) : configuration.format
    }
    if let task { try check(task) }
  }

  private static func format(
    of record: DataRecord, _ configuration: DataConfiguration, _ task: TaskType?
  ) -> DataConfiguration.Format {
    if record.values["input_ids"] != nil { return .tokens }
    switch task {
    case .sequenceClassification: return .classification
    case .causalLM: return .text
    default: return record.values[configuration.labelColumn] == nil ? .text : .classification
    }
  }

  private func check(_ task: TaskType) throws(PEFTError) {
    let fits: Bool
    switch format {
    case .classification: fits = task == .sequenceClassification
    case .text: fits = task == .causalLM
    case .tokens, .auto: fits = true
    }
    if !fits {
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
    case .tokens:
      if records[0].values["label"] != nil { return .sequenceClassification }
      return records[0].values["labels"] != nil ? .causalLM : nil
    case .auto: return nil
    }
  }

  /// The names of the labels that occur.
  ///
  /// - Throws: ``PEFTError`` with the place of a record without a usable label.
  func labelNames(_ configuration: DataConfiguration) throws(PEFTError) -> [String] {
    var names: [String] = []
    names.reserveCapacity(records.count)
    for record in records { names.append(try record.labelName(configuration.labelColumn)) }
    return names
  }

  /// The largest class of a tokens file, or `nil` when it names its labels.
  func largestLabel() throws(PEFTError) -> Int? {
    var largest: Int?
    for record in records {
      guard let label = record.values["label"]?.int else { return nil }
      largest = max(largest ?? 0, label)
    }
    return largest
  }
}

extension DataRecord {
  /// The name of the record's label.
  func labelName(_ column: String) throws(PEFTError) -> String {
    guard let value = values[column] else { throw missing(column, setBy: "label_column") }
    guard let name = LabelSet.name(of: value) else {
      throw PEFTError(
        .invalidData,
        "the label in '\(column)' is \(value.kindName) (\(value.text())), a name or "
          + "an integer was expected", at: location)
    }
    return name
  }
}
