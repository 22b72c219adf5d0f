import Tensors

/// The keys and values of the tokens that a model has seen, for every layer and sequence.
///
/// Rows are written in place into memory of a fixed capacity, so a step of generation copies
/// only its own rows.
public final class KeyValueCache {
  /// Most tokens that a sequence may have.
  public let capacity: Int
  /// Tokens seen so far, for each sequence.
  public private(set) var lengths: [Int]
  private var keys: [[Tensor?]]
  private var values: [[Tensor?]]

  /// Creates an empty cache.
  public init(layers: Int, sequences: Int, capacity: Int) {
    self.capacity = capacity
    lengths = Array(repeating: 0, count: sequences)
    keys = Array(repeating: Array(repeating: nil, count: sequences), count: layers)
    values = keys
  }

  /// Adds rows of a layer to a sequence and returns all of its rows so far.
  ///
  /// - Parameters:
  ///   - layer: The layer.
  ///   - sequence: The sequence.
  ///   - k: New keys, `[new, width]`.
  ///   - v: New values, `[new, width]`.
  /// - Returns: Keys and values, `[seen + new, width]`.
  public func append(
    layer: Int, sequence: Int, k: Tensor, v: Tensor
  ) -> (keys: Tensor, values: Tensor) {
    let start = lengths[sequence]
    precondition(start + k.rows <= capacity, "the key-value cache is full")
    return (
      Self.append(k, at: start, to: &keys[layer][sequence], capacity),
      Self.append(v, at: start, to: &values[layer][sequence], capacity)
    )
  }

  /// Counts rows as seen, once all layers have them.
  public func advance(by counts: [Int]) {
    for (sequence, count) in counts.enumerated() { lengths[sequence] += count }
  }

  /// Forgets all sequences but the given ones, which move up in the given order.
  public func keep(_ sequences: [Int]) {
    lengths = sequences.map { lengths[$0] }
    keys = keys.map { layer in sequences.map { layer[$0] } }
    values = values.map { layer in sequences.map { layer[$0] } }
  }

  private static func append(
    _ rows: Tensor, at start: Int, to slot: inout Tensor?, _ capacity: Int
  ) -> Tensor {
    var buffer = slot.take() ?? Tensor(uninitialized: [capacity, rows.columns])
    buffer.copyRows(of: rows, at: start)
    slot = buffer
    return buffer.rowRange(0..<start + rows.rows)
  }
}
