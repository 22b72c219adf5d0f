import Foundation
import Testing

@testable import Tensors

/// Activations against their formulas in double precision.
struct ActivationTests {
  static let inputs: [Float] = (-64...64).map { Float($0) / 8 } + [0.01, -0.01, 20, -20]

  @Test(arguments: Activation.allCases)
  func valueFollowsFormula(_ activation: Activation) {
    let y = activation(Tensor(shape: [Self.inputs.count], scalars: Self.inputs)).scalars
    for (x, y) in zip(Self.inputs, y) {
      let x = Double(x)
      let expected: Double
      switch activation {
      case .gelu: expected = 0.5 * x * (1 + erf(x / 2.0.squareRoot()))
      case .geluNew, .geluTanh:
        expected = 0.5 * x * (1 + tanh((2 / Double.pi).squareRoot() * (x + 0.044715 * x * x * x)))
      case .silu: expected = x / (1 + exp(-x))
      case .tanh: expected = tanh(x)
      case .relu: expected = max(x, 0)
      }
      #expect(abs(Double(y) - expected) < 1e-6 * max(1, abs(expected)), "\(activation)(\(x))")
    }
  }

  @Test(arguments: Activation.allCases)
  func gradientMatchesDifferences(_ activation: Activation) {
    let x = Parameter(Tensor(shape: [6], scalars: [-2.1, -0.4, 0.3, 0.9, 1.7, 3.2]))
    let check = GradientCheck([x]) { activation(x.tensor) }
    #expect(check.maximumError < 1e-3)
  }
}
