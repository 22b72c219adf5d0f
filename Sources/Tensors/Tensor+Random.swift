import BLASKernels

extension Tensor {
  /// Normal numbers with mean 0; equal keys give equal numbers on every machine.
  public static func normal(_ shape: [Int], deviation: Float, key: DropoutKey) -> Tensor {
    filled(shape) {
      Random.normal(seed: key.seed, stream: key.stream, standardDeviation: deviation, into: $0)
    }
  }

  /// Uniform numbers in `-bound ..< bound`.
  public static func uniform(_ shape: [Int], bound: Float, key: DropoutKey) -> Tensor {
    filled(shape) {
      Random.uniform(seed: key.seed, stream: key.stream, low: -bound, high: bound, into: $0)
    }
  }
}
