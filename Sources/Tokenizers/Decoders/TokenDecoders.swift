import PEFTSupport

/// Joins subwords to words with a space before each word (BERT).
struct WordPieceDecoder: DecoderStage {
  private let prefix: [UInt8]
  private let cleansUp: Bool
  private var isFirst = true

  init(_ component: Component) throws(PEFTError) {
    prefix = Array(try component.string("prefix", default: "##").utf8)
    cleansUp = try component.bool("cleanup", default: true)
  }

  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]]) {
    var text = token
    if !isFirst {
      if token.starts(with: prefix) {
        text.removeFirst(prefix.count)
      } else {
        text.insert(UInt8(ascii: " "), at: 0)
      }
    }
    isFirst = false
    if cleansUp, mayNeedCleanUp(text) { for step in Self.cleanUp { step.normalize(&text) } }
    output.append(text)
  }

  /// Whether a space is followed by a byte with which one of the patterns goes on.
  private func mayNeedCleanUp(_ text: [UInt8]) -> Bool {
    for place in text.indices.dropLast() where text[place] == 0x20 {
      switch text[place + 1] {
      case UInt8(ascii: "."), UInt8(ascii: "?"), UInt8(ascii: "!"), UInt8(ascii: ","),
        UInt8(ascii: "'"), UInt8(ascii: "n"), UInt8(ascii: "d"):
        return true
      default: continue
      }
    }
    return false
  }

  /// English punctuation and contractions without the space before them, in the order in which the
  /// reference applies them to each token.
  private static let cleanUp: [Replace] = [
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
  ].map { Replace(pattern: Array($0.0.utf8), content: Array($0.1.utf8)) }
}

/// Replaces a text inside each token.
struct ReplaceTokens: DecoderStage {
  let replace: Replace

  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]]) {
    var text = token
    replace.normalize(&text)
    output.append(text)
  }
}

/// Spaces for `▁`, but none at the start of the text.
struct MetaspaceDecoder: DecoderStage {
  private let replace: Replace
  private let remove: Replace
  private let dropsFirst: Bool
  private var isFirst = true

  init(_ component: Component) throws(PEFTError) {
    var bytes: [UInt8] = []
    bytes.append(scalar: try component.scalar("replacement", default: "▁"))
    replace = Replace(pattern: bytes, content: [0x20])
    remove = Replace(pattern: bytes, content: [])
    dropsFirst = try Metaspace.scheme(component) != .never
  }

  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]]) {
    var text = token
    (isFirst && dropsFirst ? remove : replace).normalize(&text)
    isFirst = false
    output.append(text)
  }
}

/// Bytes for the characters of the byte-level alphabet.
struct ByteLevelDecoder: DecoderStage {
  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]]) {
    output.append(Self.bytes(of: token))
  }

  /// The bytes that a token spells, or its own when it has characters outside of the alphabet.
  static func bytes(of token: [UInt8]) -> [UInt8] {
    ByteLevelAlphabet.decode(token) ?? token
  }
}

/// Turns runs of `<0x…>` tokens into the text that their bytes encode.
///
/// A run that is not valid as a whole becomes replacement characters as a whole. While streaming, a
/// character is handed on as soon as it is complete, so that what precedes an invalid byte remains.
struct ByteFallbackDecoder: DecoderStage {
  private var bytes: [UInt8] = []
  private var isStreaming = false

  mutating func prepareForStreaming() { isStreaming = true }

  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]]) {
    if let byte = Self.byte(token) {
      bytes.append(byte)
      if isStreaming, String(validating: bytes, as: UTF8.self) != nil { finish(into: &output) }
    } else {
      finish(into: &output)
      output.append(token)
    }
  }

  /// Ends a run: a valid one is a token, of an invalid one each byte is a replacement character.
  mutating func finish(into output: inout [[UInt8]]) {
    if bytes.isEmpty { return }
    if String(validating: bytes, as: UTF8.self) != nil {
      output.append(bytes)
    } else {
      output.append(contentsOf: bytes.map { _ in [0xEF, 0xBF, 0xBD] })
    }
    bytes.removeAll()
  }

  private static func byte(_ token: [UInt8]) -> UInt8? {
    guard token.count == 6, token.starts(with: "<0x".utf8), token[5] == UInt8(ascii: ">"),
      let high = Character(Unicode.Scalar(token[3])).hexDigitValue,
      let low = Character(Unicode.Scalar(token[4])).hexDigitValue
    else { return nil }
    return UInt8(high * 16 + low)
  }
}

/// Strips up to so many of a character from the ends of each token.
struct StripTokens: DecoderStage {
  private let content: [UInt8]
  private let start: Int
  private let stop: Int

  init(_ content: UInt32, start: Int, stop: Int) {
    var bytes: [UInt8] = []
    bytes.append(scalar: content)
    self.content = bytes
    self.start = start
    self.stop = stop
  }

  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]]) {
    var text = token[...]
    var count = 0
    while count < start, text.starts(with: content) {
      text.removeFirst(content.count)
      count += 1
    }
    count = 0
    while count < stop, text.suffix(content.count).elementsEqual(content) {
      text.removeLast(content.count)
      count += 1
    }
    output.append(Array(text))
  }
}

/// Strips up to so many of a character from the ends of the whole text.
struct StripJoined: DecoderStage {
  private let content: [UInt8]
  private let stop: Int
  /// How many may still be stripped at the start; 0 once something else has come.
  private var leading: Int
  /// Trailing characters that may turn out to be the last.
  private var held: [UInt8] = []

  init(_ content: UInt32, start: Int, stop: Int) {
    var bytes: [UInt8] = []
    bytes.append(scalar: content)
    self.content = bytes
    self.leading = start
    self.stop = stop
  }

  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]]) {
    var text = token[...]
    while leading > 0, !text.isEmpty {
      if text.starts(with: content) {
        text.removeFirst(content.count)
        leading -= 1
      } else {
        leading = 0
      }
    }
    if stop == 0 {
      output.append(Array(text))
      return
    }
    var all = held + text
    var kept = all.count
    var count = 0
    while count < stop, all[..<kept].suffix(content.count).elementsEqual(content) {
      kept -= content.count
      count += 1
    }
    held = Array(all[kept...])
    all.removeSubrange(kept...)
    output.append(all)
  }
}
