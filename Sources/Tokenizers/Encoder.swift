extension Tokenizer {
  /// Turns texts into token ids and remembers the words it has seen.
  ///
  /// One encoder serves one thread. Long-lived ones are fastest: natural text repeats its words, and
  /// a word seen before costs one lookup.
  public struct Encoder: ~Copyable {
    private let core: TokenizerCore
    private let truncation: Truncation?
    private let padding: Padding?
    private var scratch = Scratch()
    private var list = PieceList()

    init(_ tokenizer: Tokenizer) {
      core = tokenizer.core
      truncation = tokenizer.truncation
      padding = tokenizer.padding
    }

    /// Encodes a text or a pair, with the truncation and the padding of the tokenizer.
    ///
    /// - Parameters:
    ///   - text: The text, or the first of the pair.
    ///   - pair: The second text.
    ///   - addSpecialTokens: Whether the post-processor adds its tokens.
    ///   - maxLength: The largest number of tokens, special tokens included, instead of that of
    ///     ``Tokenizer/truncation``.
    public mutating func encode(
      _ text: String, pair: String? = nil, addSpecialTokens: Bool = true, maxLength: Int? = nil
    ) -> Encoding {
      var encoding = encodeUnpadded(text, pair, addSpecialTokens, maxLength)
      if let padding { encoding.pad(to: padding.target(longest: encoding.count), padding) }
      return encoding
    }

    /// The token ids of a text alone: no special tokens, truncation or padding.
    public mutating func ids(of text: String) -> [Int32] {
      var ids: [Int32] = []
      append(Array(text.utf8), to: &ids)
      return ids
    }

    mutating func encodeUnpadded(
      _ text: String, _ pair: String?, _ addSpecialTokens: Bool, _ maxLength: Int?
    ) -> Encoding {
      let first = ids(of: text)
      let second = pair.map { ids(of: $0) }
      var truncation = truncation
      if let maxLength {
        precondition(maxLength >= 0, "maxLength must not be negative")
        truncation = truncation ?? Truncation(maxLength: maxLength)
        truncation?.maxLength = maxLength
      }
      let post = core.postProcessor
      var kept = (first[...], second.map { $0[...] } ?? [])
      if let truncation {
        let special = addSpecialTokens ? post.specialCount(isPair: pair != nil) : 0
        let counts = truncation.keptCounts(
          first: first.count, second: second?.count, special: special)
        kept.0 = truncation.cut(first, to: counts.0)
        if let second { kept.1 = truncation.cut(second, to: counts.1) }
      }
      var encoding = Encoding()
      for item in second == nil ? post.single : post.pair {
        switch item {
        case .sequence(let number, let typeID):
          encoding.append(number == 0 ? kept.0 : kept.1, typeID: typeID, isSpecial: false)
        case .tokens(let ids, let typeID):
          if addSpecialTokens { encoding.append(ids[...], typeID: typeID, isSpecial: true) }
        }
      }
      return encoding
    }

    // MARK: Stages

    private mutating func append(_ text: [UInt8], to ids: inout [Int32]) {
      let core = core
      core.added.plain.forEachPart(of: text) { part in
        if let token = part.token {
          ids.append(token)
        } else {
          let isWhole = part.range.count == text.count
          appendNormalized(
            isWhole ? text : Array(text[part.range]),
            startsInput: part.range.lowerBound == 0, to: &ids)
        }
      }
    }

    private mutating func appendNormalized(
      _ text: [UInt8], startsInput: Bool, to ids: inout [Int32]
    ) {
      var text = text
      for normalizer in core.normalizers { normalizer.normalize(&text) }
      let core = core
      core.added.normalized.forEachPart(of: text) { part in
        if let token = part.token {
          ids.append(token)
        } else {
          let isWhole = part.range.count == text.count
          list.bytes = isWhole ? text : Array(text[part.range])
          list.startsInput = startsInput && part.range.lowerBound == 0
          appendPieces(to: &ids)
        }
      }
    }

    private mutating func appendPieces(to ids: inout [Int32]) {
      list.pieces.removeAll(keepingCapacity: true)
      list.pieces.append(0..<list.bytes.count)
      for step in core.preTokenizers { step.split(&list) }
      core.model.encode(list, &scratch, into: &ids)
    }
  }
}
