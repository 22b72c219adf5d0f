import BLASKernels
import NN
import Tensors

/// Arithmetic on the tensors of several adapters, element by element.
///
/// TIES: Yadav et al., arXiv 2306.01708; DARE: Yu et al., arXiv 2311.03099.
enum TaskArithmetic {
  /// Σ weightᵢ · tensorᵢ.
  static func sum(_ tensors: [Tensor], weights: [Double]) -> Tensor {
    var result = Tensor.zeros(tensors[0].shape)
    result.withMutableSlice { sum in
      for (tensor, weight) in zip(tensors, weights) {
        VectorMath.axpy(Float(weight), tensor.slice, into: sum)
      }
    }
    return result
  }

  /// Keeps the `Int(density · count)` elements of largest magnitude.
  static func prunedByMagnitude(_ tensor: Tensor, density: Double) -> Tensor {
    if density >= 1 { return tensor }
    let keep = Int(density * Double(tensor.count))
    let values = tensor.scalars
    var (limit, ties) = smallestKept(values, keep)
    var result = [Float](repeating: 0, count: values.count)
    for (place, value) in values.enumerated() {
      let size = value.magnitude.bitPattern
      if size < limit { continue }
      if size == limit {
        if ties == 0 { continue }
        ties -= 1
      }
      result[place] = value
    }
    return Tensor(shape: tensor.shape, scalars: result)
  }

  /// The bits of the smallest magnitude among the `keep` largest, and how many of that size are
  /// among them. Bits of magnitudes are ordered as the magnitudes are.
  private static func smallestKept(_ values: [Float], _ keep: Int) -> (limit: UInt32, ties: Int) {
    if keep == 0 { return (.max, 0) }
    // The upper 16 of 31 bits first, then the rest of those in the bucket where the limit lies.
    var buckets = [Int](repeating: 0, count: 1 << 16)
    for value in values { buckets[Int(value.magnitude.bitPattern >> 15)] += 1 }
    var rest = keep
    var high = buckets.count - 1
    while buckets[high] < rest {
      rest -= buckets[high]
      high -= 1
    }
    buckets = [Int](repeating: 0, count: 1 << 15)
    for value in values where Int(value.magnitude.bitPattern >> 15) == high {
      buckets[Int(value.magnitude.bitPattern & 0x7fff)] += 1
    }
    var low = buckets.count - 1
    while buckets[low] < rest {
      rest -= buckets[low]
      low -= 1
    }
    return (UInt32(high) << 15 | UInt32(low), rest)
  }

  /// Keeps the elements where `mask` is 1, divided by the density.
  static func pruned(_ tensor: Tensor, mask: Tensor, density: Double) -> Tensor {
    var result = tensor.detached
    result.withMutableSlice {
      VectorMath.multiply(tensor.slice, mask.slice, into: $0)
      VectorMath.scale(1 / Float(density), $0.readOnly, into: $0)
    }
    return result
  }

  /// Ones with probability `density`, else zeros; equal keys give equal masks.
  static func mask(_ shape: [Int], density: Double, seed: UInt64, stream: UInt64) -> Tensor {
    let mask = Tensor.filled(shape) { Random.uniform(seed: seed, stream: stream, into: $0) }
    return Tensor(shape: shape, scalars: mask.scalars.map { $0 < Float(density) ? 1 : 0 })
  }

  /// The mean, over those tensors whose element has the elected sign, of weightᵢ · tensorᵢ.
  ///
  /// Weights do not vote, and neither do zeros; a draw elects plus.
  static func elected(
    _ tensors: [Tensor], weights: [Double], by method: Combination.MajoritySign
  ) -> Tensor {
    let values = tensors.map(\.scalars)
    let weights = weights.map { Float($0) }
    var result = [Float](repeating: 0, count: tensors[0].count)
    for place in result.indices {
      var votes: Float = 0
      for list in values {
        let value = list[place]
        switch method {
        case .total: votes += value
        case .frequency: votes += value > 0 ? 1 : value < 0 ? -1 : 0
        }
      }
      var sum: Float = 0
      var count: Float = 0
      for (list, weight) in zip(values, weights) {
        let value = list[place]
        guard votes >= 0 ? value > 0 : value < 0 else { continue }
        sum += value * weight
        count += 1
      }
      result[place] = sum / max(count, 1)
    }
    return Tensor(shape: tensors[0].shape, scalars: result)
  }
}
