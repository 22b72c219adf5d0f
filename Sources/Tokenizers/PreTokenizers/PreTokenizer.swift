import PEFTSupport

/// Text on its way to the model: bytes and the pieces they are cut into, in order.
struct PieceList {
  /// The text, valid UTF-8; steps may rewrite it.
  var bytes: [UInt8] = []
  /// The pieces: ranges of ``bytes``, ascending, none empty.
  var pieces: [Range<Int>] = []
  /// Whether the text begins where the input begins, and not after an added token.
  var startsInput = true
}

/// A step that cuts pieces into smaller ones. The model never merges across a cut.
protocol PreTokenizer: Sendable {
  /// Cuts, drops or rewrites the pieces of `list`.
  func split(_ list: inout PieceList)
}

extension PreTokenizer {
  /// Replaces the pieces of `list` by what `body` makes of each; the bytes stay.
  func mapPieces(
    _ list: inout PieceList,
    _ body: (_ text: Span<UInt8>, _ piece: Range<Int>, _ result: inout [Range<Int>]) -> Void
  ) {
    var result: [Range<Int>] = []
    // Words of about four bytes are the rule; a wrong guess costs one reallocation.
    result.reserveCapacity(list.pieces.count + list.bytes.count / 4)
    for piece in list.pieces { body(list.bytes.span, piece, &result) }
    list.pieces = result
  }
}

/// Makes the steps of a `pre_tokenizer` of `tokenizer.json`, sequences flattened.
func makePreTokenizers(_ component: Component) throws(PEFTError) -> [any PreTokenizer] {
  switch component.type {
  case "Sequence":
    var result: [any PreTokenizer] = []
    for child in try component.children("pretokenizers") {
      result.append(contentsOf: try makePreTokenizers(child))
    }
    return result
  case "BertPreTokenizer": return [WhitespaceSplit(), PunctuationSplit(mask: .bert)]
  default: throw component.unsupported("pre-tokenizer")
  }
}
