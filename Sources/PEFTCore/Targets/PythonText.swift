import PEFTSupport

/// Values as peft's messages show them, so that a message can be looked up.
enum PythonText {
  /// `['a', 'b']`.
  static func list(_ names: some Sequence<String>) -> String {
    "[" + names.map { "'\($0)'" }.joined(separator: ", ") + "]"
  }

  /// `{'a', 'b'}`, sorted.
  static func set(_ names: some Sequence<String>) -> String {
    let names = Set(names)
    return names.isEmpty
      ? "set()" : "{" + names.sorted().map { "'\($0)'" }.joined(separator: ", ") + "}"
  }

  /// A value of a config.
  static func value(_ value: JSONValue) -> String {
    switch value {
    case .null: return "None"
    case .bool(let value): return value ? "True" : "False"
    case .string(let text): return "'\(text)'"
    case .array(let elements):
      return "[\(elements.map(Self.value).joined(separator: ", "))]"
    case .object(let object):
      let members = object.members.map { "'\($0.key)': \(Self.value($0.value))" }
      return "{\(members.joined(separator: ", "))}"
    default: return value.text(.spaced)
    }
  }

  /// A list of targets, or an expression.
  static func targets(_ modules: TargetModules?) -> String {
    switch modules {
    case .list(let names): return set(names)
    case .regex(let pattern): return pattern
    case .allLinear: return "all-linear"
    case nil: return "None"
    }
  }
}
