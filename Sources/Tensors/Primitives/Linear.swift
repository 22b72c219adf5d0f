import BLASKernels

/// A linear map by a frozen weight: `x·Wᵀ + b`, `[…, columns]` to `[…, rows]`.
///
/// Keeps nothing for the backward pass but the weight itself: dX = dY·W, db = Σ dY.
public func linear(_ x: Tensor, _ weight: any WeightMatrix, bias: Tensor? = nil) -> Tensor {
  precondition(
    x.columns == weight.columns, "input \(x.shape) for [\(weight.rows), \(weight.columns)]")
  let n = x.rows
  let output = Tensor.filled(x.shape.dropLast() + [weight.rows]) { y in
    if let bias { Rows.fill(rows: n, columns: weight.rows, with: bias.slice, into: y) }
    weight.multiply(x.slice, count: n, beta: bias == nil ? 0 : 1, into: y)
  }
  let inputShape = x.shape
  return output.recorded(from: [x] + (bias.map { [$0] } ?? [])) { gradient, sink in
    if sink.needs(0) {
      sink.accumulate(into: 0, shape: inputShape) { dx, beta in
        weight.multiplyTransposed(gradient.slice, count: n, beta: beta, into: dx)
      }
    }
    if sink.inputs.count > 1 { addBiasGradient(gradient, rows: n, to: 1, in: &sink) }
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

/// A linear map by a trainable weight: `x·Wᵀ + b`, `[…, columns]` to `[…, rows]`.
public func linear(_ x: Tensor, _ weight: Tensor, bias: Tensor? = nil) -> Tensor {
  precondition(weight.shape.count == 2 && x.columns == weight.columns)
  let (n, rows) = (x.rows, weight.shape[0])
  var output = Tensor(uninitialized: x.shape.dropLast() + [rows])
  if let bias {
    output.withMutableSlice { Rows.fill(rows: n, columns: rows, with: bias.slice, into: $0) }
  }
  output.addProduct(x, weight, beta: bias == nil ? 0 : 1)
  guard let bias, bias.isTracked else { return output }
  return output.recorded(from: [output, bias]) { gradient, sink in
    addBiasGradient(gradient, rows: n, to: 1, in: &sink)
    sink.add(gradient, to: 0)
  }
}

extension Tensor {
  /// Adds `scale·x·Wᵀ` to this tensor, in place where its memory is not shared.
  ///
  /// The low-rank path of an adapter so costs no pass over the output of its own.
  ///
  /// - Parameters:
  ///   - x: `[…, columns]`.
  ///   - weight: `[rows, columns]`; this tensor is `[…, rows]`.
  ///   - scale: Factor of the product.
  public mutating func addProduct(_ x: Tensor, _ weight: Tensor, scale: Float = 1) {
    precondition(weight.shape.count == 2 && x.columns == weight.columns)
    precondition(columns == weight.shape[0] && rows == x.rows)
    addProduct(x, weight, scale: scale, beta: 1)
  }

  fileprivate mutating func addProduct(
    _ x: Tensor, _ weight: Tensor, scale: Float = 1, beta: Float
  ) {
    let (n, rows, columns) = (x.rows, weight.shape[0], weight.columns)
    let (xValue, weightValue) = (x.detached, weight.detached)
    // The graph of the sum stays while its values are overwritten.
    let nodes = [x.node, weight.node, node]
    self = detached
    withMutableSlice {
      BLAS.gemm(
        .no, .yes, m: n, n: rows, k: columns, alpha: scale, xValue.slice, weightValue.slice,
        beta: beta, into: $0)
    }
    let inputShape = x.shape
    self = recorded(fromNodes: nodes) { gradient, sink in
      if sink.needs(0) {
        sink.accumulate(into: 0, shape: inputShape) { dx, beta in
          BLAS.gemm(
            .no, .no, m: n, n: columns, k: rows, alpha: scale, gradient.slice, weightValue.slice,
            beta: beta, into: dx)
        }
      }
      if sink.needs(1) {
        sink.accumulate(into: 1, shape: [rows, columns]) { dw, beta in
          BLAS.gemm(
            .yes, .no, m: rows, n: columns, k: n, alpha: scale, gradient.slice, xValue.slice,
            beta: beta, into: dw)
        }
      }
      sink.add(gradient, to: 2)
    }
  }
}

extension Tensor {
  /// Adds `scale` times a vector to every row, in place where the memory is not shared.
  ///
  /// - Parameters:
  ///   - vector: `[columns]`.
  ///   - scale: Its factor.
  public mutating func addToRows(_ vector: Tensor, scale: Float = 1) {
    precondition(vector.shape == [columns], "\(vector.shape) added to the rows of \(shape)")
    let nodes = [node, vector.node]
    let (rowCount, columnCount) = (rows, columns)
    let addend = vector.detached.scaled(by: scale)
    self = detached
    withMutableSlice {
      Rows.addBias(
        rows: rowCount, columns: columnCount, $0.readOnly, addend.slice, into: $0)
    }
    self = recorded(fromNodes: nodes) { gradient, sink in
      if sink.needs(1) {
        var sums = Tensor.filled([columnCount]) {
          Rows.columnSums(rows: rowCount, columns: columnCount, gradient.slice, into: $0)
        }
        sums.withMutableSlice { VectorMath.scale(scale, $0.readOnly, into: $0) }
        sink.add(sums, to: 1)
      }
      sink.add(gradient, to: 0)
    }
  }
}

/// Adds the gradient of a bias that was added to every row.
func addBiasGradient(
  _ gradient: Tensor, rows: Int, to position: Int, in sink: inout GradientSink
) {
  guard sink.needs(position) else { return }
  let columns = gradient.columns
  sink.add(
    Tensor.filled([columns]) {
      Rows.columnSums(rows: rows, columns: columns, gradient.slice, into: $0)
    }, to: position)
}
