import PEFTCore
import PEFTSupport
import Tensors

extension InitialFactors {
  /// W ≈ U·S·Vᵀ: A = √(S/s)·Vᵀ and B = U·√(S/s) of the r leading singular values, so that s·B·A is
  /// the best approximation of W of rank r.
  ///
  /// - Parameters:
  ///   - weight: W, `[out, in]`.
  ///   - rank: r; a smaller matrix gives fewer.
  ///   - scaling: s.
  ///   - iterations: Of the randomised decomposition; `nil` decomposes exactly.
  ///   - seed: Of the randomised decomposition. It does not depend on the run, so that a saved adapter
  ///     finds the same values again.
  static func pissa(
    _ weight: any WeightMatrix, _ rank: Int, _ scaling: Double, iterations: Int? = nil,
    seed: UInt64 = 0
  ) throws(PEFTError) -> InitialFactors {
    let values = weight.dequantized()
    let parts: Decomposition
    if let iterations {
      // peft's svd_lowrank takes no extra directions; here they cost little.
      parts = try values.decomposed(
        rank: rank, oversampling: 10, iterations: iterations, seed: seed)
    } else {
      parts = try values.decomposed(rank: rank)
    }
    return try split(parts.u, parts.s, parts.vt, scaling)
  }

  /// A = √(S/s)·Vᵀ, B = U·√(S/s).
  static func split(
    _ u: Tensor, _ s: [Float], _ vt: Tensor, _ scaling: Double
  ) throws(PEFTError) -> InitialFactors {
    guard scaling > 0 else {
      throw PEFTError(
        .invalidConfiguration, "the scaling is \(scaling); the singular values are divided by it",
        remedy: "Use a positive 'lora_alpha'.")
    }
    let roots = Tensor(
      shape: [s.count], scalars: s.map { ($0 / Float(scaling)).squareRoot() })
    return InitialFactors(a: vt.scalingRows(by: roots), b: u.scalingColumns(by: roots))
  }
}
