import PEFTSupport

/// Reads typed members of a config and knows at the end which were not asked for.
///
/// Errors name the key, what was expected and what was found.
public struct ConfigReader {
  private let object: JSONObject
  private var read: Set<String> = []

  /// Creates a reader of an object's members.
  public init(_ object: JSONObject) { self.object = object }

  /// A member that is not `null`.
  public mutating func value(_ key: String) -> JSONValue? {
    read.insert(key)
    guard let value = object[key], !value.isNull else { return nil }
    return value
  }

  /// An integer.
  public mutating func int(_ key: String) throws(PEFTError) -> Int? {
    try convert(key, "an integer", \.int)
  }

  /// A number.
  public mutating func double(_ key: String) throws(PEFTError) -> Double? {
    try convert(key, "a number", \.double)
  }

  /// A Boolean.
  public mutating func bool(_ key: String) throws(PEFTError) -> Bool? {
    try convert(key, "true or false", \.bool)
  }

  /// A string.
  public mutating func string(_ key: String) throws(PEFTError) -> String? {
    try convert(key, "a string", \.string)
  }

  /// A list of strings; a single string counts as a list of one.
  public mutating func strings(_ key: String) throws(PEFTError) -> [String]? {
    guard let value = value(key) else { return nil }
    if let single = value.string { return [single] }
    return try Self.list(key, value, "strings", \.string)
  }

  /// A list of integers; a single one counts as a list of one.
  public mutating func ints(_ key: String) throws(PEFTError) -> [Int]? {
    guard let value = value(key) else { return nil }
    if let single = value.int { return [single] }
    return try Self.list(key, value, "integers", \.int)
  }

  /// A mapping to numbers, in file order.
  public mutating func numbers(_ key: String) throws(PEFTError) -> [(key: String, value: Double)]? {
    guard let value = value(key) else { return nil }
    guard let members = value.object?.members else {
      throw Self.mismatch(key, "a mapping to numbers", value)
    }
    var result: [(String, Double)] = []
    for (name, element) in members {
      guard let number = element.double else {
        throw Self.mismatch("\(key).\(name)", "a number", element)
      }
      result.append((name, number))
    }
    return result
  }

  /// Refuses a key that is known but not supported, unless it has one of its neutral values.
  public mutating func refuse(
    _ key: String, unless neutral: JSONValue..., because reason: String = ""
  ) throws(PEFTError) {
    guard let value = value(key), !neutral.contains(value) else { return }
    if value.array?.isEmpty == true { return }
    throw PEFTError(
      .unsupported, "'\(key)': \(value.text(.spaced)) is not supported\(reason)",
      remedy: "Remove the key or set it to its default.")
  }

  /// Counts a member as read if its value is of no interest; others are left to ``rest``.
  public mutating func drop(_ key: String, where isNothing: (JSONValue) -> Bool) {
    if let value = object[key], isNothing(value) { read.insert(key) }
  }

  /// The members that nobody asked for.
  public var rest: JSONObject {
    object.filter { key, _ in !read.contains(key) }
  }

  /// The error for a member of the wrong kind.
  public static func mismatch(
    _ key: String, _ expected: String, _ value: JSONValue
  ) -> PEFTError {
    PEFTError(
      .invalidConfiguration,
      "'\(key)' is \(value.kindName) (\(value.text(.spaced))), \(expected) was expected")
  }

  private mutating func convert<Value>(
    _ key: String, _ expected: String, _ path: KeyPath<JSONValue, Value?>
  ) throws(PEFTError) -> Value? {
    guard let value = value(key) else { return nil }
    guard let converted = value[keyPath: path] else {
      throw Self.mismatch(key, expected, value)
    }
    return converted
  }

  private static func list<Value>(
    _ key: String, _ value: JSONValue, _ expected: String, _ path: KeyPath<JSONValue, Value?>
  ) throws(PEFTError) -> [Value] {
    guard let elements = value.array else { throw mismatch(key, "a list of \(expected)", value) }
    var result: [Value] = []
    for element in elements {
      guard let converted = element[keyPath: path] else {
        throw mismatch(key, "a list of \(expected)", value)
      }
      result.append(converted)
    }
    return result
  }
}
