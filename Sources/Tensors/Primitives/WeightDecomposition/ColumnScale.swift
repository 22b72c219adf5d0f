import BLASKernels

// The pieces of weight-decomposed adapters: a direction V = W + s·P·A with P·A of low rank, row norms
// n = ‖V‖, a magnitude m, and g = m/n, which scales the rows of V and so the columns of the output.

/// The factors g = m/n that scale the rows of a direction.
public struct ColumnScale: Sendable {
  /// m, `[columns]`; tracked when it is trained.
  public let magnitude: Tensor
  /// n, `[columns]`; tracked when training does not take it as a constant.
  public let norms: Tensor
  /// g without a graph, `[columns]`: m/n, and 0 where n is 0, as the direction is undefined there.
  public let factors: Tensor
  /// Whether no magnitude is zero, so that m can be divided by.
  public let isInvertible: Bool

  /// Divides magnitudes by norms.
  public init(magnitude: Tensor, norms: Tensor) {
    precondition(magnitude.count == norms.count, "\(magnitude.shape) for \(norms.shape)")
    self.magnitude = magnitude
    self.norms = norms
    var isInvertible = true
    factors = Tensor.filled([norms.count]) { output in
      magnitude.slice.withSpan { magnitude in
        norms.slice.withSpan { norms in
          output.withMutableSpan { output in
            for column in 0..<norms.count {
              let (m, n) = (magnitude[column], norms[column])
              output[column] = n > 0 ? m / n : 0
              // The quotient of a subnormal number would not be exact.
              if !(abs(m) >= Float.leastNormalMagnitude) || n <= 0 { isInvertible = false }
            }
          }
        }
      }
    }
    self.isInvertible = isInvertible
  }

  private init(_ other: ColumnScale, _ magnitude: Tensor, _ norms: Tensor) {
    self.magnitude = magnitude
    self.norms = norms
    factors = other.factors
    isInvertible = other.isInvertible
  }

  /// Whether the direction's output can be had back from g∘v + b: not where m is zero, nor where b is so
  /// much larger than m that rounding the sum leaves little of m·v/n.
  func isInvertible(after bias: Tensor?) -> Bool {
    guard isInvertible, let bias else { return isInvertible }
    precondition(bias.count == magnitude.count, "\(bias.shape) for \(magnitude.shape)")
    return bias.slice.withSpan { bias in
      magnitude.slice.withSpan { magnitude in
        // Eight of the 24 bits of a float.
        for column in 0..<bias.count where abs(bias[column]) > 256 * abs(magnitude[column]) {
          return false
        }
        return true
      }
    }
  }

  /// The same numbers, through which gradients flow to the given magnitude and norms.
  ///
  /// - Parameters:
  ///   - magnitude: m with a graph.
  ///   - norms: n with a graph; constant unless given.
  public func tracking(_ magnitude: Tensor, norms: Tensor? = nil) -> ColumnScale {
    ColumnScale(self, magnitude, norms ?? self.norms)
  }

  /// With dots = Σ dY∘V: dm = dots/n, dn = −g·dm.
  func addGradients(
    dots: Tensor, dividedBy divisor: Tensor, magnitudeAt position: Int,
    in sink: inout GradientSink
  ) {
    var dm = dots
    let count = dm.count
    dm.withMutableSlice { output in
      divisor.slice.withSpan { divisor in
        output.withMutableSpan { output in
          for column in 0..<count {
            output[column] = divisor[column] == 0 ? 0 : output[column] / divisor[column]
          }
        }
      }
    }
    if sink.needs(position + 1) {
      sink.add(
        Tensor.filled([count]) { output in
          for column in 0..<count { output[column] = -factors.slice[column] * dm.slice[column] }
        }, to: position + 1)
    }
    sink.add(dm.reshaped(magnitude.shape), to: position)
  }
}
