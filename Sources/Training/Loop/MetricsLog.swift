import PEFTSupport

/// `metrics.jsonl`: one object a step, and one for each evaluation.
final class MetricsLog {
  static let fileName = "metrics.jsonl"
  private let file: OutputFile

  /// Opens the log for appending.
  ///
  /// - Parameters:
  ///   - path: The file.
  ///   - steps: The step at which the run goes on.
  ///   - former: The run's log so far, of which the entries up to that step are taken.
  init(_ path: String, goingOnAt steps: Int, after former: String?) throws(PEFTError) {
    var kept = ""
    if let former, FileSystem.exists(former) {
      // A run that was killed may have logged more than it saved, and half a line at the end.
      for line in try FileSystem.read(former).split(separator: UInt8(ascii: "\n")) {
        guard let entry = (try? JSONValue(parsing: Array(line)))?.object,
          let step = entry["step"]?.int, step <= steps,
          entry["loss"] != nil || entry["eval_loss"] != nil
        else { continue }
        kept += String(decoding: line, as: UTF8.self) + "\n"
      }
    }
    try FileSystem.write(path, kept)
    file = try OutputFile(creating: path, appending: true)
  }

  /// Appends an entry as one line.
  ///
  /// - Throws: ``PEFTError`` `fileAccess`, among others when the disk is full; the file then ends
  ///   with the line before.
  func append(_ members: [(String, JSONValue)]) throws(PEFTError) {
    try file.append(Array((JSONValue.object(JSONObject(members)).text(.spaced) + "\n").utf8))
  }
}
