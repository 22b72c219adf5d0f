import Models
import PEFTCore
import PEFTSupport

/// Where the data of a run is, and what its columns mean.
public struct DataConfiguration: Sendable, Equatable {
  /// What a file holds.
  public enum Format: String, Sendable, CaseIterable {
    /// Found out from the file's name, its first record and the task.
    case auto
    /// A text, or a pair of texts, with a label.
    case classification
    /// Text for a language model.
    case text
    /// Token ids.
    case tokens
    /// Words with a label each.
    case tokenClassification = "token_classification"
    /// Questions with a context and the place of the answer in it.
    case questionAnswering = "question_answering"
  }

  /// Where the names of the labels and their order come from.
  public enum Labels: Sendable, Equatable {
    /// Given in the configuration.
    case list([String])
    /// A JSON file: a list, or a mapping of ids to names or names to ids.
    case file(String)
  }

  /// `train_file`.
  public var trainFile: String?
  /// `validation_file`, evaluated during training.
  public var validationFile: String?
  /// `test_file`, evaluated once at the end.
  public var testFile: String?
  /// `data_format`.
  public var format = Format.auto
  /// `text_column`.
  public var textColumn = "text"
  /// `text_pair_column`, for tasks on two texts.
  public var textPairColumn: String?
  /// `label_column`.
  public var labelColumn = "label"
  /// `max_length`: most tokens of an example, special tokens included. Files of token ids are used as
  /// they are.
  public var maxLength: Int?
  /// `labels`; from the data unless given.
  public var labels: Labels?
  /// `problem_type` of SEQ_CLS; from config.json or the data unless given.
  public var problemType: ProblemType?
  /// `label_all_tokens`: whether all tokens of a word have its label, or only the first.
  public var labelsAllTokens = false
  /// `doc_stride`: how many tokens of a context that is cut into windows two neighbours share; 128, or
  /// half of a window's room for the context where that is less, unless given.
  public var stride: Int?

  /// Creates a description of no data.
  public init() {}

  static let keys =
    ["train_file", "validation_file", "test_file", "data_format", "labels"] + lastingKeys

  /// The settings that an adapter which was trained with them keeps for other data.
  static let lastingKeys = [
    "text_column", "text_pair_column", "label_column", "max_length", "problem_type",
    "label_all_tokens", "doc_stride",
  ]

  init(_ reader: inout SettingsReader) throws(PEFTError) {
    trainFile = try reader.string("train_file")
    validationFile = try reader.string("validation_file")
    testFile = try reader.string("test_file")
    format = try reader.choice("data_format", Format.self) ?? format
    textColumn = try reader.string("text_column") ?? textColumn
    textPairColumn = try reader.string("text_pair_column")
    labelColumn = try reader.string("label_column") ?? labelColumn
    maxLength = try reader.int("max_length", atLeast: 2)
    problemType = try reader.choice("problem_type", ProblemType.self)
    labelsAllTokens = try reader.bool("label_all_tokens") ?? labelsAllTokens
    stride = try reader.int("doc_stride", atLeast: 0)
    labels = try reader.value("labels").map { (value) throws(PEFTError) in
      try Self.labels(value)
    }
  }

  private static func labels(_ value: JSONValue) throws(PEFTError) -> Labels {
    if let path = value.string { return .file(path) }
    guard let elements = value.array else {
      throw ConfigReader.mismatch("labels", "a list of names or a JSON file", value)
    }
    var names: [String] = []
    for element in elements {
      guard let name = LabelSet.name(of: element) else {
        throw ConfigReader.mismatch("labels", "a list of names", value)
      }
      names.append(name)
    }
    return .list(names)
  }

  /// The settings under their keys.
  public var object: JSONObject {
    func text(_ value: String?) -> JSONValue { value.map { .string($0) } ?? .null }
    let labels: JSONValue
    switch self.labels {
    case nil: labels = .null
    case .list(let names)?: labels = .array(names.map { .string($0) })
    case .file(let path)?: labels = .string(path)
    }
    return JSONObject([
      ("train_file", text(trainFile)), ("validation_file", text(validationFile)),
      ("test_file", text(testFile)), ("data_format", .string(format.rawValue)),
      ("text_column", .string(textColumn)), ("text_pair_column", text(textPairColumn)),
      ("label_column", .string(labelColumn)), ("max_length", maxLength.map { .int($0) } ?? .null),
      ("labels", labels), ("problem_type", text(problemType?.rawValue)),
      ("label_all_tokens", .bool(labelsAllTokens)),
      ("doc_stride", stride.map { .int($0) } ?? .null),
    ])
  }
}
