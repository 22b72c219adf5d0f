import PEFTSupport

/// Reads one JSON object a line; empty lines are skipped.
enum JSONLinesReader {
  /// The records of a file's bytes.
  ///
  /// - Throws: ``PEFTError`` `invalidData` with the line of a malformed record.
  static func records(_ bytes: [UInt8], path: String) throws(PEFTError) -> [DataRecord] {
    var records: [DataRecord] = []
    var number = 0
    for line in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
      number += 1
      if line.allSatisfy({ $0 == 0x20 || $0 == 0x09 || $0 == 0x0D }) { continue }
      let location = "\(path):\(number)"
      if String(validating: line, as: UTF8.self) == nil {
        _ = try DataFile.decode(line, path: path, line: number)
      }
      let value: JSONValue
      do { value = try JSONValue(parsing: Array(line)) } catch {
        throw PEFTError(.invalidData, error.message, at: location)
      }
      guard let object = value.object else {
        throw PEFTError(
          .invalidData, "is \(value.kindName), an object was expected", at: location)
      }
      records.append(DataRecord(object, location: location))
    }
    return records
  }
}
