import PEFTSupport

/// A regular expression from a config, matched against module names as Python's `re` would.
struct NamePattern {
  private let regex: Regex<AnyRegexOutput>

  /// Compiles an expression.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` naming the key.
  init(_ pattern: String, key: String) throws(PEFTError) {
    do {
      regex = try Regex(pattern)
    } catch {
      throw PEFTError(
        .invalidConfiguration, "'\(key)': '\(pattern)' is not a valid regular expression (\(error))"
      )
    }
  }

  /// Whether the whole name matches.
  func matches(_ name: String) -> Bool { (try? regex.wholeMatch(in: name)) != nil }

  /// The integer in the first group of a match from the start of the name.
  func index(_ name: String) -> Int? {
    guard let match = try? regex.prefixMatch(in: name), match.output.count > 1,
      let text = match.output[1].substring
    else { return nil }
    return Int(text)
  }
}

/// `rank_pattern` and `alpha_pattern`: values for modules whose name ends with a key.
///
/// Keys are regular expressions on a dotted suffix of the name and are tried in order; the first
/// that matches wins (peft, `get_pattern_key`).
public struct SuffixPatterns: Sendable, Equatable {
  /// The keys and values in order.
  public var entries: [Entry]

  /// One key with its value.
  public struct Entry: Sendable, Equatable {
    /// The expression.
    public var key: String
    /// The value.
    public var value: Double

    /// Creates an entry.
    public init(_ key: String, _ value: Double) {
      self.key = key
      self.value = value
    }
  }

  /// Creates patterns.
  public init(_ entries: [Entry] = []) { self.entries = entries }

  /// The value for a module name, or `nil`.
  ///
  /// - Parameter configKey: The config's key, for errors.
  /// - Throws: ``PEFTError`` when a key is not a valid expression.
  public func value(for name: String, configKey: String) throws(PEFTError) -> Double? {
    for entry in entries {
      if Self.isLiteral(entry.key) {
        if name == entry.key || name.hasSuffix("." + entry.key) { return entry.value }
        continue
      }
      let pattern = try NamePattern("(.*\\.)?(\(entry.key))", key: configKey)
      if pattern.matches(name) { return entry.value }
    }
    return nil
  }

  /// The value of the config file.
  public var json: JSONValue {
    .object(
      JSONObject(
        entries.map { ($0.key, Int(exactly: $0.value).map { .int($0) } ?? .double($0.value)) }))
  }

  private static func isLiteral(_ key: String) -> Bool {
    // A dot is a wildcard in a regular expression; between identifiers it can only match itself
    // or a character that no module name has there, except in names like "a1b" for "a.b".
    key.utf8.allSatisfy {
      ($0 | 0x20) >= UInt8(ascii: "a") && ($0 | 0x20) <= UInt8(ascii: "z")
        || $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") || $0 == UInt8(ascii: "_")
    }
  }
}
