import PEFTSupport

/// A regular expression from a config, matched against module names as Python's `re` would.
struct NamePattern {
  private let regex: Regex<AnyRegexOutput>

  /// Compiles an expression.
  ///
  /// - Parameters:
  ///   - pattern: The expression.
  ///   - key: The config's key.
  ///   - written: What the config has, where the expression is made of that.
  /// - Throws: ``PEFTError`` `invalidConfiguration` naming the key.
  init(_ pattern: String, key: String, writtenAs written: String? = nil) throws(PEFTError) {
    do {
      regex = try Regex(pattern)
    } catch {
      throw PEFTError(
        .invalidConfiguration,
        "'\(key)': '\(written ?? pattern)' is not a valid regular expression",
        remedy: "Correct it; the parser says: \(error)")
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

extension ConfigReader {
  /// Patterns with their values; none where the key is absent.
  public mutating func patterns(_ key: String) throws(PEFTError) -> SuffixPatterns {
    SuffixPatterns((try numbers(key) ?? []).map { .init($0.key, $0.value) })
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
      if Self.isPlain(entry.key) {
        if Self.matches(name, plain: entry.key) { return entry.value }
        continue
      }
      let pattern = try NamePattern(
        "(.*\\.)?(\(entry.key))", key: configKey, writtenAs: entry.key)
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

  /// Whether a key has no more of a regular expression than dots, as most have: a whole name.
  private static func isPlain(_ key: String) -> Bool {
    key.utf8.allSatisfy {
      ($0 | 0x20) >= UInt8(ascii: "a") && ($0 | 0x20) <= UInt8(ascii: "z")
        || $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") || $0 == UInt8(ascii: "_")
        || $0 == UInt8(ascii: ".")
    }
  }

  /// Whether the name or its end after a dot matches a plain key, in which a dot stands for any
  /// character. Compiling an expression for every module and key would take seconds.
  private static func matches(_ name: String, plain key: String) -> Bool {
    let (name, key) = (Array(name.utf8), Array(key.utf8))
    let start = name.count - key.count
    guard start == 0 || start > 0 && name[start - 1] == UInt8(ascii: ".") else { return false }
    return key.indices.allSatisfy {
      key[$0] == UInt8(ascii: ".") || key[$0] == name[start + $0]
    }
  }
}
