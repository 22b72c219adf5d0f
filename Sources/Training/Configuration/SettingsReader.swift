import PEFTCore
import PEFTSupport

/// Reads members of a run's settings and checks their ranges; errors name the key.
struct SettingsReader {
  private var reader: ConfigReader

  init(_ object: JSONObject) { reader = ConfigReader(object) }

  /// The member itself, unless it is absent or `null`.
  mutating func value(_ key: String) -> JSONValue? { reader.value(key) }

  /// A string that is not empty.
  mutating func string(_ key: String) throws(PEFTError) -> String? {
    guard let text = try reader.string(key) else { return nil }
    if text.isEmpty { throw ConfigReader.mismatch(key, "a text that is not empty", .string(text)) }
    return text
  }

  /// A Boolean; YAML 1.1's `yes`, `no`, `on` and `off` count, which plain YAML 1.2 reads as text.
  mutating func bool(_ key: String) throws(PEFTError) -> Bool? {
    if let word = reader.value(key)?.string?.lowercased() {
      if ["yes", "on", "true"].contains(word) { return true }
      if ["no", "off", "false"].contains(word) { return false }
    }
    return try reader.bool(key)
  }

  /// The largest count of anything: steps, sequences of a batch, tokens, threads. Sums and products
  /// of two counts stay far from what an integer holds.
  static let largestCount = Int(Int32.max)

  /// An integer of at least `minimum` and at most `maximum`.
  mutating func int(
    _ key: String, atLeast minimum: Int, atMost maximum: Int = largestCount
  ) throws(PEFTError) -> Int? {
    guard let number = try reader.int(key) else { return nil }
    if number < minimum {
      throw PEFTError(
        .invalidConfiguration, "'\(key)' is \(number), it must be at least \(minimum)")
    }
    if number > maximum {
      throw PEFTError(
        .invalidConfiguration, "'\(key)' is \(number), it must be at most \(maximum)")
    }
    return number
  }

  /// A finite number for which `isValid` holds; `requirement` completes "it must be …".
  mutating func number(
    _ key: String, _ requirement: String, _ isValid: (Double) -> Bool
  ) throws(PEFTError) -> Double? {
    guard let number = try reader.double(key) else { return nil }
    if !number.isFinite || !isValid(number) {
      throw PEFTError(
        .invalidConfiguration,
        "'\(key)' is \(JSONValue.double(number).text()), it must be \(requirement)")
    }
    return number
  }

  /// One of the raw values of an enumeration.
  mutating func choice<Choice>(_ key: String, _ type: Choice.Type) throws(PEFTError) -> Choice?
  where Choice: RawRepresentable<String> & CaseIterable {
    guard let value = reader.value(key) else { return nil }
    // PyYAML reads a bare `no` as false, and people write configurations with that in mind.
    let word = value.bool == false ? "no" : value.string
    if let word, let choice = Choice(rawValue: word) { return choice }
    let known = Choice.allCases.map(\.rawValue)
    let remedy = word.map { Spelling.suggestion(for: $0, among: known) }
    throw ConfigReader.mismatch(key, "one of \(known.joined(separator: ", "))", value)
      .with(remedy: remedy)
  }

  /// A mapping.
  mutating func object(_ key: String) throws(PEFTError) -> JSONObject? {
    guard let value = reader.value(key) else { return nil }
    guard let object = value.object else { throw ConfigReader.mismatch(key, "a mapping", value) }
    return object
  }

  /// Refuses members that nobody asked for, with the nearest known key.
  func refuseUnknown(known: [String], hints: [String: String]) throws(PEFTError) {
    guard let key = reader.rest.keys.first else { return }
    throw PEFTError(
      .invalidConfiguration, "unknown key '\(key)'",
      remedy: hints[key] ?? Spelling.suggestion(for: key, among: known))
  }
}

extension PEFTError {
  /// The same error with a remedy, unless it has one.
  func with(remedy text: String?) -> PEFTError {
    PEFTError(code, message, at: location, remedy: remedy ?? text)
  }
}
