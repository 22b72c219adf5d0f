import PEFTCore
import PEFTSupport
import Tensors

extension InitialFactors {
  /// W = Q·R: B the first r columns of Q and A the first r rows of R.
  ///
  /// peft decomposes GPT-2's weights as they lie, `[in, out]`, which fails or is silently wrong; here
  /// the weight is `[out, in]` whatever the layer.
  static func olora(_ weight: any WeightMatrix, _ rank: Int) throws(PEFTError) -> InitialFactors {
    let (q, r) = try weight.dequantized().orthogonalTriangular()
    let rank = min(rank, q.columns)
    return InitialFactors(a: r.copyingRows(0..<rank), b: q.copyingColumns(0..<rank))
  }
}
