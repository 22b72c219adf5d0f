import Synchronization

/// One step of a computation whose gradient is wanted: what it came from, and how a gradient of
/// its result becomes gradients of its inputs.
///
/// Nodes are made by ``Tensor/recorded(from:pullback:)`` and used up by ``Tensor/backward()``.
final class GraphNode: Sendable {
  /// The nodes of the inputs; `nil` where an input needs no gradient.
  let inputs: [GraphNode?]
  /// Whether gradients end here, at a parameter.
  let isLeaf: Bool
  private let pullback: Mutex<Pullback?>

  /// A node for the result of an operation.
  init(inputs: [GraphNode?], pullback: @escaping Pullback) {
    self.inputs = inputs
    isLeaf = false
    self.pullback = Mutex(pullback)
  }

  /// The leaf of a parameter, where gradients end.
  init() {
    inputs = []
    isLeaf = true
    pullback = Mutex(nil)
  }

  /// Takes the pullback, and with it the tensors saved for it, out of the node.
  func takePullback() -> Pullback? {
    pullback.withLock { held in
      let taken = held
      held = nil
      return taken
    }
  }
}

/// Turns the gradient of a result into the gradients of the inputs.
///
/// The gradient has the shape of the result; it is no one else's, so it can be changed in place
/// and passed on. The inputs' gradients go into the sink, by the input's position.
public typealias Pullback =
  @Sendable (_ gradient: inout Tensor, _ sink: inout GradientSink) -> Void

/// Whether operations record how to compute gradients.
public enum GradientMode {
  /// False within ``withoutGradients(_:)``.
  @TaskLocal public static var isRecording = true
}

/// Runs `body` without recording: parameters behave as constants and nothing is kept for
/// gradients. Evaluation and generation run in it.
public func withoutGradients<Result>(_ body: () throws -> Result) rethrows -> Result {
  try GradientMode.$isRecording.withValue(false, operation: body)
}

extension Tensor {
  /// This tensor as the result of an operation on `inputs`.
  ///
  /// This is how every differentiable primitive is made, and how a third party adds one: compute
  /// the value with kernels or with detached tensors, then attach the pullback. Nothing is
  /// recorded, and `pullback` is dropped with all that it captured, when no input is tracked.
  ///
  /// - Parameters:
  ///   - inputs: The tensors that the value depends on, in the order of the sink's positions.
  ///   - pullback: Gradient of the result to gradients of the inputs.
  public func recorded(from inputs: [Tensor], pullback: @escaping Pullback) -> Tensor {
    recorded(fromNodes: inputs.map(\.node), pullback: pullback)
  }

  /// The same for inputs whose values are gone, since the result was written over one of them.
  func recorded(fromNodes nodes: [GraphNode?], pullback: @escaping Pullback) -> Tensor {
    guard nodes.contains(where: { $0 != nil }), GradientMode.isRecording else { return detached }
    return Tensor(
      shape: shape, storage: storage, offset: offset,
      node: GraphNode(inputs: nodes, pullback: pullback))
  }

  /// The values alone; unlike ``detached`` it takes over the memory, so that it can be unshared.
  consuming func withoutGraph() -> Tensor {
    Tensor(shape: shape, storage: storage, offset: offset, node: nil)
  }
}
