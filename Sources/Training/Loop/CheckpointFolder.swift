import PEFTSupport

/// The checkpoints of a run: folders `checkpoint-N` in its output folder.
struct CheckpointFolder {
  static let prefix = "checkpoint-"
  static let optimizerName = "optimizer.safetensors"
  /// The folder in which the run's result is complete before it replaces an earlier one's.
  private static let resultName = ".result"

  /// The run's output folder.
  let output: String

  /// The folder of a step.
  func path(_ step: Int) -> String { FileSystem.join(output, "\(Self.prefix)\(step)") }

  /// Where the result is put together.
  var resultPath: String { FileSystem.join(output, Self.resultName) }

  /// The steps for which there is a folder, in order, of whatever run.
  func steps() throws(PEFTError) -> [Int] {
    guard FileSystem.isDirectory(output) else { return [] }
    return try FileSystem.list(output).compactMap(Self.step(of:)).sorted()
  }

  /// The steps for which there is a checkpoint of one run, in order.
  ///
  /// An output folder may hold checkpoints of an earlier run; those are not resumed, and stay
  /// until one of the same step replaces them.
  func steps(ofRun id: String) throws(PEFTError) -> [Int] {
    try steps().filter { (try? RunRecord(folder: path($0)))?.id == id }
  }

  /// The checkpoint of a step of one run: the one here, else `other` if it is the run's.
  func find(_ step: Int, ofRun id: String, else other: String?) -> String? {
    [path(step), other].compactMap { $0 }.first { (try? RunRecord(folder: $0))?.id == id }
  }

  /// Removes what a kill in the middle of writing left behind.
  func removeLeftovers() throws(PEFTError) {
    guard FileSystem.isDirectory(output) else { return }
    FileSystem.removeLeftovers(of: resultPath)
    for name in try FileSystem.list(output) {
      guard let dot = name.firstIndex(of: "."), let step = Self.step(of: String(name[..<dot]))
      else { continue }
      FileSystem.removeLeftovers(of: path(step))
    }
  }

  /// Removes the oldest checkpoints of a run beyond a limit, but not the best and the newest.
  ///
  /// The newest is the one that was written last: a run that went on from an earlier checkpoint may
  /// have left later ones.
  func prune(
    ofRun id: String, keeping limit: Int, best: Int?, newest: Int
  ) throws(PEFTError) {
    let all = try steps(ofRun: id)
    var excess = all.count - limit
    for step in all where excess > 0 && step != best && step != newest {
      FileSystem.removeTree(path(step))
      excess -= 1
    }
  }

  private static func step(of name: String) -> Int? {
    guard name.hasPrefix(prefix) else { return nil }
    let digits = name.dropFirst(prefix.count)
    guard digits.allSatisfy({ $0.isASCII && $0.isNumber }) else { return nil }
    return Int(digits)
  }
}
