/// A value that training may change.
///
/// A module holds its parameters by reference; a forward pass reads ``tensor``, an optimiser
/// writes through ``update(_:)``. Frozen weights of large models are no parameters but
/// ``WeightMatrix`` values.
public final class Parameter {
  /// Identifies a parameter while it lives.
  public struct ID: Hashable, Sendable {
    private let leaf: ObjectIdentifier
    init(_ leaf: ObjectIdentifier) { self.leaf = leaf }
  }

  /// The current value.
  public private(set) var value: Tensor
  /// Whether gradients are computed for it.
  public var isTrainable: Bool
  /// Counts the changes of ``value``; what was derived from an older version is out of date.
  public private(set) var version = 0
  // Made when a graph first needs it: adapters that only run have thousands of parameters.
  private lazy var leaf = GraphNode()

  /// Creates a parameter.
  public init(_ value: Tensor, isTrainable: Bool = true) {
    self.value = value.detached
    self.isTrainable = isTrainable
  }

  /// The key of this parameter in ``Gradients``.
  public var id: ID { ID(ObjectIdentifier(leaf)) }

  /// The shape of the value.
  public var shape: [Int] { value.shape }

  /// The value for a forward pass: tracked when the parameter is trainable and gradients are
  /// recorded.
  public var tensor: Tensor {
    guard isTrainable, GradientMode.isRecording else { return value }
    return Tensor(shape: value.shape, storage: value.storage, offset: value.offset, node: leaf)
  }

  /// Changes the value in place.
  public func update<Result>(_ body: (inout Tensor) throws -> Result) rethrows -> Result {
    version += 1
    return try body(&value)
  }

  /// Replaces the value by another of the same shape.
  public func assign(_ newValue: Tensor) {
    precondition(newValue.shape == value.shape, "\(newValue.shape) for \(value.shape)")
    version += 1
    value = newValue.detached
  }
}
