/// The stages from text to ids, with the buffers that they use again and again.
struct Pipeline {
  let core: TokenizerCore
  private var scratch = Scratch()
  private var list = PieceList()

  init(core: TokenizerCore) { self.core = core }

  /// Appends the ids of a text, which is valid UTF-8.
  mutating func append(_ text: [UInt8], to ids: inout [Int32]) {
    let core = core
    if !core.added.plain.mayMatch(text) {
      return appendNormalized(text, startsInput: true, to: &ids)
    }
    core.added.plain.forEachPart(of: text) { part in
      if let token = part.token {
        ids.append(token)
      } else {
        appendNormalized(
          Array(text[part.range]), startsInput: part.range.lowerBound == 0, to: &ids)
      }
    }
  }

  private mutating func appendNormalized(
    _ text: [UInt8], startsInput: Bool, to ids: inout [Int32]
  ) {
    let core = core
    var text = text
    for normalizer in core.normalizers { normalizer.normalize(&text) }
    if !core.added.normalized.mayMatch(text) {
      return appendPieces(text, startsInput: startsInput, to: &ids)
    }
    core.added.normalized.forEachPart(of: text) { part in
      if let token = part.token {
        ids.append(token)
      } else {
        let isStart = startsInput && part.range.lowerBound == 0
        appendPieces(Array(text[part.range]), startsInput: isStart, to: &ids)
      }
    }
  }

  private mutating func appendPieces(
    _ text: [UInt8], startsInput: Bool, to ids: inout [Int32]
  ) {
    if text.isEmpty { return }
    list.bytes = text
    list.startsInput = startsInput
    list.pieces.removeAll(keepingCapacity: true)
    list.pieces.append(0..<text.count)
    for step in core.preTokenizers { step.split(&list) }
    core.model.encode(list, &scratch, into: &ids)
  }
}
