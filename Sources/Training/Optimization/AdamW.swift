import BLASKernels
import PEFTCore
import PEFTSupport
import Tensors

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101) in the arithmetic of `torch.optim.AdamW`.
///
/// Every tensor decays unless its group says otherwise; peft with a plain torch optimiser does the
/// same.
public final class AdamW: Optimizer {
  /// The parameters with the settings that they are changed by.
  public let groups: [ParameterGroup]
  private var moments: AdamMoments

  /// Creates an optimiser with moments of zero.
  public init(_ groups: [ParameterGroup]) {
    self.groups = groups
    moments = AdamMoments(groups.flatMap(\.parameters))
  }

  /// Creates an optimiser of one group.
  public convenience init(
    _ parameters: [AdapterTensor], settings: OptimizerSettings = OptimizerSettings()
  ) {
    self.init([ParameterGroup(parameters, settings)])
  }

  /// Updates every parameter that has a gradient.
  ///
  /// - Parameters:
  ///   - gradients: The gradients of the loss.
  ///   - rateFactor: What the schedule makes of the groups' learning rates in this step.
  ///   - gradientScale: A factor on every gradient, from clipping.
  public func update(_ gradients: Gradients, rateFactor: Double, gradientScale: Float) {
    var index = 0
    for group in groups {
      for entry in group.parameters {
        if let gradient = gradients[entry.parameter] {
          moments.update(
            index, entry.parameter, gradient, group.settings,
            learningRate: group.settings.learningRate * rateFactor, gradientScale: gradientScale)
        }
        index += 1
      }
    }
  }

  /// The state as tensors of a file: `exp_avg.KEY`, `exp_avg_sq.KEY` and `step.KEY`.
  public var items: [SafetensorsItem] { moments.items }

  /// Restores the state from ``items``.
  ///
  /// - Throws: ``PEFTError`` when a tensor is missing or has another shape; the state is then as it
  ///   was.
  public func load(_ file: SafetensorsFile) throws(PEFTError) { try moments.load(file) }
}

extension AdamMoments {
  /// One step of torch's AdamW on the parameter at `index`.
  mutating func update(
    _ index: Int, _ parameter: Parameter, _ gradient: Tensor, _ settings: OptimizerSettings,
    learningRate: Double, gradientScale: Float
  ) {
    steps[index] += 1
    let step = steps[index]
    parameter.update { value in
      value.withMutableSlice { parameter in
        first[index].withMutableSlice { first in
          second[index].withMutableSlice { second in
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
