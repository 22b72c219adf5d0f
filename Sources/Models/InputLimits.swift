import PEFTSupport

/// The ranges that a model's inputs must stay in.
public struct InputLimits: Sendable, Equatable {
  /// Number of token ids.
  public var vocabulary: Int
  /// Longest sequence that the model was made for; `nil` when it does not say.
  public var positions: Int?
  /// Whether a longer sequence is impossible, as with a table of positions, or only unusual.
  public var positionsAreTable: Bool
  /// Number of segment ids; `nil` for models without segments.
  public var tokenTypes: Int?

  /// Creates limits.
  public init(
    vocabulary: Int, positions: Int?, positionsAreTable: Bool, tokenTypes: Int? = nil
  ) {
    self.vocabulary = vocabulary
    self.positions = positions
    self.positionsAreTable = positionsAreTable
    self.tokenTypes = tokenTypes
  }
}

extension InputLimits {
  /// Whether the model knows more than one segment.
  public var hasSegments: Bool { (tokenTypes ?? 1) > 1 }

  /// Checks the rows of one sequence, or of several: layers rely on it.
  ///
  /// - Parameters:
  ///   - ids: Token ids.
  ///   - types: Segments.
  ///   - length: The number of positions that the longest sequence takes.
  ///   - name: What to call the token ids in an error.
  ///   - isStrict: Whether a sequence that is longer than the model was made for is refused where it
  ///     is possible.
  /// - Throws: ``PEFTError`` `invalidData` with the first id or position that is out of range.
  public func check(
    ids: [Int32], types: [Int32]?, length: Int, name: String, isStrict: Bool = false
  ) throws(PEFTError) {
    if let id = ids.first(where: { $0 < 0 || Int($0) >= vocabulary }) {
      throw PEFTError(
        .invalidData, "'\(name)' holds the token \(id), the model has \(vocabulary) tokens",
        remedy: "Encode the text with the tokenizer of this model.")
    }
    if positionsAreTable || isStrict, let positions, length > positions {
      throw PEFTError(
        .invalidData,
        "'\(name)' has a sequence of \(length) tokens, the model takes \(positions)",
        remedy: "Shorten the input.")
    }
    if let tokenTypes,
      let type = types?.first(where: { $0 < 0 || Int($0) >= tokenTypes })
    {
      throw PEFTError(
        .invalidData, "'token_type_ids' holds \(type), the model has \(tokenTypes) segments")
    }
  }
}

extension TokenBatch {
  /// Checks that a model can take this batch.
  ///
  /// - Parameter name: What to call the token ids in an error.
  /// - Throws: ``PEFTError`` `invalidData` with the first id or position that is out of range.
  public func check(_ limits: InputLimits, name: String = "input_ids") throws(PEFTError) {
    try limits.check(
      ids: tokenIDs, types: tokenTypeIDs, length: Int(layout.positions.max() ?? -1) + 1, name: name)
  }
}
