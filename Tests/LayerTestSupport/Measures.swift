import BLASKernels
import PEFTCore
import PEFTSupport
import Tensors

/// The sum of a tensor's elements with given weights.
public func contracted(_ x: Tensor, _ weights: Tensor) -> Tensor {
  (x * weights.reshaped(x.shape)).sum()
}

/// Mean of the squared differences.
public func meanSquare(_ x: Tensor, _ target: Tensor) -> Tensor {
  var difference = x
  let negative = target.reshaped(x.shape).scaled(by: -1)
  difference = difference + negative
  return (difference * difference).sum().scaled(by: 1 / Float(x.count))
}

/// The largest difference relative to the largest expected magnitude.
public func relativeError(_ actual: Tensor, _ expected: Tensor) -> Float {
  precondition(actual.count == expected.count, "\(actual.shape) against \(expected.shape)")
  let difference = zip(actual.scalars, expected.scalars).map { abs($0 - $1) }
  // The largest of numbers that are not all comparable is no measure.
  guard difference.allSatisfy(\.isFinite) else { return .infinity }
  return (difference.max() ?? 0) / max(expected.maximumMagnitude, 1e-30)
}

/// torch's AdamW on the trainable tensors of a model.
public final class AdamWSteps {
  private var moments: [(first: Tensor, second: Tensor)] = []
  private var step = 0
  private let rate: Double
  private let decay: Double

  /// Rate and decay from a golden.
  public init(_ settings: JSONValue?) throws {
    rate = try Self.number(settings, "lr")
    decay = try Self.number(settings, "weight_decay")
  }

  private static func number(_ settings: JSONValue?, _ key: String) throws -> Double {
    guard let value = settings?[key]?.double else {
      throw PEFTError(.malformedFile, "the golden has no '\(key)'")
    }
    return value
  }

  /// One step.
  public func update(_ tensors: [AdapterTensor], _ gradients: Gradients) throws {
    step += 1
    if moments.isEmpty {
      moments = tensors.map { (.zeros($0.parameter.shape), .zeros($0.parameter.shape)) }
    }
    for (place, tensor) in tensors.enumerated() {
      guard let gradient = gradients[tensor.parameter] else {
        throw PEFTError(.missingTensor, "no gradient for \(tensor.key)")
      }
      var (first, second) = moments[place]
      tensor.parameter.update { value in
        value.withMutableSlice { value in
          first.withMutableSlice { first in
            second.withMutableSlice { second in
              Optimizers.adamW(
                parameter: value, gradient: gradient.slice, firstMoment: first,
                secondMoment: second, step: step, learningRate: rate, weightDecay: decay)
            }
          }
        }
      }
      moments[place] = (first, second)
    }
  }
}
