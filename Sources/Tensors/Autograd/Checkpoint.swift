/// Runs `body` without keeping what its gradients need, and runs it again in the backward pass:
/// memory for time.
///
/// `body` must be deterministic, which dropout here is: its masks come from a counter, not from
/// a generator's state. The second run happens on the thread that calls ``Tensor/backward()``.
///
/// - Parameters:
///   - inputs: The tensors that `body` depends on, apart from parameters.
///   - body: The computation; gets the inputs.
public func checkpoint(_ inputs: [Tensor], _ body: @escaping ([Tensor]) -> Tensor) -> Tensor {
  guard GradientMode.isRecording else { return body(inputs) }
  let saved = inputs.map(\.detached)
  let wanted = inputs.map(\.isTracked)
  let value: Tensor
  if wanted.contains(true) {
    value = withoutGradients { body(saved) }
  } else {
    // Recorded, to see whether the body leads to a parameter: what lies below the first adapter
    // must not be walked back to. The graph is dropped at once.
    let recorded = body(saved)
    if !recorded.isTracked { return recorded }
    value = recorded.detached
  }
  // Modules are not Sendable; the graph is walked by the caller of `backward`, who owns them.
  nonisolated(unsafe) let body = body
  let node = GraphNode(inputs: inputs.map(\.node)) { gradient, sink in
    let leaves = zip(saved, wanted).map { input, wanted in
      wanted
        ? Tensor(
          shape: input.shape, storage: input.storage, offset: input.offset, node: GraphNode())
        : input
    }
    // The caller may have switched recording off by now.
    let output = GradientMode.$isRecording.withValue(true) { body(leaves) }
    let (parameters, gradients) = output.backward(from: gradient, inputs: leaves)
    for (position, gradient) in gradients.enumerated() {
      if let gradient { sink.add(gradient, to: position) }
    }
    sink.add(parameters)
  }
  return Tensor(shape: value.shape, storage: value.storage, offset: value.offset, node: node)
}
