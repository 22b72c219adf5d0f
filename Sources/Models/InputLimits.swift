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

extension TokenBatch {
  /// Checks that a model can take this batch: layers rely on it.
  ///
  /// - Parameter name: What to call the token ids in an error.
  /// - Throws: ``PEFTError`` `invalidData` with the first id or position that is out of range.
  public func check(_ limits: InputLimits, name: String = "input_ids") throws(PEFTError) {
    if let id = tokenIDs.first(where: { $0 < 0 || Int($0) >= limits.vocabulary }) {
      throw PEFTError(
        .invalidData, "'\(name)' holds the token \(id), the model has \(limits.vocabulary) tokens",
        remedy: "Encode the text with the tokenizer of this model.")
    }
    if limits.positionsAreTable, let positions = limits.positions,
      let last = layout.positions.max(), Int(last) >= positions
    {
      throw PEFTError(
        .invalidData,
        "'\(name)' has a sequence of \(last + 1) tokens, the model takes \(positions)",
        remedy: "Shorten the input.")
    }
    if let types = limits.tokenTypes,
      let type = tokenTypeIDs?.first(where: { $0 < 0 || Int($0) >= types })
    {
      throw PEFTError(
        .invalidData, "'token_type_ids' holds \(type), the model has \(types) segments")
    }
  }
}
