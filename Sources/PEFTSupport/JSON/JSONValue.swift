/// A JSON value as a tree, with members in file order and integers kept apart from floats.
public enum JSONValue: Sendable, Equatable {
  case null
  case bool(Bool)
  case int(Int)
  case double(Double)
  case string(String)
  case array([JSONValue])
  case object(JSONObject)

  /// Parses a whole JSON text.
  ///
  /// - Throws: ``PEFTError`` with `malformedFile` and the byte offset.
  public init(parsing bytes: [UInt8]) throws(PEFTError) {
    var scanner = JSONScanner(bytes)
    self = try scanner.readDocument()
  }

  /// Parses a whole JSON text.
  public init(parsing text: String) throws(PEFTError) {
    try self.init(parsing: Array(text.utf8))
  }

  /// The value as a Boolean.
  public var bool: Bool? {
    if case .bool(let value) = self { return value }
    return nil
  }

  /// The value as an integer; a float without fraction counts.
  public var int: Int? {
    switch self {
    case .int(let value): return value
    case .double(let value): return Int(exactly: value)
    default: return nil
    }
  }

  /// The value as a float; an integer counts.
  public var double: Double? {
    switch self {
    case .int(let value): return Double(value)
    case .double(let value): return value
    default: return nil
    }
  }

  /// The value as a string.
  public var string: String? {
    if case .string(let value) = self { return value }
    return nil
  }

  /// The value as an array.
  public var array: [JSONValue]? {
    if case .array(let value) = self { return value }
    return nil
  }

  /// The value as an object.
  public var object: JSONObject? {
    if case .object(let value) = self { return value }
    return nil
  }

  /// Whether the value is `null`.
  public var isNull: Bool { self == .null }

  /// The member of an object, or `nil` when this is none or lacks it.
  public subscript(key: String) -> JSONValue? { object?[key] }

  /// What the value is, for messages: "a string", "an integer".
  public var kindName: String {
    switch self {
    case .null: return "null"
    case .bool: return "a Boolean"
    case .int: return "an integer"
    case .double: return "a number"
    case .string: return "a string"
    case .array: return "a list"
    case .object: return "an object"
    }
  }
}

/// The members of a JSON object in their order; a repeated key keeps its last value, as in Python.
public struct JSONObject: Sendable, Equatable {
  /// The members in order.
  public private(set) var members: [(key: String, value: JSONValue)] = []
  private var index: [String: Int] = [:]

  /// Creates an empty object.
  public init() {}

  /// Creates an object from members in order.
  public init(_ members: some Sequence<(String, JSONValue)>) {
    for (key, value) in members { self[key] = value }
  }

  /// The object with some of its members.
  public func filter(_ isIncluded: (_ key: String, _ value: JSONValue) -> Bool) -> JSONObject {
    JSONObject(members.filter { isIncluded($0.key, $0.value) }.map { ($0.key, $0.value) })
  }

  /// The keys in order.
  public var keys: [String] { members.map(\.key) }

  /// The value of `key`; setting `nil` removes the member.
  public subscript(key: String) -> JSONValue? {
    get { index[key].map { members[$0].value } }
    set {
      switch (index[key], newValue) {
      case (let place?, let value?): members[place].value = value
      case (nil, let value?):
        index[key] = members.count
        members.append((key, value))
      case (let place?, nil):
        members.remove(at: place)
        index.removeAll()
        for (offset, member) in members.enumerated() { index[member.key] = offset }
      case (nil, nil): break
      }
    }
  }

  /// Equal when they hold the same members, in whatever order.
  public static func == (a: JSONObject, b: JSONObject) -> Bool {
    a.members.count == b.members.count && a.members.allSatisfy { b[$0.key] == $0.value }
  }
}

extension JSONValue: ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
  ExpressibleByFloatLiteral, ExpressibleByStringLiteral, ExpressibleByArrayLiteral,
  ExpressibleByDictionaryLiteral, ExpressibleByNilLiteral
{
  /// Creates a Boolean.
  public init(booleanLiteral value: Bool) { self = .bool(value) }
  /// Creates an integer.
  public init(integerLiteral value: Int) { self = .int(value) }
  /// Creates a number.
  public init(floatLiteral value: Double) { self = .double(value) }
  /// Creates a string.
  public init(stringLiteral value: String) { self = .string(value) }
  /// Creates a list.
  public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
  /// Creates an object with its members in order.
  public init(dictionaryLiteral elements: (String, JSONValue)...) {
    self = .object(JSONObject(elements))
  }
  /// Creates a `null`.
  public init(nilLiteral: ()) { self = .null }
}
