import BLASKernels
import PEFTCore
import PEFTSupport
import Tensors

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101) in the arithmetic of `torch.optim.AdamW`.
///
/// Every tensor decays; peft with a plain torch optimiser does the same.
public final class AdamW {
  /// The settings that do not change during a run.
  public struct Settings: Sendable, Equatable {
    /// Decay rate of the first moment.
    public var beta1: Double
    /// Decay rate of the second moment.
    public var beta2: Double
    /// Added to the root of the second moment.
    public var epsilon: Double
    /// Decoupled weight decay.
    public var weightDecay: Double

    /// Creates settings; the defaults are those of Hugging Face.
    public init(
      beta1: Double = 0.9, beta2: Double = 0.999, epsilon: Double = 1e-8, weightDecay: Double = 0
    ) {
      self.beta1 = beta1
      self.beta2 = beta2
      self.epsilon = epsilon
      self.weightDecay = weightDecay
    }
  }

  private struct Moments {
    var first: Tensor
    var second: Tensor
    /// Updates so far; a parameter without a gradient is not updated, as in torch.
    var steps: Int
  }

  /// The settings.
  public let settings: Settings
  /// The parameters under the names that ``items`` uses.
  public let parameters: [AdapterTensor]
  private var moments: [Moments]

  /// Creates an optimiser with moments of zero.
  public init(_ parameters: [AdapterTensor], settings: Settings = Settings()) {
    self.parameters = parameters
    self.settings = settings
    moments = parameters.map {
      Moments(first: .zeros($0.parameter.shape), second: .zeros($0.parameter.shape), steps: 0)
    }
  }

  /// Updates every parameter that has a gradient.
  ///
  /// - Parameters:
  ///   - gradients: The gradients of the loss.
  ///   - learningRate: The rate of this step.
  ///   - gradientScale: A factor on every gradient, from clipping.
  public func update(_ gradients: Gradients, learningRate: Double, gradientScale: Float = 1) {
    for (index, entry) in parameters.enumerated() {
      guard let gradient = gradients[entry.parameter] else { continue }
      moments[index].steps += 1
      let steps = moments[index].steps
      entry.parameter.update { value in
        value.withMutableSlice { parameter in
          moments[index].first.withMutableSlice { first in
            moments[index].second.withMutableSlice { second in
              Optimizers.adamW(
                parameter: parameter, gradient: gradient.slice, firstMoment: first,
                secondMoment: second, step: steps, learningRate: learningRate,
                beta1: settings.beta1, beta2: settings.beta2, epsilon: settings.epsilon,
                weightDecay: settings.weightDecay, gradientScale: gradientScale)
            }
          }
        }
      }
    }
  }

  /// The 2-norm of all gradients together, added up in double precision.
  public func norm(of gradients: Gradients) -> Double {
    parameters.reduce(0) { $0 + (gradients[$1.parameter]?.sumOfSquares ?? 0) }.squareRoot()
  }

  /// The factor that brings gradients of a norm down to a limit, as `clip_grad_norm_` of torch
  /// computes it; a limit of 0 does not clip.
  public static func clippingFactor(norm: Double, limit: Double) -> Float {
    limit > 0 ? Float(min(1, limit / (norm + 1e-6))) : 1
  }

  // MARK: Files

  /// The state as tensors of a file: `exp_avg.KEY`, `exp_avg_sq.KEY` and `step.KEY`.
  public var items: [SafetensorsItem] {
    zip(parameters, moments).flatMap { entry, moments in
      [
        SafetensorsItem("exp_avg.\(entry.key)", moments.first),
        SafetensorsItem("exp_avg_sq.\(entry.key)", moments.second),
        SafetensorsItem("step.\(entry.key)", shape: [], integers: [Int64(moments.steps)]),
      ]
    }
  }

  /// Restores the state from ``items``.
  ///
  /// - Throws: ``PEFTError`` when a tensor is missing or has another shape; the state is then as it
  ///   was.
  public func load(_ file: SafetensorsFile) throws(PEFTError) {
    var loaded: [Moments] = []
    for entry in parameters {
      let first = try file.tensor("exp_avg.\(entry.key)")
      let second = try file.tensor("exp_avg_sq.\(entry.key)")
      for tensor in [first, second] where tensor.shape != entry.parameter.shape {
        throw PEFTError(
          .shapeMismatch,
          "the moments of '\(entry.key)' have shape \(tensor.shape), "
            + "\(entry.parameter.shape) was expected", at: file.path)
      }
      let steps = try file.integers("step.\(entry.key)").values.first ?? 0
      loaded.append(Moments(first: first, second: second, steps: Int(steps)))
    }
    moments = loaded
  }
}
