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

  /// The settings.
  public let settings: Settings
  /// The parameters under the names that ``items`` uses.
  public let parameters: [AdapterTensor]
  private var firstMoments: [Tensor]
  private var secondMoments: [Tensor]
  /// Updates of each parameter; one without a gradient is not updated, as in torch.
  private var steps: [Int]

  /// Creates an optimiser with moments of zero.
  public init(_ parameters: [AdapterTensor], settings: Settings = Settings()) {
    self.parameters = parameters
    self.settings = settings
    firstMoments = parameters.map { .zeros($0.parameter.shape) }
    secondMoments = parameters.map { .zeros($0.parameter.shape) }
    steps = parameters.map { _ in 0 }
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
      steps[index] += 1
      let step = steps[index]
      entry.parameter.update { value in
        value.withMutableSlice { parameter in
          firstMoments[index].withMutableSlice { first in
            secondMoments[index].withMutableSlice { second in
              Optimizers.adamW(
                parameter: parameter, gradient: gradient.slice, firstMoment: first,
                secondMoment: second, step: step, learningRate: learningRate,
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
    parameters.enumerated().flatMap { index, entry in
      [
        SafetensorsItem("exp_avg.\(entry.key)", firstMoments[index]),
        SafetensorsItem("exp_avg_sq.\(entry.key)", secondMoments[index]),
        SafetensorsItem("step.\(entry.key)", shape: [], integers: [Int64(steps[index])]),
      ]
    }
  }

  /// Restores the state from ``items``.
  ///
  /// - Throws: ``PEFTError`` when a tensor is missing or has another shape; the state is then as it
  ///   was.
  public func load(_ file: SafetensorsFile) throws(PEFTError) {
    var (firsts, seconds, counts): ([Tensor], [Tensor], [Int]) = ([], [], [])
    for entry in parameters {
      firsts.append(try file.tensor("exp_avg.\(entry.key)"))
      seconds.append(try file.tensor("exp_avg_sq.\(entry.key)"))
      for tensor in [firsts.last!, seconds.last!] where tensor.shape != entry.parameter.shape {
        throw PEFTError(
          .shapeMismatch,
          "the moments of '\(entry.key)' have shape \(tensor.shape), "
            + "\(entry.parameter.shape) was expected", at: file.path)
      }
      counts.append(Int(try file.integers("step.\(entry.key)").values.first ?? 0))
    }
    firstMoments = firsts
    secondMoments = seconds
    steps = counts
  }
}
