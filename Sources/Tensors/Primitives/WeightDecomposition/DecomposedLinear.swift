import BLASKernels

/// y = b + g∘(x·Wᵀ + s·low·Bᵀ): a linear layer with one weight-decomposed adapter, in one product with
/// the frozen weight.
///
/// Backward: with D = dY∘g, dX = D·W, dB = s·Dᵀ·low, dlow = s·D·B, and dm = Σ dY∘(y − b)/m.
///
/// - Parameters:
///   - x: `[…, columns]`.
///   - product: x·Wᵀ without a graph, `[…, rows]`; overwritten by the result where nobody shares it.
///   - weight: W.
///   - bias: b, `[rows]`.
///   - low: x·Aᵀ, or what stands for it, `[…, rank]`.
///   - b: B, `[rows, rank]`.
///   - scaling: s.
///   - scale: g.
public func decomposedLinear(
  _ x: Tensor, product: consuming Tensor, weight: any WeightMatrix, bias: Tensor?, low: Tensor,
  b: Tensor, scaling: Float, scale: ColumnScale
) -> Tensor {
  let (n, rows, rank, inputShape) = (x.rows, weight.rows, low.columns, x.shape)
  let (lowValue, bValue, biasValue, factors) = (
    low.detached, b.detached, bias?.detached, scale.factors
  )
  var output = product.withoutGraph()
  let direction: Tensor?
  if scale.isInvertible(after: biasValue) {
    output.withMutableSlice {
      ScaledLowRank.apply(
        rows: n, columns: rows, rank: rank, low: lowValue.slice, b: bValue.slice, scale: scaling,
        by: factors.slice, adding: biasValue?.slice, to: $0)
    }
    direction = nil
  } else {
    // dm needs V·x. It is (y − b)/g, but where g is zero, or far smaller than b, that says nothing.
    output.withMutableSlice {
      BLAS.gemm(
        .no, .yes, m: n, n: rows, k: rank, alpha: scaling, lowValue.slice, bValue.slice, beta: 1,
        into: $0)
    }
    direction = output
    output.withMutableSlice {
      Rows.scaleColumns(
        rows: n, columns: rows, of: $0, by: factors.slice, adding: biasValue?.slice)
    }
  }
  let result = output.detached
  return output.recorded(
    from: [x, low, b, scale.magnitude, scale.norms] + (bias.map { [$0] } ?? [])
  ) { gradient, sink in
    if sink.inputs.count > 5, sink.needs(5) {
      sink.add(
        Tensor.filled([rows]) {
          Rows.columnSums(rows: n, columns: rows, gradient.slice, into: $0)
        }, to: 5)
    }
    if sink.needs(3) || sink.needs(4) {
      let v = direction ?? result
      let shift = direction == nil ? biasValue?.slice : nil
      var dots = Tensor(uninitialized: [rows])
      if sink.needs(1) {
        sink.accumulate(into: 1, shape: lowValue.shape) { dlow, beta in
          dots.withMutableSlice { dots in
            gradient.withMutableSlice {
              ScaledLowRank.gradients(
                rows: n, columns: rows, rank: rank, $0, v.slice, bias: shift, by: factors.slice,
                b: bValue.slice, scale: scaling, dots: dots, beta: beta, into: dlow)
            }
          }
        }
      } else {
        dots.withMutableSlice { dots in
          gradient.withMutableSlice {
            Rows.scaledColumnDots(
              rows: n, columns: rows, $0, v.slice, bias: shift, by: factors.slice, into: dots)
          }
        }
      }
      scale.addGradients(
        dots: dots, dividedBy: direction == nil ? scale.magnitude : scale.norms, magnitudeAt: 3,
        in: &sink)
    } else {
      gradient.withMutableSlice {
        Rows.scaleColumns(rows: n, columns: rows, of: $0, by: factors.slice, adding: nil)
      }
      if sink.needs(1) {
        sink.accumulate(into: 1, shape: lowValue.shape) { destination, beta in
          BLAS.gemm(
            .no, .no, m: n, n: rank, k: rows, alpha: scaling, gradient.slice, bValue.slice,
            beta: beta, into: destination)
        }
      }
    }
    if sink.needs(2) {
      sink.accumulate(into: 2, shape: [rows, rank]) { destination, beta in
        BLAS.gemm(
          .yes, .no, m: rows, n: rank, k: n, alpha: scaling, gradient.slice, lowValue.slice,
          beta: beta, into: destination)
      }
    }
    if sink.needs(0) {
      sink.accumulate(into: 0, shape: inputShape) { dx, beta in
        weight.multiplyTransposed(gradient.slice, count: n, beta: beta, into: dx)
      }
    }
  }
}

extension Tensor {
  /// Adds g∘v − z: the change that a weight-decomposed adapter makes to a layer's output.
  ///
  /// - Parameters:
  ///   - v: The output of the direction, `[…, columns]`.
  ///   - scale: g.
  ///   - z: The output of the untouched weight, `[…, columns]`.
  public mutating func addRescaled(_ v: Tensor, by scale: ColumnScale, minus z: Tensor) {
    precondition(v.count == count && z.count == count && columns == scale.factors.count)
    let (rowCount, columnCount) = (rows, columns)
    let (vValue, zValue) = (v.detached, z.detached)
    let factors = scale.factors
    let nodes = [node, v.node, z.node, scale.magnitude.node, scale.norms.node]
    var scaled = Tensor.filled(shape) {
      Rows.scaleColumns(
        rows: rowCount, columns: columnCount, vValue.slice, by: factors.slice, into: $0)
    }
    scaled.withMutableSlice { VectorMath.axpy(-1, zValue.slice, into: $0) }
    self = detached
    withMutableSlice { VectorMath.axpy(1, scaled.slice, into: $0) }
    self = recorded(fromNodes: nodes) { gradient, sink in
      if sink.needs(2) {
        sink.add(
          Tensor.filled(zValue.shape) { VectorMath.scale(-1, gradient.slice, into: $0) }, to: 2)
      }
      if sink.needs(1) {
        sink.add(
          Tensor.filled(vValue.shape) {
            Rows.scaleColumns(
              rows: rowCount, columns: columnCount, gradient.slice, by: factors.slice, into: $0)
          }, to: 1)
      }
      if sink.needs(3) || sink.needs(4) {
        let dots = Tensor.filled([columnCount]) {
          Rows.columnDots(
            rows: rowCount, columns: columnCount, gradient.slice, vValue.slice, into: $0)
        }
        scale.addGradients(dots: dots, dividedBy: scale.norms, magnitudeAt: 3, in: &sink)
      }
      sink.add(gradient, to: 0)
    }
  }
}
