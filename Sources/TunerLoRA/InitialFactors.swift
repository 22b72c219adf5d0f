import NN
import PEFTCore
import Tensors

/// The values that A, B and the bias of B begin with, in the shapes of the host's kind.
struct InitialFactors {
  /// `[rank, inputFeatures, kernel…]`.
  var a: Tensor
  /// `[outputFeatures, rank/groups, 1…]`.
  var b: Tensor
  /// `[outputFeatures]`.
  var bias: Tensor?

  /// Draws them as PyTorch's layers and peft do.
  init(_ site: AdapterSite, _ config: LoRAConfig, rank: Int) {
    let host = site.host
    let aShape = [rank, host.inputFeatures] + host.kernelShape
    let bShape =
      [host.outputFeatures, rank / host.groups] + host.kernelShape.map { _ in 1 }
    let isRandom = config.initialization == .random
    if site.isLoading {
      // A file's values take their place.
      a = .zeros(aShape)
      b = .zeros(bShape)
      bias = config.usesLoRABias ? .zeros([host.outputFeatures]) : nil
      return
    }
    if host is Embedding {
      a =
        isRandom
        ? .normal(aShape, deviation: 1, key: Self.key(site, "lora_embedding_A")) : .zeros(aShape)
      b = .normal(bShape, deviation: 1, key: Self.key(site, "lora_embedding_B"))
      return
    }
    // PyTorch's own initialisation, uniform in ±1/√fan_in.
    func bound(_ shape: [Int]) -> Float { 1 / Float(shape.dropFirst().reduce(1, *)).squareRoot() }
    switch config.initialization {
    case .standard, .random:
      a = .uniform(aShape, bound: bound(aShape), key: Self.key(site, "lora_A"))
    case .gaussian:
      a = .normal(aShape, deviation: 1 / Float(rank), key: Self.key(site, "lora_A"))
    }
    b =
      isRandom
      ? .uniform(bShape, bound: bound(bShape), key: Self.key(site, "lora_B")) : .zeros(bShape)
    if config.usesLoRABias {
      let shape = [host.outputFeatures]
      bias =
        isRandom
        ? .uniform(shape, bound: bound(bShape), key: Self.key(site, "lora_B.bias"))
        : .zeros(shape)
    }
  }

  /// The key of the random numbers of one factor.
  static func key(_ site: AdapterSite, _ factor: String) -> DropoutKey {
    DropoutKey(seed: site.seed, stream: siteID("\(site.path).\(factor)"))
  }
}
