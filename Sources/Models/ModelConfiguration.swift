import PEFTSupport
import Synchronization

/// The members of a model's `config.json`, read with defaults and checked: a member that is missing
/// without a default, or of another kind, is a ``PEFTError`` `invalidConfiguration` with file and key.
public struct ModelConfiguration: Sendable {
  /// The file's members, overrides applied.
  public let object: JSONObject
  /// The file, for errors.
  public let path: String
  /// Keys of overrides that the file does not have.
  private let added: [String]
  private let asked = AskedKeys()

  /// Creates a configuration from members.
  public init(_ object: JSONObject, path: String = "config.json") {
    self.object = object
    self.path = path
    added = []
  }

  /// Reads `config.json` in a model folder.
  ///
  /// - Parameters:
  ///   - folder: The folder.
  ///   - overrides: Members that replace those of the file.
  /// - Throws: ``PEFTError`` when the folder or file is missing or malformed.
  public init(folder: String, overrides: JSONObject = JSONObject()) throws(PEFTError) {
    guard FileSystem.isDirectory(folder) else {
      throw PEFTError(.fileNotFound, "no such model folder", at: folder, remedy: "Check the path.")
    }
    path = FileSystem.join(folder, "config.json")
    guard var object = try FileSystem.readJSON(path).object else {
      throw PEFTError(.malformedFile, "is not a JSON object", at: path)
    }
    added = overrides.keys.filter { object[$0] == nil }
    for (key, value) in overrides.members { object[key] = value }
    self.object = object
  }

  /// A member, if it is there.
  public subscript(key: String) -> JSONValue? {
    asked.insert(key)
    return object[key]
  }

  /// Refuses overrides that nothing has asked for and that the file does not have either: they are
  /// mistakes.
  ///
  /// To be called when the model's parts have been described.
  ///
  /// - Parameter keys: Those of the overrides to check.
  /// - Throws: ``PEFTError`` `invalidConfiguration` with the nearest known key.
  public func checkOverrides(_ keys: [String]) throws(PEFTError) {
    let known = asked.all.union(Self.general)
    guard let key = keys.first(where: { added.contains($0) && !known.contains($0) }) else { return }
    throw PEFTError(
      .invalidConfiguration, "unknown key '\(key)': no part of the model reads it",
      remedy: Spelling.nearest(to: key, among: known.sorted()).map { "Did you mean '\($0)'?" }
        ?? "Remove it.")
  }

  /// Members that are read for some tasks or ways of loading only.
  private static let general: Set<String> = [
    "architectures", "id2label", "label2id", "num_labels", "problem_type", "initializer_range",
  ]

  /// `model_type`.
  public var modelType: String { self["model_type"]?.string ?? "" }
  /// The class names in `architectures`.
  public var architectures: [String] {
    self["architectures"]?.array?.compactMap(\.string) ?? []
  }

  /// A positive integer that must be there, unless a default is given.
  public func int(_ key: String, default fallback: Int? = nil) throws(PEFTError) -> Int {
    guard let value = self[key], !value.isNull else {
      guard let fallback else { throw missing(key) }
      return fallback
    }
    guard let number = value.int, number > 0 else { throw wrong(key, "a positive integer", value) }
    // Products of two sizes are numbers of 64 bits.
    guard number < 1 << 31 else { throw wrong(key, "an integer below 2^31", value) }
    return number
  }

  /// An integer that may be absent.
  public func optionalInt(_ key: String) throws(PEFTError) -> Int? {
    guard let value = self[key], !value.isNull else { return nil }
    if let number = value.int { return number }
    // Some files list several ids, of which the first is the main one.
    if let first = value.array?.first?.int { return first }
    throw wrong(key, "an integer", value)
  }

  /// A number.
  public func double(_ key: String, default fallback: Double? = nil) throws(PEFTError) -> Double {
    guard let value = self[key], !value.isNull else {
      guard let fallback else { throw missing(key) }
      return fallback
    }
    guard let number = value.double else { throw wrong(key, "a number", value) }
    return number
  }

  /// A number above 0.
  func positive(_ key: String, default fallback: Double? = nil) throws(PEFTError) -> Double {
    let number = try double(key, default: fallback)
    guard number > 0, number.isFinite else { throw wrong(key, "a number above 0", .double(number)) }
    return number
  }

  /// A Boolean.
  public func bool(_ key: String, default fallback: Bool) throws(PEFTError) -> Bool {
    guard let value = self[key], !value.isNull else { return fallback }
    guard let flag = value.bool else { throw wrong(key, "true or false", value) }
    return flag
  }

  /// A string.
  public func string(_ key: String, default fallback: String) throws(PEFTError) -> String {
    guard let value = self[key], !value.isNull else { return fallback }
    guard let text = value.string else { throw wrong(key, "a string", value) }
    return text
  }

  /// A probability.
  public func probability(_ key: String, default fallback: Double) throws(PEFTError) -> Double {
    let value = try double(key, default: fallback)
    guard (0..<1).contains(value) else {
      throw wrong(key, "a number from 0 to below 1", .double(value))
    }
    return value
  }

  /// Refuses a feature of the architecture that is not implemented.
  public func unsupported(_ key: String, _ value: String) -> PEFTError {
    PEFTError(
      .unsupported, "'\(key)': \(value) is not supported for model type '\(modelType)'", at: path)
  }

  private func missing(_ key: String) -> PEFTError {
    PEFTError(.invalidConfiguration, "the key '\(key)' is missing", at: path)
  }

  private func wrong(_ key: String, _ expected: String, _ value: JSONValue) -> PEFTError {
    PEFTError(
      .invalidConfiguration, "'\(key)' is \(value.text(.spaced)), \(expected) was expected",
      at: path)
  }
}

/// The keys that were asked for.
private final class AskedKeys: Sendable {
  private let keys = Mutex<Set<String>>([])

  var all: Set<String> { keys.withLock { $0 } }

  func insert(_ key: String) { keys.withLock { _ = $0.insert(key) } }
}

/// What the numbers that a sequence classifier gives are, with config.json's names.
public enum ProblemType: String, Sendable, CaseIterable {
  /// One of the labels.
  case singleLabel = "single_label_classification"
  /// Any number of the labels.
  case multiLabel = "multi_label_classification"
  /// Numbers.
  case regression
}

extension ModelConfiguration {
  /// `problem_type`, if it is there.
  ///
  /// - Throws: ``PEFTError`` for one that is not known.
  public func problemType() throws(PEFTError) -> ProblemType? {
    guard let value = self["problem_type"], !value.isNull else { return nil }
    guard let name = value.string, let type = ProblemType(rawValue: name) else {
      throw PEFTError(
        .invalidConfiguration, "'problem_type' is \(value.text(.spaced)), which is not known",
        at: path,
        remedy: "Known: \(ProblemType.allCases.map(\.rawValue).joined(separator: ", ")).")
    }
    return type
  }
}
