import PEFTSupport
import Tensors

/// The labels of a classification task: ids from 0 on, and a name for each.
public struct LabelSet: Sendable, Equatable {
  /// The names by id.
  public let names: [String]
  /// Whether a name is an integer, so that a number in the data is meant as a name.
  let hasNumbers: Bool
  private let ids: [String: Int32]

  /// The file beside an adapter that holds the names.
  public static let fileName = "labels.json"

  /// Creates a set from names in the order of their ids.
  ///
  /// - Throws: ``PEFTError`` `invalidData` when a name occurs twice.
  public init(_ names: [String]) throws(PEFTError) {
    var ids: [String: Int32] = [:]
    for (id, name) in names.enumerated() {
      if ids.updateValue(Int32(id), forKey: name) != nil {
        throw PEFTError(.invalidData, "the label '\(name)' occurs twice in the list of labels")
      }
    }
    self.names = names
    self.ids = ids
    hasNumbers = names.contains { Int($0) != nil }
  }

  /// The labels that occur in data, sorted: as numbers when all of them are, else as text.
  public init(occurring values: some Sequence<String>) {
    let distinct = Set(values)
    let numbers = distinct.compactMap { Int($0) }
    let sorted =
      numbers.count == distinct.count
      ? distinct.sorted { Int($0)! < Int($1)! } : distinct.sorted()
    names = sorted
    hasNumbers = !numbers.isEmpty
    ids = Dictionary(uniqueKeysWithValues: sorted.enumerated().map { ($1, Int32($0)) })
  }

  /// Reads a JSON file: a list of names, a mapping of ids to names, or one of names to ids.
  ///
  /// - Throws: ``PEFTError`` naming the file.
  public init(file path: String) throws(PEFTError) {
    let value = try FileSystem.readJSON(path)
    do throws(PEFTError) {
      if let object = value.object {
        try self.init(mapping: object)
      } else {
        let elements = value.array ?? []
        let names = elements.compactMap(Self.name)
        guard !names.isEmpty, names.count == elements.count else { throw Self.malformed }
        try self.init(names)
      }
    } catch {
      throw error.located(at: path)
    }
  }

  /// Reads `id2label` or `label2id` as config.json has them.
  ///
  /// - Throws: ``PEFTError`` `malformedFile` when the ids are not 0, 1, 2, ….
  public init(mapping: JSONObject) throws(PEFTError) {
    var names: [Int: String] = [:]
    for (key, value) in mapping.members {
      if let id = Int(key), let name = Self.name(of: value) {
        names[id] = name
      } else if let id = value.int {
        names[id] = key
      } else {
        throw Self.malformed
      }
    }
    let ordered = (0..<names.count).compactMap { names[$0] }
    guard ordered.count == mapping.members.count else { throw Self.malformed }
    try self.init(ordered)
  }

  /// Number of labels.
  public var count: Int { names.count }

  /// The id of a name.
  public func id(of name: String) -> Int32? { ids[name] }

  /// The id of a name that a record has.
  ///
  /// - Throws: ``PEFTError`` `invalidData` with the place and the nearest label.
  func id(of name: String, at location: String) throws(PEFTError) -> Int32 {
    if let id = ids[name] { return id }
    let near = Spelling.nearest(to: name, among: names).map { "Did you mean '\($0)'?" }
    let shown = names.prefix(20).joined(separator: ", ") + (names.count > 20 ? ", …" : "")
    throw PEFTError(
      .invalidData, "unknown label '\(name)'; it is none of the \(names.count) labels of the model",
      at: location, remedy: near ?? "Known: \(shown).")
  }

  /// The names as a JSON list.
  public var json: JSONValue { .array(names.map { .string($0) }) }

  /// The name that a value in the data stands for; `nil` for lists, objects and fractions.
  static func name(of value: JSONValue) -> String? {
    switch value {
    case .string(let text): return text
    case .int(let number): return String(number)
    case .bool(let flag): return flag ? "true" : "false"
    case .double(let number): return Int(exactly: number).map(String.init)
    default: return nil
    }
  }

  /// Whether a value in the data is ``Tensors/ignoredLabel``, which names no class.
  static func isIgnored(_ value: JSONValue) -> Bool {
    name(of: value) == String(ignoredLabel)
  }

  private static let malformed = PEFTError(
    .malformedFile,
    "does not name labels: a list of different names, or a mapping between names "
      + "and the ids 0, 1, 2, …, was expected")
}
