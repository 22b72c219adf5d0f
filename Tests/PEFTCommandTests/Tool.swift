import Foundation
import PEFT
import TestSupport
import Testing

/// The built `peft` binary, run as a process.
struct Tool {
  /// What a run left behind.
  struct Outcome {
    var status: Int32
    var output: String
    var errors: String
  }

  /// Runs the tool with arguments, and variables added to the environment, and waits.
  static func run(_ arguments: [String], _ variables: [String: String] = [:]) throws -> Outcome {
    let process = Process()
    process.environment = ProcessInfo.processInfo.environment.merging(variables) { $1 }
    process.executableURL = binary
    process.arguments = arguments
    process.standardInput = FileHandle.nullDevice
    let (output, errors) = (Pipe(), Pipe())
    process.standardOutput = output
    process.standardError = errors
    try process.run()
    // No test prints more on the error stream than a pipe holds.
    let text = output.fileHandleForReading.readDataToEndOfFile()
    let errorText = errors.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return Outcome(
      status: process.terminationStatus, output: String(decoding: text, as: UTF8.self),
      errors: String(decoding: errorText, as: UTF8.self))
  }

  /// Runs the tool and requires success.
  @discardableResult
  static func succeed(
    _ arguments: [String], _ variables: [String: String] = [:]
  ) throws -> Outcome {
    let outcome = try run(arguments, variables)
    try #require(outcome.status == 0, "\(arguments.joined(separator: " ")): \(outcome.errors)")
    return outcome
  }

  /// The binary stands beside the test bundle.
  private static var binary: URL {
    URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
      .appendingPathComponent("peft")
  }
}

/// A folder that is removed with its content when the test ends.
final class TemporaryFolder {
  let path: String

  init() throws {
    path = FileManager.default.temporaryDirectory.path + "/peft-test-\(UUID().uuidString)"
    try FileSystem.createDirectory(path)
  }

  deinit { FileSystem.removeTree(path) }

  /// The path of a file in it.
  func file(_ name: String) -> String { FileSystem.join(path, name) }

  /// The names of what is in it.
  var names: [String] { (try? FileSystem.list(path)) ?? [] }

  /// Copies a folder into it and returns the copy's path.
  func copy(_ folder: String, as name: String) throws -> String {
    try FileManager.default.copyItem(atPath: folder, toPath: file(name))
    return file(name)
  }
}

/// Writes a training run's record into an adapter's folder.
func record(modelConfig: JSONValue, in adapter: String) throws {
  let record: JSONValue = [
    "run_id": "1", "total_steps": 1, "train_examples": 1, "train_data": "0", "threads": 1,
    "settings": ["model_config": modelConfig, "max_length": 17],
  ]
  try FileSystem.write("\(adapter)/training_config.json", record.text())
}

/// A file of one of the golden folders.
func golden(_ relative: String) -> String { TestData.golden(relative) }

/// The largest difference relative to the largest expected magnitude.
func relativeError(_ actual: Tensor, _ expected: Tensor) -> Float {
  guard actual.count == expected.count else { return .infinity }
  let difference = zip(actual.scalars, expected.scalars).map { abs($0 - $1) }
  guard difference.allSatisfy(\.isFinite) else { return .infinity }
  return (difference.max() ?? 0) / max(expected.maximumMagnitude, 1e-30)
}
