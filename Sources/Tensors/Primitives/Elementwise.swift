import BLASKernels

extension Tensor {
  /// The elementwise sum of two tensors of one shape, as in a residual connection.
  public static func + (a: Tensor, b: Tensor) -> Tensor {
    precondition(a.shape == b.shape, "sum of \(a.shape) and \(b.shape)")
    let sum = filled(a.shape) { VectorMath.add(a.slice, b.slice, into: $0) }
    return sum.recorded(from: [a, b]) { gradient, sink in
      sink.add(gradient, to: 0)
      sink.add(gradient, to: 1)
    }
  }

  /// The elementwise product of two tensors of one shape.
  public static func * (a: Tensor, b: Tensor) -> Tensor {
    precondition(a.shape == b.shape, "product of \(a.shape) and \(b.shape)")
    let (aValue, bValue) = (a.detached, b.detached)
    let product = filled(a.shape) { VectorMath.multiply(a.slice, b.slice, into: $0) }
    return product.recorded(from: [a, b]) { gradient, sink in
      for (position, other) in [bValue, aValue].enumerated() where sink.needs(position) {
        sink.add(
          filled(other.shape) { VectorMath.multiply(gradient.slice, other.slice, into: $0) },
          to: position)
      }
    }
  }

  /// Each row times a vector: `[…, n]` ∘ `[n]`, the product that scales features.
  public func scalingColumns(by vector: Tensor) -> Tensor {
    precondition(vector.shape == [columns], "columns of \(shape) scaled by \(vector.shape)")
    let (rowCount, columnCount) = (rows, columns)
    let (xValue, vectorValue) = (detached, vector.detached)
    let result = Tensor.filled(shape) {
      Rows.scaleColumns(
        rows: rowCount, columns: columnCount, xValue.slice, by: vectorValue.slice, into: $0)
    }
    return result.recorded(from: [self, vector]) { gradient, sink in
      if sink.needs(0) {
        sink.add(
          Tensor.filled(gradient.shape) {
            Rows.scaleColumns(
              rows: rowCount, columns: columnCount, gradient.slice, by: vectorValue.slice, into: $0)
          }, to: 0)
      }
      if sink.needs(1) {
        sink.add(
          Tensor.filled([columnCount]) {
            Rows.columnDots(
              rows: rowCount, columns: columnCount, gradient.slice, xValue.slice, into: $0)
          }, to: 1)
      }
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

  /// Every element times a number.
  public func scaled(by factor: Float) -> Tensor {
    var result = withoutGraph()
    result.withMutableSlice { VectorMath.scale(factor, $0.readOnly, into: $0) }
    return result.recorded(from: [self]) { gradient, sink in
      gradient.withMutableSlice { VectorMath.scale(factor, $0.readOnly, into: $0) }
      sink.add(gradient, to: 0)
    }
  }

  /// The sum of all elements, a scalar, added up in double precision.
  public func sum() -> Tensor {
    let shape = shape
    return Tensor(Float(VectorMath.sum(slice))).recorded(from: [self]) { gradient, sink in
      sink.add(Tensor(repeating: gradient.item, shape: shape), to: 0)
    }
  }
}
