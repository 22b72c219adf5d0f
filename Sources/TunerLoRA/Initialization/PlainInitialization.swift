import PEFTCore
import PEFTSupport
import Tensors

extension InitialFactors {
  /// `true`, `"gaussian"` and `false`: as PyTorch begins a linear layer, uniform in ±1/√fan_in, or
  /// normal; B zero but for `false`.
  static func plain(
    _ site: AdapterSite, _ initialization: LoRAConfig.Initialization, _ rank: Int
  ) -> InitialFactors {
    let (inputs, outputs) = (site.host.inputFeatures, site.host.outputFeatures)
    let aKey = key(site, "lora_A")
    let a: Tensor =
      initialization == .gaussian
      ? .normal([rank, inputs], deviation: 1 / Float(rank), key: aKey)
      : .uniform([rank, inputs], bound: 1 / Float(inputs).squareRoot(), key: aKey)
    let b: Tensor =
      initialization == .random
      ? .uniform(
        [outputs, rank], bound: 1 / Float(rank).squareRoot(), key: key(site, "lora_B"))
      : .zeros([outputs, rank])
    return InitialFactors(a: a, b: b)
  }

  /// `"orthogonal"`: a random orthogonal matrix Q `[r, r]`, its odd rows for A and its even ones for
  /// B, each mixed at random: A = (X·Q_odd)… so that B·A is zero though neither factor is.
  ///
  /// As https://datta0.github.io/posts/rethink-lora-init/ has it, with peft's tenth.
  static func orthogonal(_ site: AdapterSite, _ rank: Int) throws(PEFTError) -> InitialFactors {
    guard rank.isMultiple(of: 2) else {
      throw PEFTError(
        .invalidConfiguration,
        "Orthogonal initialization requires the LoRA rank to be even, got \(rank) instead.",
        remedy: "Change 'r' or 'rank_pattern'.")
    }
    let half = rank / 2
    let square = Tensor.normal([rank, rank], deviation: 1, key: key(site, "lora_Q"))
    let q = try square.orthogonalTriangular().q
    let odd = q.copyingRows(stride(from: 0, to: rank, by: 2))
    let even = q.copyingRows(stride(from: 1, to: rank, by: 2))
    let x = Tensor.normal(
      [half, site.host.inputFeatures], deviation: 0.1, key: key(site, "lora_A"))
    let y = Tensor.normal(
      [site.host.outputFeatures, half], deviation: 0.1, key: key(site, "lora_B"))
    return InitialFactors(
      a: odd.transposed().multiplied(by: x), b: y.multiplied(by: even))
  }
}
