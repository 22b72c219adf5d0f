import Tensors

/// Sees what goes into a layer with a slot and what comes out of it, adapters included, and returns
/// the output that the model goes on with: as a rule the same.
///
/// A layer that gets several inputs, as attention does, may call it several times. The output that
/// is returned may carry a graph of its own, by which gradients can be had of layers that are
/// frozen:
///
/// ```swift
/// let probe = Parameter(.zeros([1]))
/// context.observer = { host, input, output in
///   output.recorded(from: [output, probe.tensor]) { gradient, sink in
///     sink.add(gradient.reshaped([gradient.count]), to: 1)
///     sink.add(gradient, to: 0)
///   }
/// }
/// let ofOutput = loss.backward()[probe]
/// ```
public typealias HostObserver =
  (_ host: any AdapterHost, _ input: HostInput, _ output: Tensor) -> Tensor

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
  /// Sees the input and the output of every layer that has a slot for adapters.
  public var observer: HostObserver?

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
