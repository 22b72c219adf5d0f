import PEFTSupport

extension DataFile {
  /// The texts of a file as lists of words: those of records, or of every line that is not empty,
  /// split at white space.
  ///
  /// - Throws: ``PEFTError`` naming the file and line; when there is no text.
  public static func words(
    _ path: String, _ columns: DataConfiguration
  ) throws(PEFTError) -> [[String]] {
    switch try? Container(path) {
    case .jsonLines, .json:
      var texts: [[String]] = []
      for record in try records(path) {
        if let text = record.values[columns.textColumn]?.string {
          texts.append(split(text))
        } else {
          texts.append(try record.words(columns))
        }
      }
      return texts
    case .delimited, .plainText, nil: return try texts(path, columns).map { split($0.text) }
    }
  }

  /// The words of a text.
  public static func split(_ text: String) -> [String] {
    text.split(whereSeparator: \.isWhitespace).map(String.init)
  }

  /// The questions of a file of records, each with its context.
  ///
  /// - Throws: ``PEFTError`` naming the file and line.
  public static func questions(
    _ path: String
  ) throws(PEFTError) -> [(question: String, context: String)] {
    var questions: [(question: String, context: String)] = []
    for record in try records(path) {
      questions.append(
        (
          try record.text("question", setBy: "--input"),
          try record.text("context", setBy: "--input")
        ))
    }
    return questions
  }
}
