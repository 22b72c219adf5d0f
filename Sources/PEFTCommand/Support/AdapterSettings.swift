import PEFT

/// The settings of a new adapter, as a command line gives them.
struct AdapterSettings {
  let config: any TunerConfig
  /// Where they stand, for errors.
  let place: String

  /// Reads a JSON object, or the file that holds one.
  ///
  /// - Parameters:
  ///   - text: The object, or the path of a file.
  ///   - option: The option that has it.
  ///   - method: The method's name in a run's settings.
  ///   - registry: The methods.
  /// - Throws: ``PEFTError`` naming the flag or file and the key.
  init(
    _ text: String, option: String, method: String, registry: TunerRegistry = .standard
  ) throws(PEFTError) {
    guard registry.methodNames.contains(method) else {
      throw PEFTError(
        .invalidConfiguration, "'\(method)' is not a method", at: "--method",
        remedy: Spelling.suggestion(for: method, among: registry.methodNames))
    }
    let isInline = text.drop { $0 == " " || $0 == "\n" }.hasPrefix("{")
    place = isInline ? option : text
    do throws(PEFTError) {
      let value = isInline ? try JSONValue(parsing: text) : try FileSystem.readJSON(text)
      guard let settings = value.object else {
        throw PEFTError(
          .invalidConfiguration, "is \(value.kindName), a JSON object was expected",
          remedy: #"Write it as '{"r": 8, "lora_alpha": 16}'."#)
      }
      config = try registry.config(registry.members(settings, ofMethod: method))
      if let (key, remedy) = config.unknownKey(besides: LoRAConfig.knownKeys) {
        throw PEFTError(.invalidConfiguration, "unknown key '\(key)'", remedy: remedy)
      }
    } catch {
      throw error.located(at: place)
    }
  }
}
