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

  private var kernel: ActivationKernel {
    switch self {
    case .gelu: return .gelu
    case .geluNew, .geluTanh: return .geluTanh
    case .silu: return .silu
    case .tanh: return .tanh
    case .relu: return .relu
    }
  }

  /// Applies the function to every element.
  public func callAsFunction(_ x: Tensor) -> Tensor {
    let kernel = kernel
    let input = x.detached
    let output = Tensor.filled(x.shape) {
      VectorMath.activation(kernel, input.slice, into: $0)
    }
    return output.recorded(from: [x]) { gradient, sink in
      gradient.withMutableSlice {
        VectorMath.activationBackward(kernel, x: input.slice, gradient: $0.readOnly, into: $0)
      }
      sink.add(gradient, to: 0)
    }
  }
}

/// SwiGLU: silu(gate) ∘ up, for gate and up of one shape.
public func swiGLU(gate: Tensor, up: Tensor) -> Tensor {
  precondition(gate.shape == up.shape)
  let (g, u) = (gate.detached, up.detached)
  let output = Tensor.filled(gate.shape) { VectorMath.swiGLU(gate: g.slice, up: u.slice, into: $0) }
  return output.recorded(from: [gate, up]) { gradient, sink in
    var dGate = Tensor(uninitialized: g.shape)
    var dUp = Tensor(uninitialized: g.shape)
    dGate.withMutableSlice { gateSlice in
      dUp.withMutableSlice { upSlice in
        VectorMath.swiGLUBackward(
          gate: g.slice, up: u.slice, gradient: gradient.slice, intoGate: gateSlice,
          intoUp: upSlice)
      }
    }
    sink.add(dGate, to: 0)
    sink.add(dUp, to: 1)
  }
}
