import BLASKernels

/// The nonlinearities of transformer layers, by their Hugging Face names (`hidden_act`).
public enum Activation: String, Sendable, CaseIterable {
  /// x·Φ(x) with the error function.
  case gelu
  /// The tanh approximation of GELU, as GPT-2 has it.
  case geluNew = "gelu_new"
  /// The same approximation under PyTorch's name.
  case geluTanh = "gelu_pytorch_tanh"
  /// x·σ(x).
  case silu
  /// Hyperbolic tangent.
  case tanh
  /// max(x, 0).
  case relu

  /// Applies the function to every element.
  public func callAsFunction(_ x: Tensor) -> Tensor {
    let input = x.detached
    let output = Tensor.filled(x.shape) { apply(input.slice, into: $0) }
    // tanh and relu know their derivative from the output, the others need the input.
    let saved = self == .tanh || self == .relu ? output : input
    return output.recorded(from: [x]) { gradient, sink in
      gradient.withMutableSlice { applyBackward(saved.slice, $0.readOnly, into: $0) }
      sink.add(gradient, to: 0)
    }
  }

  private func apply(_ x: Slice<Float>, into y: MutableSlice<Float>) {
    switch self {
    case .gelu: VectorMath.gelu(x, into: y)
    case .geluNew, .geluTanh: VectorMath.geluTanh(x, into: y)
    case .silu: VectorMath.silu(x, into: y)
    case .tanh: VectorMath.tanh(x, into: y)
    case .relu: VectorMath.relu(x, into: y)
    }
  }

  private func applyBackward(
    _ saved: Slice<Float>, _ dy: Slice<Float>, into dx: MutableSlice<Float>
  ) {
    switch self {
    case .gelu: VectorMath.geluBackward(input: saved, dy, into: dx)
    case .geluNew, .geluTanh: VectorMath.geluTanhBackward(input: saved, dy, into: dx)
    case .silu: VectorMath.siluBackward(input: saved, dy, into: dx)
    case .tanh: VectorMath.tanhBackward(output: saved, dy, into: dx)
    case .relu: VectorMath.reluBackward(input: saved, dy, into: dx)
    }
  }
}

/// SwiGLU: silu(gate) ∘ up, for gate and up of one shape.
public func swiGLU(gate: Tensor, up: Tensor) -> Tensor {
  precondition(gate.shape == up.shape)
  let (g, u) = (gate.detached, up.detached)
  let output = Tensor.filled(gate.shape) { VectorMath.swiglu(gate: g.slice, up: u.slice, into: $0) }
  return output.recorded(from: [gate, up]) { gradient, sink in
    var dGate = Tensor(uninitialized: g.shape)
    var dUp = Tensor(uninitialized: g.shape)
    dGate.withMutableSlice { gateSlice in
      dUp.withMutableSlice { upSlice in
        VectorMath.swigluBackward(
          gate: g.slice, up: u.slice, gradient.slice, gateGradient: gateSlice,
          upGradient: upSlice)
      }
    }
    sink.add(dGate, to: 0)
    sink.add(dUp, to: 1)
  }
}
