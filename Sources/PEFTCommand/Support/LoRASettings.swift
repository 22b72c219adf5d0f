import PEFT

/// The settings of a new LoRA adapter, as a command line gives them.
struct LoRASettings {
  let config: LoRAConfig
  /// Where they stand, for errors.
  let place: String

  /// Reads a JSON object, or the file that holds one.
  ///
  /// - Throws: ``PEFTError`` naming the flag or file and the key.
  init(_ text: String) throws(PEFTError) {
    let isInline = text.drop { $0 == " " || $0 == "\n" }.hasPrefix("{")
    place = isInline ? "--lora" : text
    do throws(PEFTError) {
      let value = isInline ? try JSONValue(parsing: text) : try FileSystem.readJSON(text)
      guard var object = value.object else {
        throw PEFTError(
          .invalidConfiguration, "is \(value.kindName), a JSON object was expected",
          remedy: #"Write it as '{"r": 8, "lora_alpha": 16}'."#)
      }
      if let type = object["peft_type"], type != "LORA" {
        throw PEFTError(
          .unsupported, "'peft_type' is \(type.text()), these are not settings of LoRA")
      }
      object["peft_type"] = "LORA"
      config = try LoRAConfig(object)
      if let key = config.unknownKeys.keys.first {
        throw PEFTError(
          .invalidConfiguration, "unknown key '\(key)'",
          remedy: Spelling.suggestion(for: key, among: LoRAConfig.knownKeys))
      }
    } catch {
      throw error.located(at: place)
    }
  }
}
