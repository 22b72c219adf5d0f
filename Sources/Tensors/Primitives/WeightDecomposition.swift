import BLASKernels

// The pieces of weight-decomposed adapters: a direction V = W + s·P·A with P·A of low rank, row norms
// n = ‖V‖, a magnitude m, and g = m/n, which scales the rows of V and so the columns of the output.

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

/// The factors g = m/n that scale the rows of a direction.
public struct ColumnScale: Sendable {
  /// m, `[columns]`; tracked when it is trained.
  public let magnitude: Tensor
  /// n, `[columns]`; tracked when training does not take it as a constant.
  public let norms: Tensor
  /// g without a graph, `[columns]`: m/n, and 0 where n is 0, as the direction is undefined there.
  public let factors: Tensor
  /// Whether no magnitude is zero, so that m can be divided by.
  public let isInvertible: Bool

  /// Divides magnitudes by norms.
  public init(magnitude: Tensor, norms: Tensor) {
    precondition(magnitude.count == norms.count, "\(magnitude.shape) for \(norms.shape)")
    self.magnitude = magnitude
    self.norms = norms
    var isInvertible = true
    factors = Tensor.filled([norms.count]) { output in
      magnitude.slice.withSpan { magnitude in
        norms.slice.withSpan { norms in
          output.withMutableSpan { output in
            for column in 0..<norms.count {
              let (m, n) = (magnitude[column], norms[column])
              output[column] = n > 0 ? m / n : 0
              // The quotient of a subnormal number would not be exact.
              if !(abs(m) >= Float.leastNormalMagnitude) || n <= 0 { isInvertible = false }
            }
          }
        }
      }
    }
    self.isInvertible = isInvertible
  }

  private init(_ other: ColumnScale, _ magnitude: Tensor, _ norms: Tensor) {
    self.magnitude = magnitude
    self.norms = norms
    factors = other.factors
    isInvertible = other.isInvertible
  }

  /// The same numbers, through which gradients flow to the given magnitude and norms.
  ///
  /// - Parameters:
  ///   - magnitude: m with a graph.
  ///   - norms: n with a graph; constant unless given.
  public func tracking(_ magnitude: Tensor, norms: Tensor? = nil) -> ColumnScale {
    ColumnScale(self, magnitude, norms ?? self.norms)
  }

  /// With dots = Σ dY∘V: dm = dots/n, dn = −g·dm.
  fileprivate func addGradients(
    dots: Tensor, dividedBy divisor: Tensor, magnitudeAt position: Int,
    in sink: inout GradientSink
  ) {
    var dm = dots
    let count = dm.count
    dm.withMutableSlice { output in
      divisor.slice.withSpan { divisor in
        output.withMutableSpan { output in
          for column in 0..<count {
            output[column] = divisor[column] == 0 ? 0 : output[column] / divisor[column]
          }
        }
      }
    }
    if sink.needs(position + 1) {
      sink.add(
        Tensor.filled([count]) { output in
          for column in 0..<count { output[column] = -factors.slice[column] * dm.slice[column] }
        }, to: position + 1)
    }
    sink.add(dm.reshaped(magnitude.shape), to: position)
  }
}

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
  if scale.isInvertible {
    output.withMutableSlice {
      ScaledLowRank.apply(
        rows: n, columns: rows, rank: rank, low: lowValue.slice, b: bValue.slice, scale: scaling,
        by: factors.slice, adding: biasValue?.slice, to: $0)
    }
    direction = nil
  } else {
    // dm needs V·x. It is (y − b)/g, but where g is zero that says nothing.
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

  /// Each row times its number, without a graph: `[n, …]` and `[n]`.
  public func scalingRows(by vector: Tensor) -> Tensor {
    precondition(vector.count == rows, "rows of \(shape) scaled by \(vector.shape)")
    let (rowCount, columnCount) = (rows, columns)
    return Tensor.filled(shape) {
      Rows.scaleRows(rows: rowCount, columns: columnCount, slice, by: vector.slice, into: $0)
    }
  }

  /// Each row less a vector: `[…, n]` − `[n]`, a layer's output without its bias.
  public func subtractingRow(_ vector: Tensor) -> Tensor {
    precondition(vector.count == columns)
    let (rowCount, columnCount) = (rows, columns)
    let negative = Tensor.filled([columnCount]) {
      VectorMath.scale(-1, vector.slice, into: $0)
    }
    let result = Tensor.filled(shape) {
      Rows.addBias(rows: rowCount, columns: columnCount, slice, negative.slice, into: $0)
    }
    return result.recorded(from: [self, vector]) { gradient, sink in
      if sink.needs(1) {
        var sums = Tensor.filled([columnCount]) {
          Rows.columnSums(rows: rowCount, columns: columnCount, gradient.slice, into: $0)
        }
        sums.withMutableSlice { VectorMath.scale(-1, $0.readOnly, into: $0) }
        sink.add(sums, to: 1)
      }
      sink.add(gradient, to: 0)
    }
  }
}

/// x·Wᵀ by a frozen weight where the product is known already; only its gradient is left to do.
///
/// - Parameters:
///   - x: `[…, columns]`.
///   - weight: W.
///   - product: The value.
public func linear(
  _ x: Tensor, _ weight: any WeightMatrix, product: consuming Tensor
) -> Tensor {
  let (n, inputShape) = (x.rows, x.shape)
  return product.recorded(from: [x]) { gradient, sink in
    sink.accumulate(into: 0, shape: inputShape) { dx, beta in
      weight.multiplyTransposed(gradient.slice, count: n, beta: beta, into: dx)
    }
  }
}

extension WeightMatrix {
  /// `x·Wᵀ` and `a·Wᵀ` in one pass over the weight, without graphs.
  ///
  /// - Parameters:
  ///   - x: `[…, columns]`.
  ///   - a: A few more rows, `[k, columns]`.
  /// - Returns: `[…, rows]` and `[k, rows]`.
  public func multiply(_ x: Tensor, and a: Tensor) -> (Tensor, Tensor) {
    precondition(x.columns == columns && a.columns == columns)
    let (count, extra) = (x.rows, a.rows)
    var operand = Tensor(uninitialized: [count + extra, columns])
    operand.withMutableSlice {
      $0[0..<count * columns].copy(from: x.slice)
      $0[(count * columns)...].copy(from: a.slice)
    }
    var product = Tensor(uninitialized: [count + extra, rows])
    product.withMutableSlice {
      multiply(operand.slice, count: count + extra, beta: 0, into: $0)
    }
    let second = Tensor.filled([extra, rows]) { $0.copy(from: product.slice[(count * rows)...]) }
    let first = Tensor(
      shape: x.shape.dropLast() + [rows], storage: product.storage, offset: 0, node: nil)
    return (first, second)
  }
}
