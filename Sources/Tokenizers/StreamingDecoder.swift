extension Tokenizer {
  /// Turns token ids into text one by one, as a model generates them.
  ///
  /// Text is handed out once it can no longer change: the bytes of an incomplete character wait for
  /// the tokens that complete it. The concatenation of everything handed out, ``finish()`` included,
  /// equals ``Tokenizer/decode(_:skipSpecialTokens:)`` of all ids (for byte-fallback tokens: unless
  /// they do not encode valid text).
  public struct StreamingDecoder: Sendable {
    private let core: TokenizerCore
    private let skipsSpecialTokens: Bool
    private var stages: [any DecoderStage]
    /// Bytes that do not make a whole character yet.
    private var pending: [UInt8] = []
    private var isFirst = true

    init(_ core: TokenizerCore, skipsSpecialTokens: Bool, isStreaming: Bool = true) {
      self.core = core
      self.skipsSpecialTokens = skipsSpecialTokens
      stages = core.decoderStages
      if isStreaming {
        for place in stages.indices { stages[place].prepareForStreaming() }
      }
    }

    /// Takes the next id and returns the text that is certain by now, often none.
    ///
    /// Ids without a token are ignored, and special tokens if that was asked for.
    public mutating func append(_ id: Int32) -> String {
      feed(id)
      return takeComplete()
    }

    /// Ends the text and returns what was held back; incomplete characters become U+FFFD.
    public mutating func finish() -> String {
      run(nil, from: 0)
      defer { pending.removeAll() }
      return String(decoding: pending, as: UTF8.self)
    }

    mutating func feed(_ id: Int32) {
      if skipsSpecialTokens, core.added.specialIDs.contains(id) { return }
      guard let token = core.decoderInput(for: id) else { return }
      if !core.hasDecoder, !isFirst { pending.append(UInt8(ascii: " ")) }
      isFirst = false
      run(token, from: 0)
    }

    /// Passes a token, or the end of the text, through the stages from `stage` on.
    private mutating func run(_ token: [UInt8]?, from stage: Int) {
      guard stage < stages.count else {
        if let token { pending.append(contentsOf: token) }
        return
      }
      var output: [[UInt8]] = []
      if let token {
        stages[stage].feed(token, into: &output)
      } else {
        stages[stage].finish(into: &output)
      }
      for text in output { run(text, from: stage + 1) }
      if token == nil { run(nil, from: stage + 1) }
    }

    private mutating func takeComplete() -> String {
      let end = pending.count - Self.incompleteSuffix(pending)
      defer { pending.removeSubrange(..<end) }
      return String(decoding: pending[..<end], as: UTF8.self)
    }

    /// The length of the unfinished character at the end of `bytes`.
    private static func incompleteSuffix(_ bytes: [UInt8]) -> Int {
      for length in 1...3 where length <= bytes.count {
        let byte = bytes[bytes.count - length]
        if byte & 0xC0 == 0x80 { continue }
        let needed = byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : byte < 0xF8 ? 4 : 1
        return needed > length ? length : 0
      }
      return 0
    }
  }
}
