import BLASKernels
import NN
import Tensors

extension AttentionShape {
  /// The shape of attention within the sequences of a layout, with scores scaled by 1/√headDim.
  init(
    _ sequences: SequenceLayout, keyCounts: [Int]? = nil, heads: Int, keyValueHeads: Int,
    headDim: Int, causal: Bool, dropoutProbability: Double = 0, dropoutKey: DropoutKey? = nil
  ) {
    var keyOffsets = sequences.offsets
    if let keyCounts {
      keyOffsets = [0]
      for count in keyCounts { keyOffsets.append(keyOffsets.last! + Int32(count)) }
    }
    self.init(
      heads: heads, kvHeads: keyValueHeads, headDim: headDim, queryOffsets: sequences.offsets,
      keyOffsets: keyOffsets, causal: causal, scale: 1 / Float(headDim).squareRoot(),
      keyMask: sequences.keyMask,
      dropout: dropoutKey.map {
        AttentionDropout(
          probability: Float(dropoutProbability), seed: $0.seed, stream: $0.stream)
      })
  }
}
