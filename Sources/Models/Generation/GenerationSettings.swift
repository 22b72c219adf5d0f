import PEFTSupport

/// How a language model continues its prompts.
public struct GenerationSettings: Sendable, Equatable {
  /// Most tokens added to a prompt.
  public var maxNewTokens: Int
  /// How tokens are drawn; `nil` takes the likeliest every time (greedy decoding).
  public var sampling: Sampling?
  /// Tokens that end a sequence; they are part of it.
  public var stopTokens: Set<Int32>

  /// Creates settings.
  public init(maxNewTokens: Int = 256, sampling: Sampling? = nil, stopTokens: Set<Int32> = []) {
    self.maxNewTokens = maxNewTokens
    self.sampling = sampling
    self.stopTokens = stopTokens
  }

  /// The tokens that end a text of the model in a folder: `eos_token_id` of generation_config.json
  /// or, where that is absent or silent, of config.json.
  ///
  /// - Throws: ``PEFTError`` when a file is malformed.
  public static func stopTokens(folder: String) throws(PEFTError) -> Set<Int32> {
    for name in ["generation_config.json", "config.json"] {
      let path = FileSystem.join(folder, name)
      guard FileSystem.exists(path), let value = try FileSystem.readJSON(path)["eos_token_id"],
        !value.isNull
      else { continue }
      let ids = value.array ?? [value]
      var tokens: Set<Int32> = []
      for id in ids {
        guard let token = id.int.flatMap({ Int32(exactly: $0) }) else {
          throw PEFTError(
            .invalidConfiguration,
            "'eos_token_id' is \(value.text(.spaced)), an integer or a list of them was expected",
            at: path)
        }
        tokens.insert(token)
      }
      return tokens
    }
    return []
  }
}
