import Tensors

/// What a forward pass is told besides its input: the sequences that its rows belong to, whether
/// it trains, and which adapter each row uses.
public struct ForwardContext {
  /// Which rows form which sequence.
  public var sequences: SequenceLayout
  /// Seed of this step's dropout masks; `nil` switches dropout off (evaluation).
  public var dropoutSeed: UInt64?
  /// Adapter of each sequence in a mixed batch; `nil` uses the active ones everywhere.
  public var sequenceAdapters: SequenceAdapters?
  /// Keys and values of earlier tokens, for generation.
  public var cache: KeyValueCache?
  /// Whether blocks are recomputed in the backward pass instead of kept.
  public var recomputesBlocks = false

  /// Creates a context for evaluation.
  public init(_ sequences: SequenceLayout) {
    self.sequences = sequences
  }

  /// Whether this is a training pass.
  public var isTraining: Bool { dropoutSeed != nil }

  /// The mask of one dropout site; `nil` in evaluation.
  public func dropoutKey(_ site: UInt64) -> DropoutKey? {
    dropoutSeed.map { DropoutKey(seed: $0, stream: site) }
  }
}

/// A stable number for a place in the model, from its path (64-bit FNV-1a).
public func siteID(_ path: String) -> UInt64 {
  path.utf8.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
}
