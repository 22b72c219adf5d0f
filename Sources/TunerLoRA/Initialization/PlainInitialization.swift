import NN
import PEFTCore
import PEFTSupport
import Tensors

extension InitialFactors {
  /// Nothing but zeros.
  static func zeros(_ site: AdapterSite, _ rank: Int, hasBias: Bool) -> InitialFactors {
    let (a, b) = shapes(site.host, rank)
    var factors = InitialFactors(a: .zeros(a), b: .zeros(b))
    if hasBias { factors.bias = .zeros([site.host.outputFeatures]) }
    return factors
  }

  /// The shapes of A and B.
  private static func shapes(_ host: any AdapterHost, _ rank: Int) -> (a: [Int], b: [Int]) {
    (
      [rank, host.inputFeatures] + host.kernelShape,
      [host.outputFeatures, rank / host.groups] + host.kernelShape.map { _ in 1 }
    )
  }

  /// `true`, `"gaussian"` and `false`, as PyTorch's layers and peft begin: uniform in ±1/√fan_in or
  /// normal, B zero but for `false`; an embedding has A zero and B normal. In the shapes of the host's
  /// kind.
  static func plain(
    _ site: AdapterSite, _ initialization: LoRAConfig.Initialization, _ rank: Int, hasBias: Bool
  ) -> InitialFactors {
    let host = site.host
    let (aShape, bShape) = shapes(host, rank)
    let isRandom = initialization == .random
    if host is Embedding {
      return InitialFactors(
        a: isRandom
          ? .normal(aShape, deviation: 1, key: site.randomKey("lora_embedding_A")) : .zeros(aShape),
        b: .normal(bShape, deviation: 1, key: site.randomKey("lora_embedding_B")))
    }
    var factors = drawn(site, initialization, rank, a: aShape, b: bShape)
    if hasBias {
      let shape = [host.outputFeatures]
      factors.bias =
        isRandom
        ? .uniform(shape, bound: bound(bShape), key: site.randomKey(LoRAKey.bias)) : .zeros(shape)
    }
    return factors
  }

  /// Factors of any shapes as they begin but for embeddings: A uniform or normal, B zero but for `false`.
  static func drawn(
    _ site: AdapterSite, _ initialization: LoRAConfig.Initialization, _ rank: Int, a: [Int],
    b: [Int]
  ) -> InitialFactors {
    let key = site.randomKey("lora_A")
    return InitialFactors(
      a: initialization == .gaussian
        ? .normal(a, deviation: 1 / Float(rank), key: key) : .uniform(a, bound: bound(a), key: key),
      b: initialization == .random
        ? .uniform(b, bound: bound(b), key: site.randomKey("lora_B")) : .zeros(b))
  }

  /// 1/√fan_in.
  private static func bound(_ shape: [Int]) -> Float {
    1 / Float(shape.dropFirst().reduce(1, *)).squareRoot()
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
    let square = Tensor.normal([rank, rank], deviation: 1, key: site.randomKey("lora_Q"))
    let q = try square.orthogonalTriangular().q
    let odd = q.copyingRows(stride(from: 0, to: rank, by: 2))
    let even = q.copyingRows(stride(from: 1, to: rank, by: 2))
    let x = Tensor.normal(
      [half, site.host.inputFeatures], deviation: 0.1, key: site.randomKey("lora_A"))
    let y = Tensor.normal(
      [site.host.outputFeatures, half], deviation: 0.1, key: site.randomKey("lora_B"))
    return InitialFactors(
      a: odd.transposed().multiplied(by: x), b: y.multiplied(by: even))
  }
}
