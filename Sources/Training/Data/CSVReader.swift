import PEFTSupport

/// Reads comma- or tab-separated values as RFC 4180 defines them: fields may be quoted, quotes in
/// them are doubled, and quoted fields may hold separators and line breaks.
///
/// The first record is the header. Lines end with LF, CRLF or CR; empty lines are skipped.
struct CSVReader {
  private let bytes: [UInt8]
  private let separator: UInt8
  private let path: String
  private var position = 0
  private var line = 1

  private static let quote = UInt8(ascii: "\"")
  private static let newline = UInt8(ascii: "\n")
  private static let carriageReturn = UInt8(ascii: "\r")

  init(_ bytes: [UInt8], separator: UInt8 = UInt8(ascii: ","), path: String) {
    self.bytes = bytes
    self.separator = separator
    self.path = path
    if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { position = 3 }
  }

  /// All records after the header.
  ///
  /// - Throws: ``PEFTError`` `invalidData` with the line: a quote that does not end or that text
  ///   follows, a record of another length than the header, a column named twice.
  consuming func records() throws(PEFTError) -> [DataRecord] {
    var reader = self
    guard let header = try reader.next() else { return [] }
    if let twice = header.fields.first(where: { name in
      header.fields.count(where: { $0 == name }) > 1
    }) {
      throw reader.error("the column '\(twice)' occurs twice", line: header.line)
    }
    var records: [DataRecord] = []
    while let (fields, line) = try reader.next() {
      guard fields.count == header.fields.count else {
        throw reader.error(
          "the record has \(fields.count) fields, the header has \(header.fields.count)",
          line: line)
      }
      let values = JSONObject(zip(header.fields, fields.map { .string($0) }))
      records.append(DataRecord(values, location: "\(reader.path):\(line)"))
    }
    return records
  }

  /// The next record that is not an empty line, with the line where it begins.
  private mutating func next() throws(PEFTError) -> (fields: [String], line: Int)? {
    while position < bytes.count, endLine() {}
    guard position < bytes.count else { return nil }
    let start = line
    var fields: [String] = []
    while true {
      fields.append(try field())
      if position < bytes.count, bytes[position] == separator {
        position += 1
      } else {
        _ = endLine()
        return (fields, start)
      }
    }
  }

  private mutating func field() throws(PEFTError) -> String {
    let start = line
    guard position < bytes.count, bytes[position] == Self.quote else {
      let begin = position
      while position < bytes.count, bytes[position] != separator,
        bytes[position] != Self.newline, bytes[position] != Self.carriageReturn
      { position += 1 }
      return try DataFile.decode(bytes[begin..<position], path: path, line: start)
    }
    position += 1
    var content: [UInt8] = []
    while true {
      guard position < bytes.count else {
        throw error("a quoted field does not end", line: start)
      }
      let byte = bytes[position]
      position += 1
      if byte == Self.newline { line += 1 }
      guard byte == Self.quote else {
        content.append(byte)
        continue
      }
      guard position < bytes.count, bytes[position] == Self.quote else { break }
      content.append(Self.quote)
      position += 1
    }
    if position < bytes.count, bytes[position] != separator, bytes[position] != Self.newline,
      bytes[position] != Self.carriageReturn
    {
      throw error("text follows a quoted field; a quote inside must be doubled", line: line)
    }
    return try DataFile.decode(content[...], path: path, line: start)
  }

  /// Steps over one line end, if there is one here.
  private mutating func endLine() -> Bool {
    guard position < bytes.count else { return false }
    if bytes[position] == Self.carriageReturn {
      position += 1
      if position < bytes.count, bytes[position] == Self.newline { position += 1 }
    } else if bytes[position] == Self.newline {
      position += 1
    } else {
      return false
    }
    line += 1
    return true
  }

  private func error(_ message: String, line: Int) -> PEFTError {
    PEFTError(.invalidData, message, at: "\(path):\(line)")
  }
}
