import CKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Fused parameter updates.
public enum Optimizers {
  /// One step of AdamW, in the order of `torch.optim.AdamW`.
  ///
  /// p ← p (1 − lr·wd); m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²;
  /// p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε), with g multiplied by `gradientScale` first.
  ///
  /// - Parameters:
  ///   - parameter: p, updated.
  ///   - gradient: g.
  ///   - firstMoment: m, updated; zeros at first.
  ///   - secondMoment: v, updated; zeros at first.
  ///   - step: t, 1 at the first update.
  ///   - learningRate: lr.
  ///   - beta1: β₁.
  ///   - beta2: β₂.
  ///   - epsilon: ε.
  ///   - weightDecay: wd.
  ///   - gradientScale: A factor for clipping or unscaling.
  public static func adamW(
    parameter: MutableSlice<Float>, gradient: Slice<Float>, firstMoment: MutableSlice<Float>,
    secondMoment: MutableSlice<Float>, step: Int, learningRate: Double, beta1: Double = 0.9,
    beta2: Double = 0.999, epsilon: Double = 1e-8, weightDecay: Double = 0,
    gradientScale: Float = 1
  ) {
    let count = parameter.count
    precondition(
      gradient.count == count && firstMoment.count == count && secondMoment.count == count,
      "lengths differ")
    let stepSize = Float(learningRate / (1 - pow(beta1, Double(step))))
    let root = Float(1 / (1 - pow(beta2, Double(step))).squareRoot())
    let decay = Float(1 - learningRate * weightDecay)
    Parallel.split(count, grain: Parallel.heavyGrain, multiple: 16) { r in
      let i = r.lowerBound
      pk_adamw(
        parameter.pointer + i, gradient.pointer + i, firstMoment.pointer + i,
        secondMoment.pointer + i, r.count, decay, Float(beta1), Float(1 - beta1), Float(beta2),
        Float(1 - beta2), stepSize, root, Float(epsilon), gradientScale)
    }
  }
}
