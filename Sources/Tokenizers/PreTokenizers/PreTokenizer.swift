import PEFTSupport

/// Text on its way to the model: bytes and the pieces they are cut into, in order.
struct PieceList {
  /// The text, valid UTF-8; steps may rewrite it.
  var bytes: [UInt8] = []
  /// The pieces: ranges of ``bytes``, ascending, none empty.
  var pieces: [Range<Int>] = []
  /// The memory of the pieces before the last step, for the next.
  private var spare: [Range<Int>] = []
  /// Whether the text begins where the input begins, and not after an added token.
  var startsInput = true
}

/// A step that cuts pieces into smaller ones. The model never merges across a cut.
protocol PreTokenizer: Sendable {
  /// Cuts, drops or rewrites the pieces of `list`.
  func split(_ list: inout PieceList)
}

extension PieceList {
  /// Replaces the pieces by what `body` makes of each; the bytes stay.
  @inline(__always)
  mutating func mapPieces(
    _ body: (_ text: Span<UInt8>, _ piece: Range<Int>, _ result: inout [Range<Int>]) -> Void
  ) {
    var result: [Range<Int>] = []
    swap(&result, &spare)
    result.removeAll(keepingCapacity: true)
    for piece in pieces { body(bytes.span, piece, &result) }
    swap(&result, &pieces)
    swap(&result, &spare)
  }

  /// Puts `text` before the pieces that `condition` names, by their first bytes and by whether the
  /// input begins with them.
  mutating func prepend(
    _ text: [UInt8], where condition: (_ piece: ArraySlice<UInt8>, _ startsInput: Bool) -> Bool
  ) {
    guard pieces.contains(where: { condition(bytes[$0], startsInput && $0.lowerBound == 0) })
    else { return }
    var result: [UInt8] = []
    result.reserveCapacity(bytes.count + text.count * pieces.count)
    for place in pieces.indices {
      let piece = pieces[place]
      let start = result.count
      if condition(bytes[piece], startsInput && piece.lowerBound == 0) {
        result.append(contentsOf: text)
      }
      result.append(contentsOf: bytes[piece])
      pieces[place] = start..<result.count
    }
    bytes = result
  }
}

/// Makes the steps of a `pre_tokenizer` of `tokenizer.json`, sequences flattened.
///
/// - Parameter isByteLevel: Set when the pieces reach the model in the byte-level alphabet. They stay
///   bytes here, which is the same as long as no step follows that looks at characters.
func makePreTokenizers(
  _ component: Component, isByteLevel: inout Bool
) throws(PEFTError) -> [any PreTokenizer] {
  if component.type == "Sequence" {
    var result: [any PreTokenizer] = []
    for child in try component.children("pretokenizers") {
      result.append(contentsOf: try makePreTokenizers(child, isByteLevel: &isByteLevel))
    }
    return result
  }
  if isByteLevel { throw component.unsupported("pre-tokenizer after ByteLevel") }
  switch component.type {
  case "BertPreTokenizer":
    return [WhitespaceSplit(), ClassSplit(mask: .bertPunctuation, behavior: .isolated)]
  case "WhitespaceSplit": return [WhitespaceSplit()]
  case "Whitespace": return [WordSplit()]
  case "Punctuation":
    return [
      ClassSplit(
        mask: .bertPunctuation, behavior: try SplitBehavior(component, default: "Isolated"))
    ]
  case "Digits":
    let isIndividual = try component.bool("individual_digits", default: false)
    return [ClassSplit(mask: .number, behavior: isIndividual ? .isolated : .contiguous)]
  case "Split": return [try makeSplit(component)]
  case "Metaspace": return [try Metaspace(component)]
  case "ByteLevel":
    isByteLevel = true
    var steps: [any PreTokenizer] = []
    if try component.bool("add_prefix_space", default: true) { steps.append(PrefixSpace()) }
    if try component.bool("use_regex", default: true) { steps.append(PatternSplit(.gpt2)) }
    return steps
  default: throw component.unsupported("pre-tokenizer")
  }
}
