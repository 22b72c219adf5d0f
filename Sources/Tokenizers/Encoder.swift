extension Tokenizer {
  /// Turns texts into token ids and remembers the words it has seen.
  ///
  /// One encoder serves one thread. Long-lived ones are fastest: natural text repeats its words, and
  /// a word seen before costs one lookup.
  public struct Encoder: ~Copyable {
    private let core: TokenizerCore
    private let truncation: Truncation?
    private let padding: Padding?
    private var pipeline: Pipeline
    /// The ids of the text and of the second of a pair.
    private var first: [Int32] = []
    private var second: [Int32] = []

    init(_ tokenizer: Tokenizer) {
      core = tokenizer.core
      pipeline = Pipeline(core: tokenizer.core)
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
      pipeline.append(Array(text.utf8), to: &ids)
      return ids
    }

    mutating func encodeUnpadded(
      _ text: String, _ pair: String?, _ addSpecialTokens: Bool, _ maxLength: Int?
    ) -> Encoding {
      first.removeAll(keepingCapacity: true)
      pipeline.append(Array(text.utf8), to: &first)
      second.removeAll(keepingCapacity: true)
      if let pair { pipeline.append(Array(pair.utf8), to: &second) }

      let post = core.postProcessor
      let special = addSpecialTokens ? post.specialCount(isPair: pair != nil) : 0
      var counts = (first.count, second.count)
      if let limit = limit(maxLength) {
        counts = limit.keptCounts(
          first: first.count, second: pair == nil ? nil : second.count, special: special)
      }
      let kept = (cut(first, to: counts.0), cut(second, to: counts.1))
      let template = pair == nil ? post.single : post.pair
      var count = special
      for case .sequence(let number, _) in template { count += number == 0 ? counts.0 : counts.1 }
      var encoding = Encoding(reserving: count)
      for item in template {
        switch item {
        case .sequence(let number, let typeID):
          encoding.append(number == 0 ? kept.0 : kept.1, typeID: typeID, isSpecial: false)
        case .tokens(let ids, let typeID):
          if addSpecialTokens { encoding.append(ids[...], typeID: typeID, isSpecial: true) }
        }
      }
      return encoding
    }

    /// The truncation in force for a call.
    private func limit(_ maxLength: Int?) -> Truncation? {
      guard let maxLength else { return truncation }
      precondition(maxLength >= 0, "maxLength must not be negative")
      var limit = truncation ?? Truncation(maxLength: maxLength)
      limit.maxLength = maxLength
      return limit
    }

    /// The tokens that stay when `count` of them do.
    private func cut(_ ids: [Int32], to count: Int) -> ArraySlice<Int32> {
      truncation?.side == .left ? ids.suffix(count) : ids.prefix(count)
    }
  }
}
