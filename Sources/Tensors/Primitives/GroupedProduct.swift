import BLASKernels

extension Tensor {
  /// Adds a product whose weight is cut into groups, each of which maps its own columns of `x` to
  /// its own columns of this tensor: what a grouped convolution of size 1 does.
  ///
  /// - Parameters:
  ///   - x: `[…, groups · k]`.
  ///   - weight: `[groups · m, k]`.
  ///   - starts: The first column of this tensor for each group; the groups lie one after the
  ///     other unless given.
  ///   - groups: Number of groups.
  ///   - scale: Factor of the product.
  public mutating func addProduct(
    _ x: Tensor, _ weight: Tensor, groups: Int, starts: [Int]? = nil, scale: Float = 1
  ) {
    let (n, k, m) = (x.rows, weight.columns, weight.shape[0] / groups)
    let (inputs, outputs) = (x.columns, columns)
    let starts = starts ?? (0..<groups).map { $0 * m }
    precondition(weight.shape == [groups * m, k] && inputs == groups * k && rows == n)
    precondition(starts.count == groups && starts.allSatisfy { $0 >= 0 && $0 + m <= outputs })
    if groups == 1, m == outputs { return addProduct(x, weight, scale: scale) }
    let (xValue, weightValue) = (x.detached, weight.detached)
    let nodes = [x.node, weight.node, node]
    self = detached
    withMutableSlice { y in
      for (group, start) in starts.enumerated() {
        BLAS.gemm(
          .no, .yes, m: n, n: m, k: k, alpha: scale, xValue.slice[(group * k)...], lda: inputs,
          weightValue.slice[(group * m * k)...], beta: 1, into: y[start...], ldc: outputs)
      }
    }
    let inputShape = x.shape
    self = recorded(fromNodes: nodes) { gradient, sink in
      if sink.needs(0) {
        sink.accumulate(into: 0, shape: inputShape) { dx, beta in
          for (group, start) in starts.enumerated() {
            BLAS.gemm(
              .no, .no, m: n, n: k, k: m, alpha: scale, gradient.slice[start...], lda: outputs,
              weightValue.slice[(group * m * k)...], beta: beta, into: dx[(group * k)...],
              ldc: inputs)
          }
        }
      }
      if sink.needs(1) {
        sink.accumulate(into: 1, shape: weightValue.shape) { dw, beta in
          for (group, start) in starts.enumerated() {
            BLAS.gemm(
              .yes, .no, m: m, n: k, k: n, alpha: scale, gradient.slice[start...], lda: outputs,
              xValue.slice[(group * k)...], ldb: inputs, beta: beta,
              into: dw[(group * m * k)...])
          }
        }
      }
      sink.add(gradient, to: 2)
    }
  }
}
