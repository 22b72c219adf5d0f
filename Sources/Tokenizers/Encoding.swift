extension Tokenizer {
  /// The model input made of one text or a pair.
  public struct Encoding: Sendable, Equatable {
    /// The token ids.
    public var ids: [Int32] = []
    /// For each token the text it belongs to, as the model's segment ids have it: 0, or 1 for the
    /// second text of a pair in the BERT family.
    public var typeIDs: [Int32] = []
    /// For each token whether the post-processor or the padding added it.
    public var specialTokensMask: [Bool] = []
    /// For each token whether a model should attend to it: everything but padding.
    public var attentionMask: [Bool] = []

    /// Creates an empty encoding.
    public init() {}

    /// The number of tokens, padding included.
    public var count: Int { ids.count }

    /// Makes an encoding of `count` tokens, all of type 0 and none special, whose ids are still to
    /// be appended.
    init(reserving count: Int) {
      ids.reserveCapacity(count)
      typeIDs = [Int32](repeating: 0, count: count)
      specialTokensMask = [Bool](repeating: false, count: count)
      attentionMask = [Bool](repeating: true, count: count)
    }

    /// Appends ids, with their types and marks where they are not the usual ones.
    mutating func append(_ tokens: ArraySlice<Int32>, typeID: Int32, isSpecial: Bool) {
      let start = ids.count
      ids.append(contentsOf: tokens)
      if typeID != 0 { for place in start..<ids.count { typeIDs[place] = typeID } }
      if isSpecial { for place in start..<ids.count { specialTokensMask[place] = true } }
    }

    mutating func pad(to length: Int, _ padding: Padding) {
      let missing = length - ids.count
      if missing <= 0 { return }
      let place = padding.side == .right ? ids.count : 0
      ids.insert(contentsOf: repeatElement(padding.tokenID, count: missing), at: place)
      typeIDs.insert(contentsOf: repeatElement(padding.typeID, count: missing), at: place)
      specialTokensMask.insert(contentsOf: repeatElement(true, count: missing), at: place)
      attentionMask.insert(contentsOf: repeatElement(false, count: missing), at: place)
    }
  }
}

extension Truncation {
  /// How many tokens of each text stay.
  ///
  /// - Parameters:
  ///   - first: The tokens of the first text.
  ///   - second: The tokens of the second text, if there is one.
  ///   - special: The special tokens that come on top.
  func keptCounts(first: Int, second: Int?, special: Int) -> (Int, Int) {
    let room = max(0, maxLength - special)
    let total = first + (second ?? 0)
    guard total > room else { return (first, second ?? 0) }
    guard let second else { return (room, 0) }
    switch strategy {
    case .onlyFirst: return (max(0, first - (total - room)), second)
    case .onlySecond: return (first, max(0, second - (total - room)))
    case .longestFirst:
      let short = min(first, second)
      // The longer text makes room; once both are equal they share it, the odd token to the longer.
      var kept = (short, max(short, room - short))
      if short > room || kept.0 + kept.1 > room { kept = (room / 2, room / 2 + room % 2) }
      return first > second ? (kept.1, kept.0) : kept
    }
  }
}
