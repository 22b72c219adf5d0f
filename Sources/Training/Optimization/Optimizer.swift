import PEFTCore
import PEFTSupport
import Tensors

/// Changes parameters by their gradients, each group of them by settings of its own.
///
/// A run can use any other: pass it to ``Trainer``. What it remembers between steps must be in
/// ``items``, so that a run which is resumed goes on exactly as it would have.
public protocol Optimizer: AnyObject {
  /// The parameters with the settings that they are changed by.
  var groups: [ParameterGroup] { get }

  /// Updates every parameter that has a gradient; one without is left alone, as in torch.
  ///
  /// - Parameters:
  ///   - gradients: The gradients of the loss.
  ///   - rateFactor: What the schedule makes of the groups' learning rates in this step.
  ///   - gradientScale: A factor on every gradient, from clipping.
  func update(_ gradients: Gradients, rateFactor: Double, gradientScale: Float)

  /// The state as tensors of a file.
  var items: [SafetensorsItem] { get }

  /// Restores the state from ``items``.
  ///
  /// - Throws: ``PEFTError`` when a tensor is missing or has another shape; the state is then as it
  ///   was.
  func load(_ file: SafetensorsFile) throws(PEFTError)
}

extension Optimizer {
  /// The parameters of all groups.
  public var parameters: [AdapterTensor] { groups.flatMap(\.parameters) }

  /// The 2-norm of all gradients together, added up in double precision.
  public func norm(of gradients: Gradients) -> Double {
    parameters.reduce(0) { $0 + (gradients[$1.parameter]?.sumOfSquares ?? 0) }.squareRoot()
  }

  /// Updates without a schedule and without clipping; see ``update(_:rateFactor:gradientScale:)``.
  public func update(_ gradients: Gradients) {
    update(gradients, rateFactor: 1, gradientScale: 1)
  }
}

/// The factor that brings gradients of a norm down to a limit, as `clip_grad_norm_` of torch
/// computes it; a limit of 0 does not clip.
public func gradientClippingFactor(norm: Double, limit: Double) -> Float {
  limit > 0 ? Float(min(1, limit / (norm + 1e-6))) : 1
}

/// Parameters that are changed by the same settings.
public struct ParameterGroup {
  /// The parameters.
  public var parameters: [AdapterTensor]
  /// How they are changed.
  public var settings: OptimizerSettings

  /// Creates a group.
  public init(_ parameters: [AdapterTensor], _ settings: OptimizerSettings) {
    self.parameters = parameters
    self.settings = settings
  }
}

/// The settings of an optimiser of the Adam family.
public struct OptimizerSettings: Sendable, Equatable {
  /// The learning rate, before the schedule.
  public var learningRate: Double
  /// Decoupled weight decay.
  public var weightDecay: Double
  /// Decay rate of the first moment.
  public var beta1: Double
  /// Decay rate of the second moment.
  public var beta2: Double
  /// Added to the root of the second moment.
  public var epsilon: Double

  /// Creates settings; the defaults are those of Hugging Face.
  public init(
    learningRate: Double = 5e-5, weightDecay: Double = 0, beta1: Double = 0.9,
    beta2: Double = 0.999, epsilon: Double = 1e-8
  ) {
    self.learningRate = learningRate
    self.weightDecay = weightDecay
    self.beta1 = beta1
    self.beta2 = beta2
    self.epsilon = epsilon
  }
}

/// The two moments and the number of updates of each parameter: what every optimiser of the Adam
/// family remembers.
struct AdamMoments {
  /// The parameters, under whose keys the moments are saved.
  private let parameters: [AdapterTensor]
  var first: [Tensor]
  var second: [Tensor]
  /// Updates of each parameter; one without a gradient is not updated.
  var steps: [Int]

  /// Moments of zero.
  init(_ parameters: [AdapterTensor]) {
    self.parameters = parameters
    first = parameters.map { .zeros($0.parameter.shape) }
    second = first.map { .zeros($0.shape) }
    steps = parameters.map { _ in 0 }
  }

  /// `exp_avg.KEY`, `exp_avg_sq.KEY` and `step.KEY`.
  var items: [SafetensorsItem] {
    parameters.enumerated().flatMap { index, entry in
      [
        SafetensorsItem("exp_avg.\(entry.key)", first[index]),
        SafetensorsItem("exp_avg_sq.\(entry.key)", second[index]),
        SafetensorsItem("step.\(entry.key)", shape: [], integers: [Int64(steps[index])]),
      ]
    }
  }

  /// Reads what ``items`` wrote; when it throws, nothing is changed.
  mutating func load(_ file: SafetensorsFile) throws(PEFTError) {
    var read = self
    for (index, entry) in parameters.enumerated() {
      read.first[index] = try file.tensor("exp_avg.\(entry.key)")
      read.second[index] = try file.tensor("exp_avg_sq.\(entry.key)")
      for tensor in [read.first[index], read.second[index]]
      where tensor.shape != entry.parameter.shape {
        throw PEFTError(
          .shapeMismatch,
          "the moments of '\(entry.key)' have shape \(tensor.shape), "
            + "\(entry.parameter.shape) was expected", at: file.path)
      }
      read.steps[index] = Int(try file.integers("step.\(entry.key)").values.first ?? 0)
    }
    self = read
  }
}
