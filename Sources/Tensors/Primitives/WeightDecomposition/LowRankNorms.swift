import BLASKernels

/// The products that row norms of W + s·P·A are made of, apart from P.
///
/// ‖W + s·P·A‖² = ‖W‖² + 2s·rowsum((W·Aᵀ)∘P) + s²·rowsum((P·AAᵀ)∘P): with W·Aᵀ at hand, no pass over
/// W is needed, and no temporary of its size.
public struct LowRankNorms: Sendable {
  /// ‖W‖² of each row, `[rows]`.
  public let squared: Tensor
  /// W·Aᵀ, `[rows, rank]`.
  public let cross: Tensor
  /// A·Aᵀ, `[rank, rank]`.
  public let gram: Tensor

  /// Creates the products.
  ///
  /// - Parameters:
  ///   - squared: ‖W‖² of each row.
  ///   - crossTransposed: A·Wᵀ, `[rank, rows]`.
  ///   - a: A, `[rank, columns]`.
  public init(squared: Tensor, crossTransposed: Tensor, a: Tensor) {
    precondition(crossTransposed.shape == [a.rows, squared.count])
    self.squared = squared.detached
    cross = crossTransposed.transposed()
    let rank = a.rows
    gram = Tensor.filled([rank, rank]) {
      BLAS.gemm(.no, .yes, m: rank, n: rank, k: a.columns, a.slice, a.slice, into: $0)
    }
  }

  /// n = ‖W + s·P·A‖ of each row, `[rows]`, without a graph; 0 where rounding makes n² negative.
  ///
  /// - Parameters:
  ///   - outer: P, `[rows, rank]`.
  ///   - scaling: s.
  public func norms(outer: Tensor, scaling: Float) -> Tensor {
    // cross·2s + P·gram·s², whose products with P's rows are what is added to ‖W‖².
    let slope = halfSlope(outer: outer, scaling: scaling)
    let (rows, rank) = (outer.rows, outer.columns)
    precondition(rows == squared.count)
    return Tensor.filled([rows]) { output in
      Rows.rowDots(rows: rows, columns: rank, slope.slice, outer.slice, into: output)
      squared.slice.withSpan { squared in
        output.withMutableSpan { output in
          for row in 0..<rows {
            output[row] = Float(max(Double(squared[row]) + Double(output[row]), 0).squareRoot())
          }
        }
      }
    }
  }

  /// 2s·cross + s²·P·gram, `[rows, rank]`.
  private func halfSlope(outer: Tensor, scaling s: Float, gramFactor: Float = 1) -> Tensor {
    let (rows, rank) = (outer.rows, outer.columns)
    var result = cross
    result.withMutableSlice {
      BLAS.gemm(
        .no, .no, m: rows, n: rank, k: rank, alpha: gramFactor * s * s, outer.slice, gram.slice,
        beta: 2 * s, into: $0)
    }
    return result
  }

  /// The norms with their gradients with respect to P and A, for training that does not take them
  /// as constants.
  ///
  /// With q = dn/(2n): dP = q∘(2s·cross + 2s²·P·gram), dA = 2s·(q∘P)ᵀ·W + 2s²·(Pᵀ(q∘P))·A.
  ///
  /// - Parameters:
  ///   - outer: P, `[rows, rank]`.
  ///   - a: A, `[rank, columns]`.
  ///   - scaling: s.
  ///   - product: Adds X·W for X `[rank, rows]` to `[rank, columns]`, with the factor of what is there.
  public func trackedNorms(
    outer: Tensor, a: Tensor, scaling s: Float,
    product: @escaping @Sendable (Slice<Float>, _ beta: Float, MutableSlice<Float>) -> Void
  ) -> Tensor {
    let values = norms(outer: outer.detached, scaling: s)
    let (outerValue, aValue) = (outer.detached, a.detached)
    return values.recorded(from: [outer, a]) { gradient, sink in
      let (rows, rank, columns) = (outerValue.rows, outerValue.columns, aValue.columns)
      let q = Tensor.filled([rows]) { output in
        for row in 0..<rows {
          let norm = values.slice[row]
          output[row] = norm > 0 ? gradient.slice[row] / (2 * norm) : 0
        }
      }
      if sink.needs(0) {
        let slope = halfSlope(outer: outerValue, scaling: s, gramFactor: 2)
        sink.add(
          Tensor.filled([rows, rank]) {
            Rows.scaleRows(rows: rows, columns: rank, slope.slice, by: q.slice, into: $0)
          }, to: 0)
      }
      guard sink.needs(1) else { return }
      var weighted = outerValue
      weighted.withMutableSlice {
        Rows.scaleRows(rows: rows, columns: rank, $0.readOnly, by: q.slice, into: $0)
      }
      let inner = Tensor.filled([rank, rank]) {
        BLAS.gemm(
          .yes, .no, m: rank, n: rank, k: rows, alpha: 2 * s * s, outerValue.slice, weighted.slice,
          into: $0)
      }
      let seed = weighted.transposed().scaled(by: 2 * s)
      sink.accumulate(into: 1, shape: [rank, columns]) { destination, beta in
        product(seed.slice, beta, destination)
        BLAS.gemm(
          .no, .no, m: rank, n: columns, k: rank, inner.slice, aValue.slice, beta: 1,
          into: destination)
      }
    }
  }
}
