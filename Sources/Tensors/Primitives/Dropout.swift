import BLASKernels

/// Identifies one use of dropout in one training step: the same key gives the same mask, whatever
/// the thread count and however often it is asked.
public struct DropoutKey: Sendable, Hashable {
  /// Seed and step of the run.
  public var seed: UInt64
  /// The place in the model.
  public var stream: UInt64

  /// Creates a key.
  public init(seed: UInt64, stream: UInt64) {
    self.seed = seed
    self.stream = stream
  }
}

/// Zeroes each element with a probability and scales the others by 1/(1 − p).
///
/// - Parameters:
///   - x: Any shape.
///   - probability: p, in `0 ..< 1`.
///   - key: Which mask.
public func dropout(_ x: consuming Tensor, probability: Float, key: DropoutKey) -> Tensor {
  guard probability > 0 else { return x }
  let node = x.node
  var output = x.withoutGraph()
  output.withMutableSlice {
    Random.dropout(
      $0.readOnly, p: probability, seed: key.seed, stream: key.stream, into: $0)
  }
  return output.recorded(fromNodes: [node]) { gradient, sink in
    gradient.withMutableSlice {
      Random.dropout(
        $0.readOnly, p: probability, seed: key.seed, stream: key.stream, into: $0)
    }
    sink.add(gradient, to: 0)
  }
}
