extension JSONValue {
  /// How a value is laid out as text.
  public enum Layout: Sendable {
    /// One line without spaces, the form of a JSON Lines record.
    case compact
    /// One line with a space after ':' and ',', as Python's `json.dumps` writes it.
    case spaced
    /// Two-space indentation, as `json.dumps(indent=2)` writes it.
    case indented
  }

  /// The value as JSON text.
  ///
  /// - Parameters:
  ///   - layout: Where lines break.
  ///   - sortedKeys: Whether members are ordered by key at every level.
  public func text(_ layout: Layout = .compact, sortedKeys: Bool = false) -> String {
    var result = ""
    write(to: &result, layout, sortedKeys, indent: 0)
    return result
  }

  private func write(
    to result: inout String, _ layout: Layout, _ sortedKeys: Bool, indent: Int
  ) {
    switch self {
    case .null: result += "null"
    case .bool(let value): result += value ? "true" : "false"
    case .int(let value): result += String(value)
    case .double(let value): result += Self.number(value)
    case .string(let value): Self.quote(value, to: &result)
    case .array(let elements):
      Self.list(
        elements, brackets: ("[", "]"), to: &result, layout, indent
      ) { element, result in
        element.write(to: &result, layout, sortedKeys, indent: indent + 1)
      }
    case .object(let object):
      let members = sortedKeys ? object.members.sorted { $0.key < $1.key } : object.members
      Self.list(members, brackets: ("{", "}"), to: &result, layout, indent) { member, result in
        Self.quote(member.key, to: &result)
        result += layout == .compact ? ":" : ": "
        member.value.write(to: &result, layout, sortedKeys, indent: indent + 1)
      }
    }
  }

  private static func list<Element>(
    _ elements: [Element], brackets: (String, String), to result: inout String, _ layout: Layout,
    _ indent: Int, _ writeElement: (Element, inout String) -> Void
  ) {
    result += brackets.0
    for (offset, element) in elements.enumerated() {
      if offset > 0 { result += layout == .spaced ? ", " : "," }
      if layout == .indented { result += "\n" + String(repeating: "  ", count: indent + 1) }
      writeElement(element, &result)
    }
    if layout == .indented, !elements.isEmpty {
      result += "\n" + String(repeating: "  ", count: indent)
    }
    result += brackets.1
  }

  /// A float in the shortest form that reads back to the same bits, with Python's spelling of the
  /// values that JSON lacks.
  private static func number(_ value: Double) -> String {
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value < 0 ? "-Infinity" : "Infinity" }
    return "\(value)"
  }

  private static func quote(_ text: String, to result: inout String) {
    result += "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    result += "\""
  }
}
