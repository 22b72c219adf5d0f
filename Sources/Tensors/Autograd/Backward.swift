import BLASKernels

/// The gradients of a scalar with respect to parameters.
public struct Gradients: Sendable {
  var values: [Parameter.ID: Tensor] = [:]

  /// No gradients.
  public init() {}

  /// The gradient of a parameter, in its shape; `nil` when the scalar does not depend on it.
  public subscript(parameter: Parameter) -> Tensor? {
    get { values[parameter.id] }
    set { values[parameter.id] = newValue }
  }

  /// Whether there are none.
  public var isEmpty: Bool { values.isEmpty }

  /// Adds those of another computation, as gradient accumulation needs.
  public mutating func add(_ other: consuming Gradients) {
    for (id, gradient) in other.values { add(gradient, to: id) }
  }

  mutating func add(_ gradient: Tensor, to id: Parameter.ID) {
    guard var sum = values.removeValue(forKey: id) else {
      values[id] = gradient
      return
    }
    sum.accumulate(gradient)
    values[id] = sum
  }

  /// Multiplies all of them by a number.
  public mutating func scale(by factor: Float) {
    // The keys as an array: a view of them would share the tensors, and each would be copied.
    for id in Array(values.keys) {
      var gradient = values.removeValue(forKey: id)!
      gradient.withMutableSlice { VectorMath.scale(factor, $0.readOnly, into: $0) }
      values[id] = gradient
    }
  }
}

/// Where a pullback puts the gradients of its operation's inputs.
public struct GradientSink {
  fileprivate(set) var inputs: [GraphNode?]
  fileprivate var pending: [ObjectIdentifier: Tensor] = [:]
  fileprivate var parameters = Gradients()

  /// Whether the input at `position` needs a gradient; computing one that is not needed is waste.
  public func needs(_ position: Int) -> Bool { inputs[position] != nil }

  /// Adds a gradient for the input at `position`.
  public mutating func add(_ gradient: consuming Tensor, to position: Int) {
    guard let node = inputs[position] else { return }
    let key = ObjectIdentifier(node)
    if var sum = pending.removeValue(forKey: key) {
      sum.accumulate(gradient)
      pending[key] = sum
    } else {
      pending[key] = gradient.detached
    }
  }

  /// Lets `body` write or add a gradient in place, which spares a temporary and a pass over it.
  ///
  /// - Parameters:
  ///   - position: The input.
  ///   - shape: The input's shape.
  ///   - body: Gets the destination and the factor of what it holds: 0 to overwrite (the memory is
  ///     then undefined), 1 to add to it; the `beta` of a GEMM.
  public mutating func accumulate(
    into position: Int, shape: [Int], _ body: (MutableSlice<Float>, _ beta: Float) -> Void
  ) {
    guard let node = inputs[position] else { return }
    let key = ObjectIdentifier(node)
    if var sum = pending.removeValue(forKey: key) {
      sum.withMutableSlice { body($0, 1) }
      pending[key] = sum
    } else {
      pending[key] = Tensor.filled(shape) { body($0, 0) }
    }
  }

  /// Adds gradients of parameters that an operation used inside, as recomputation does.
  public mutating func add(_ gradients: consuming Gradients) {
    parameters.add(gradients)
  }
}

extension Tensor {
  /// The gradients of this scalar with respect to every parameter that it depends on.
  ///
  /// Consumes the graph: saved tensors are released while it walks back, and a second call on the
  /// same graph is an error of the caller.
  ///
  /// - Precondition: The tensor has one element.
  public consuming func backward() -> Gradients {
    precondition(count == 1, "backward from a tensor of shape \(shape); a scalar was expected")
    let seed = Tensor(repeating: 1, shape: shape)
    return backward(from: seed, inputs: []).parameters
  }

  /// Walks the graph back from a gradient of this tensor.
  ///
  /// - Parameters:
  ///   - seed: Gradient of this tensor, in its shape.
  ///   - inputs: Tracked tensors whose own gradients are wanted too.
  consuming func backward(
    from seed: Tensor, inputs: [Tensor]
  ) -> (parameters: Gradients, inputs: [Tensor?]) {
    guard let root = node else { return (Gradients(), inputs.map { _ in nil }) }
    var order = Self.topologicalOrder(from: root)
    var sink = GradientSink(inputs: [])
    sink.pending[ObjectIdentifier(root)] = seed
    let kept = Set(inputs.compactMap { $0.node.map(ObjectIdentifier.init) })
    while let node = order.popLast() {
      let key = ObjectIdentifier(node)
      if node.isLeaf || kept.contains(key) { continue }
      guard var gradient = sink.pending.removeValue(forKey: key) else { continue }
      guard let pullback = node.takePullback() else {
        preconditionFailure("backward was called twice on one graph")
      }
      sink.inputs = node.inputs
      pullback(&gradient, &sink)
    }
    let inputGradients = inputs.map { input in
      input.node.flatMap { sink.pending.removeValue(forKey: ObjectIdentifier($0)) }
    }
    for (key, gradient) in sink.pending { sink.parameters.add(gradient, to: Parameter.ID(key)) }
    return (sink.parameters, inputGradients)
  }

  /// Nodes in an order in which each comes after its inputs. Iterative, since graphs are deep.
  private static func topologicalOrder(from root: GraphNode) -> [GraphNode] {
    var order: [GraphNode] = []
    var visited: Set<ObjectIdentifier> = []
    var stack: [(node: GraphNode, next: Int)] = [(root, 0)]
    visited.insert(ObjectIdentifier(root))
    while let (node, next) = stack.last {
      if next < node.inputs.count {
        stack[stack.count - 1].next += 1
        if let input = node.inputs[next], visited.insert(ObjectIdentifier(input)).inserted {
          stack.append((input, 0))
        }
      } else {
        order.append(node)
        stack.removeLast()
      }
    }
    return order
  }

  /// Adds another tensor of the same shape, in place where this one's memory is not shared.
  mutating func accumulate(_ other: Tensor) {
    let addend = other.slice
    withMutableSlice { VectorMath.axpy(1, addend, into: $0) }
  }
}
