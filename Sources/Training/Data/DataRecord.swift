import PEFTSupport

/// One record of a data file, before it means anything.
public struct DataRecord: Sendable {
  /// The columns or members, in file order; those of CSV files are strings.
  public let values: JSONObject
  /// Where it stands: "train.csv:12".
  public let location: String

  /// Creates a record.
  public init(_ values: JSONObject, location: String) {
    self.values = values
    self.location = location
  }

  /// The text of a column.
  ///
  /// - Throws: ``PEFTError`` `invalidData` naming the place and the key that chooses the column.
  func text(_ column: String, setBy key: String) throws(PEFTError) -> String {
    guard let value = values[column] else { throw missing(column, setBy: key) }
    guard let text = value.string else {
      throw PEFTError(
        .invalidData, "'\(column)' is \(value.kindName), a text was expected", at: location)
    }
    return text
  }

  /// The error for a column that is not there.
  func missing(_ column: String, setBy key: String) -> PEFTError {
    PEFTError(
      .invalidData, "there is no '\(column)' among \(values.keys.joined(separator: ", "))",
      at: location, remedy: "Name the column with '\(key)'.")
  }
}

/// Reads data files by their names' endings.
public enum DataFile {
  /// What a file's name says that it holds.
  enum Container {
    case delimited(UInt8)
    case jsonLines
    case json
    case plainText

    init(_ path: String) throws(PEFTError) {
      let name = path.lowercased()
      if name.hasSuffix(".csv") {
        self = .delimited(UInt8(ascii: ","))
      } else if name.hasSuffix(".tsv") {
        self = .delimited(UInt8(ascii: "\t"))
      } else if name.hasSuffix(".jsonl") || name.hasSuffix(".ndjson") {
        self = .jsonLines
      } else if name.hasSuffix(".json") {
        self = .json
      } else if name.hasSuffix(".txt") {
        self = .plainText
      } else {
        throw PEFTError(
          .unsupported, "a data file of this kind is not known", at: path,
          remedy: "Use .csv, .tsv, .jsonl (.ndjson), .json or .txt.")
      }
    }
  }

  /// The records of a CSV, TSV, JSON Lines or JSON file.
  ///
  /// - Throws: ``PEFTError`` naming the file and the line; `invalidData` when there is none.
  public static func records(_ path: String) throws(PEFTError) -> [DataRecord] {
    let container = try Container(path)
    let bytes = try FileSystem.read(path)
    let records: [DataRecord]
    switch container {
    case .delimited(let separator):
      records = try CSVReader(bytes, separator: separator, path: path).records()
    case .jsonLines: records = try JSONLinesReader.records(bytes, path: path)
    case .json: records = try jsonRecords(bytes, path)
    case .plainText:
      throw PEFTError(
        .invalidData, "plain text has no records", at: path,
        remedy: "Use .csv or .jsonl for this task.")
    }
    if records.isEmpty {
      throw PEFTError(.invalidData, "the data is empty: no record was found", at: path)
    }
    return records
  }

  /// The text of a plain-text file.
  ///
  /// - Throws: ``PEFTError`` when it is empty or not UTF-8.
  public static func text(_ path: String) throws(PEFTError) -> String {
    let text = try decode(try FileSystem.read(path)[...], path: path, line: 1)
    if text.allSatisfy(\.isWhitespace) {
      throw PEFTError(.invalidData, "the data is empty: the file holds no text", at: path)
    }
    return text
  }

  private static func jsonRecords(_ bytes: [UInt8], _ path: String) throws(PEFTError)
    -> [DataRecord]
  {
    let value: JSONValue
    do { value = try JSONValue(parsing: bytes) } catch {
      throw error.located(at: path).with(
        remedy: "A .json file holds one list of objects; for one object a line use .jsonl.")
    }
    if let articles = value["data"]?.array { return squadRecords(articles, path) }
    guard let elements = value.array else {
      throw PEFTError(
        .invalidData, "holds \(value.kindName), a list of objects was expected", at: path)
    }
    var records: [DataRecord] = []
    for (index, element) in elements.enumerated() {
      guard let object = element.object else {
        throw PEFTError(
          .invalidData, "is \(element.kindName), an object was expected", at: "\(path)[\(index)]")
      }
      records.append(DataRecord(object, location: "\(path)[\(index)]"))
    }
    return records
  }

  /// The questions of a file as SQuAD publishes it: articles of paragraphs of questions.
  private static func squadRecords(_ articles: [JSONValue], _ path: String) -> [DataRecord] {
    var records: [DataRecord] = []
    for (a, article) in articles.enumerated() {
      guard let paragraphs = article["paragraphs"]?.array else {
        // A plain list of objects under "data".
        if let object = article.object {
          records.append(DataRecord(object, location: "\(path).data[\(a)]"))
        }
        continue
      }
      for (p, paragraph) in paragraphs.enumerated() {
        for (q, question) in (paragraph["qas"]?.array ?? []).enumerated() {
          guard var object = question.object else { continue }
          object["context"] = paragraph["context"]
          records.append(
            DataRecord(object, location: "\(path).data[\(a)].paragraphs[\(p)].qas[\(q)]"))
        }
      }
    }
    return records
  }

  /// UTF-8 text of bytes; a byte order mark at the start is dropped.
  ///
  /// - Parameter line: The line of the first byte.
  static func decode(
    _ bytes: ArraySlice<UInt8>, path: String, line: Int
  ) throws(PEFTError) -> String {
    var bytes = bytes
    if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { bytes = bytes.dropFirst(3) }
    if let text = String(validating: bytes, as: UTF8.self) { return text }
    // The error names the first line that is not valid.
    var place = line
    for part in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
      if String(validating: part, as: UTF8.self) == nil { break }
      place += 1
    }
    throw PEFTError(
      .invalidData, "is not UTF-8 text", at: "\(path):\(place)",
      remedy: "Convert the file, for instance with: iconv -f latin1 -t utf-8.")
  }
}

extension DataFile {
  /// The texts of a file to classify: the text column of records, else every line that is not
  /// empty.
  ///
  /// - Throws: ``PEFTError`` naming the file and line; when there is no text.
  public static func texts(
    _ path: String, _ columns: DataConfiguration
  ) throws(PEFTError) -> [(text: String, pair: String?)] {
    let container = try? Container(path)
    switch container {
    case .delimited, .jsonLines, .json:
      var texts: [(text: String, pair: String?)] = []
      for record in try records(path) {
        let text = try record.text(columns.textColumn, setBy: "text_column")
        var pair: String?
        if let column = columns.textPairColumn {
          pair = try record.text(column, setBy: "text_pair_column")
        }
        texts.append((text, pair))
      }
      return texts
    case .plainText, nil:
      return try text(path).split(whereSeparator: \.isNewline).map { (String($0), nil) }
    }
  }
}
