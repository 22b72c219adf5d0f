import PEFTSupport

/// A step from tokens back to text. Tokens pass in order; a step may hold some back.
protocol DecoderStage: Sendable {
  /// Takes the next token and appends what it becomes to `output`.
  mutating func feed(_ token: [UInt8], into output: inout [[UInt8]])
  /// Appends what was held back, at the end of the text.
  mutating func finish(into output: inout [[UInt8]])
  /// Makes the step hand text on as soon as it is readable.
  mutating func prepareForStreaming()
}

extension DecoderStage {
  mutating func prepareForStreaming() {}
  mutating func finish(into output: inout [[UInt8]]) {}
}

/// Makes the steps of a `decoder` of `tokenizer.json`, sequences flattened.
///
/// - Parameter isJoined: Whether all tokens have become one text; set once a step joins them.
func makeDecoderStages(
  _ component: Component, isJoined: inout Bool
) throws(PEFTError) -> [any DecoderStage] {
  switch component.type {
  case "Sequence":
    var result: [any DecoderStage] = []
    for child in try component.children("decoders") {
      result.append(contentsOf: try makeDecoderStages(child, isJoined: &isJoined))
    }
    return result
  case "Strip":
    let content = try component.scalar("content")
    let start = try component.int("start", default: 0)
    let stop = try component.int("stop", default: 0)
    return isJoined
      ? [StripJoined(content, start: start, stop: stop)]
      : [StripTokens(content, start: start, stop: stop)]
  case "Fuse":
    isJoined = true
    return []
  default: break
  }
  if component.type == "ByteLevel", !isJoined {
    isJoined = true
    return [ByteLevelDecoder()]
  }
  // A step for single tokens cannot follow one that made a single text of them.
  if isJoined { throw component.unsupported("decoder after Fuse or ByteLevel") }
  switch component.type {
  case "WordPiece": return [try WordPieceDecoder(component)]
  case "Replace": return [ReplaceTokens(replace: try Replace(component))]
  case "Metaspace": return [try MetaspaceDecoder(component)]
  case "ByteFallback": return [ByteFallbackDecoder()]
  default: throw component.unsupported("decoder")
  }
}
