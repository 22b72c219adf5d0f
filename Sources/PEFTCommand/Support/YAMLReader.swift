import PEFT
import Yams

/// Reads YAML as JSON values, plain scalars by the core schema of YAML 1.2: `1e-3` is a number,
/// `no` is text.
enum YAMLReader {
  /// The mapping in a file.
  ///
  /// - Throws: ``PEFTError`` with the line of a syntax error.
  static func object(file path: String) throws(PEFTError) -> JSONObject {
    let bytes = try FileSystem.read(path)
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw PEFTError(.malformedFile, "is not UTF-8 text", at: path)
    }
    let value: JSONValue
    do { value = try parse(text) } catch { throw error.located(at: path) }
    if value.isNull { throw PEFTError(.malformedFile, "holds no settings", at: path) }
    guard let object = value.object else {
      throw PEFTError(
        .malformedFile, "holds \(value.kindName), a mapping of settings was expected", at: path)
    }
    return object
  }

  /// Applies `key=value` as the command line has it; keys may be dotted, values are YAML.
  static func apply(_ setting: String, to object: inout JSONObject) throws(PEFTError) {
    guard let equals = setting.firstIndex(of: "="), equals != setting.startIndex else {
      throw PEFTError(
        .invalidConfiguration, "'\(setting)' is not of the form key=value", at: "--set")
    }
    let text = String(setting[setting.index(after: equals)...])
    do {
      try object.set(String(setting[..<equals]), to: try value(text))
    } catch {
      throw error.located(at: "--set \(setting)")
    }
  }

  /// A value on the command line: a quoted text, a list or a mapping in YAML's flow form, else a
  /// plain scalar.
  static func value(_ text: String) throws(PEFTError) -> JSONValue {
    if let first = text.first, "[{\"'".contains(first) { return try parse(text) }
    return scalar(text)
  }

  /// Parses one document; an empty one is `null`.
  static func parse(_ text: String) throws(PEFTError) -> JSONValue {
    let node: Node?
    do { node = try compose(yaml: text, .basic) } catch {
      throw PEFTError(.malformedFile, describe(error))
    }
    return try node.map { (node) throws(PEFTError) in try convert(node) } ?? .null
  }

  private static func convert(_ node: Node) throws(PEFTError) -> JSONValue {
    switch node {
    case .scalar(let scalar):
      let isPlain = scalar.style == .plain && scalar.tag.rawValue.isEmpty
      return isPlain ? self.scalar(scalar.string) : .string(scalar.string)
    case .sequence(let sequence):
      var elements: [JSONValue] = []
      for element in sequence { elements.append(try convert(element)) }
      return .array(elements)
    case .mapping(let mapping):
      var object = JSONObject()
      for (key, value) in mapping {
        guard let name = key.scalar?.string else {
          throw PEFTError(
            .malformedFile, "line \(key.mark?.line ?? 0): a key must be plain text")
        }
        object[name] = try convert(value)
      }
      return .object(object)
    case .alias:
      throw PEFTError(.malformedFile, "an alias refers to nothing")
    }
  }

  /// A plain scalar by the core schema (YAML 1.2.2, section 10.3.2).
  static func scalar(_ text: String) -> JSONValue {
    switch text {
    case "", "~", "null", "Null", "NULL": return .null
    case "true", "True", "TRUE": return .bool(true)
    case "false", "False", "FALSE": return .bool(false)
    case ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF": return .double(.infinity)
    case "-.inf", "-.Inf", "-.INF": return .double(-.infinity)
    case ".nan", ".NaN", ".NAN": return .double(.nan)
    default: return number(text) ?? .string(text)
    }
  }

  private static func number(_ text: String) -> JSONValue? {
    if text.hasPrefix("0x") { return Int(text.dropFirst(2), radix: 16).map { .int($0) } }
    if text.hasPrefix("0o") { return Int(text.dropFirst(2), radix: 8).map { .int($0) } }
    var rest = Substring(text)
    if let sign = rest.first, sign == "-" || sign == "+" { rest.removeFirst() }
    let whole = rest.prefix { $0.isASCII && $0.isNumber }
    rest = rest.dropFirst(whole.count)
    if rest.isEmpty, !whole.isEmpty {
      return Int(text).map { .int($0) } ?? Double(text).map { .double($0) }
    }
    var fraction: Substring = ""
    if rest.first == "." {
      rest.removeFirst()
      fraction = rest.prefix { $0.isASCII && $0.isNumber }
      rest = rest.dropFirst(fraction.count)
    }
    guard !whole.isEmpty || !fraction.isEmpty else { return nil }
    if let mark = rest.first {
      guard mark == "e" || mark == "E" else { return nil }
      rest.removeFirst()
      if let sign = rest.first, sign == "-" || sign == "+" { rest.removeFirst() }
      guard !rest.isEmpty, rest.allSatisfy({ $0.isASCII && $0.isNumber }) else { return nil }
    }
    // Swift wants digits on both sides of the point.
    let sign = text.first == "-" ? "-" : ""
    let exponent = text.drop { $0 != "e" && $0 != "E" }
    let normal =
      "\(sign)\(whole.isEmpty ? "0" : whole).\(fraction.isEmpty ? "0" : fraction)\(exponent)"
    return Double(normal).map { .double($0) }
  }

  private static func describe(_ error: any Error) -> String {
    switch error as? YamlError {
    case .scanner(_, let problem, let mark, _)?, .parser(_, let problem, let mark, _)?,
      .composer(_, let problem, let mark, _)?:
      return "not valid YAML: line \(mark.line), column \(mark.column): \(problem)"
    case .duplicatedKeysInMapping(let duplicates, let context)?:
      return
        "line \(context.mark.line): the key '\(duplicates.sorted().joined(separator: "', '"))' "
        + "occurs twice"
    case let other?: return "not valid YAML: \(other)"
    case nil: return "not valid YAML: \(error)"
    }
  }
}
