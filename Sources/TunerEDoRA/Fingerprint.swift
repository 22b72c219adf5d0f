import Tensors

/// What a compact adapter knows of the weight that it was made for, and of the A and B that were made
/// from it: a hash, and products of A and B with fixed vectors.
enum Fingerprint {
  /// Floats of the hash: four times 16 bits, which a float holds exactly.
  static let length = 4

  /// The hash of a weight, then A·x and Bᵀ·y for fixed x and y.
  static func mark(_ weight: any WeightMatrix, a: Tensor, b: Tensor) -> Tensor {
    Tensor(
      shape: [length + 2 * a.rows],
      scalars: hash(weight) + probes(a) + probes(b.transposed()))
  }

  /// Whether a mark is of the weight.
  static func isOf(_ weight: any WeightMatrix, _ mark: Tensor) -> Bool {
    mark.scalars.prefix(length).elementsEqual(hash(weight))
  }

  /// Whether A and B are the same up to rounding. Other signs, or other vectors of nearly equal
  /// singular values, are not.
  static func agrees(_ mark: Tensor, _ other: Tensor) -> Bool {
    let (one, two) = (mark.scalars.dropFirst(length), other.scalars.dropFirst(length))
    let half = one.count / 2
    for part in [0..<half, half..<one.count] {
      let pairs = Array(zip(one, two))[part]
      let size = pairs.map { max(abs($0.0), abs($0.1)) }.max() ?? 0
      if pairs.contains(where: { !(abs($0.0 - $0.1) <= 1e-3 * size) }) { return false }
    }
    return true
  }

  /// 64 bits of FNV-1a over the weight's values, word by word.
  private static func hash(_ weight: any WeightMatrix) -> [Float] {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for range in weight.rowBlocks {
      weight.dequantized(rows: range).slice.withSpan { values in
        for index in 0..<values.count {
          hash = (hash ^ UInt64(values[index].bitPattern)) &* 0x100_0000_01b3
        }
      }
    }
    return (0..<length).map { Float((hash >> (16 * UInt64($0))) & 0xffff) }
  }

  private static func probes(_ matrix: Tensor) -> [Float] {
    let vector = Tensor.uniform(
      [1, matrix.columns], bound: 1, key: DropoutKey(seed: 0, stream: 0))
    return linear(vector, matrix).scalars
  }
}
