import PEFTCore
import PEFTSupport

extension LoRAConfig {
  /// Refuses parts that are none, and settings that layers with parts do not have.
  func validateParts() throws(PEFTError) {
    if enabledParts.isEmpty { return }
    if !enabledParts.contains(true) {
      throw PEFTError(
        .invalidConfiguration, "'enable_lora' enables no part; at least one was expected",
        remedy: "Set one of its elements to true, or remove the key.")
    }
    for (key, isSet) in [
      ("lora_bias", usesLoRABias), ("use_dora", usesDoRA),
      ("init_lora_weights", ![.standard, .gaussian, .random].contains(initialization)),
    ] where isSet {
      throw PEFTError(
        .unsupported, "'\(key)' is not supported together with 'enable_lora'",
        remedy: "Remove one of the keys.")
    }
  }

  /// The settings of the same update in the form of plain LoRA, whose rank is the sum of the
  /// parts' ranks; `nil` without parts.
  var withoutParts: LoRAConfig? {
    guard !enabledParts.isEmpty else { return nil }
    let count = enabledParts.count { $0 }
    // The scaling stays: alpha/r, or alpha/√r.
    let factor = usesRSLoRA ? Double(count).squareRoot() : Double(count)
    var plain = self
    plain.enabledParts = []
    plain.rank *= count
    plain.alpha *= factor
    func scaled(_ patterns: SuffixPatterns, _ factor: Double) -> SuffixPatterns {
      SuffixPatterns(patterns.entries.map { .init($0.key, $0.value * factor) })
    }
    plain.rankPattern = scaled(rankPattern, Double(count))
    plain.alphaPattern = scaled(alphaPattern, factor)
    return plain
  }

  static func readParts(_ value: JSONValue?) throws(PEFTError) -> [Bool] {
    guard let value else { return [] }
    guard let elements = value.array else {
      throw ConfigReader.mismatch("enable_lora", "a list of true and false", value)
    }
    let parts = elements.compactMap(\.bool)
    guard parts.count == elements.count else {
      throw ConfigReader.mismatch("enable_lora", "a list of true and false", value)
    }
    return parts
  }
}
