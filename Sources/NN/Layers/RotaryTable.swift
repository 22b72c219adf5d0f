import Tensors

/// Cosines and sines of rotary position embedding, base^(−2i/headDim)·position.
public struct RotaryTable {
  fileprivate let frequencies: [Double]

  /// Creates a table for heads of the given width, from per-pair frequencies.
  public init(frequencies: [Double]) { self.frequencies = frequencies }

  /// Creates the standard table, θᵢ = base^(−2i/headDim).
  ///
  /// transformers computes the frequencies in 32-bit floats; so does this, to the same rounding.
  public init(base: Double, headDim: Int) {
    frequencies = (0..<headDim / 2).map { index in
      let power = Float(base).power(Float(2 * index) / Float(headDim))
      return Double(1 / power)
    }
  }

  /// The values at positions, `[positions.count, headDim/2]` each.
  public func callAsFunction(_ positions: [Int32]) -> (cosines: Tensor, sines: Tensor) {
    var cosines: [Float] = []
    var sines: [Float] = []
    cosines.reserveCapacity(positions.count * frequencies.count)
    sines.reserveCapacity(positions.count * frequencies.count)
    for position in positions {
      for frequency in frequencies {
        // The angle is a product of 32-bit floats in transformers; its cosine is then exact.
        let angle = Double(Float(position) * Float(frequency))
        cosines.append(Float(angle.cosine))
        sines.append(Float(angle.sine))
      }
    }
    let shape = [positions.count, frequencies.count]
    return (Tensor(shape: shape, scalars: cosines), Tensor(shape: shape, scalars: sines))
  }
}

extension RotaryTable {
  /// The table with every frequency changed by `transform`, as context extensions do.
  public func mapFrequencies(_ transform: (Double) -> Double) -> RotaryTable {
    RotaryTable(frequencies: frequencies.map(transform))
  }
}
