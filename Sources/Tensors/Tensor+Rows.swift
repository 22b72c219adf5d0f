import BLASKernels

extension Tensor {
  /// The first dimension by all the others, `[n, …]` to `[n, rest]`, as a convolution's kernel is
  /// applied.
  public var asMatrix: Tensor {
    if shape.count == 2 { return self }
    let first = shape.first ?? 1
    return reshaped([first, count / max(first, 1)])
  }

  /// Consecutive rows without a copy and without a graph, `[range.count, columns]`.
  public func rowRange(_ range: Range<Int>) -> Tensor {
    let width = columns
    precondition(range.lowerBound >= 0 && range.upperBound <= rows)
    return Tensor(
      shape: [range.count, width], storage: storage, offset: offset + range.lowerBound * width,
      node: nil)
  }

  /// Overwrites rows from `start` on with those of another tensor.
  ///
  /// Slices that ``rowRange(_:)`` gave out before share the memory: they must be gone, or the
  /// whole tensor is copied.
  public mutating func copyRows(of other: Tensor, at start: Int) {
    precondition(other.columns == columns && start + other.rows <= rows)
    let place = start * columns
    let source = other.slice
    withMutableSlice { $0[place..<place + source.count].copy(from: source) }
  }

  /// The given rows in order, `[ids.count, columns]`; gradients flow back to them.
  public func selectRows(_ ids: [Int32]) -> Tensor { gather(self, rows: ids) }

  /// Overwrites the rows `ids`, which differ, with those of another tensor, in place where the
  /// memory is not shared; gradients flow to both.
  ///
  /// - Parameters:
  ///   - ids: Rows of this tensor.
  ///   - other: `[ids.count, columns]`.
  public mutating func replaceRows(_ ids: [Int32], with other: Tensor) {
    precondition(other.columns == columns && other.rows == ids.count)
    let nodes = [node, other.node]
    let values = other.detached
    self = detached
    for (place, id) in ids.enumerated() {
      copyRows(of: values.rowRange(place..<place + 1), at: Int(id))
    }
    self = recorded(fromNodes: nodes) { gradient, sink in
      if sink.needs(1) { sink.add(gradient.selectRows(ids), to: 1) }
      if sink.needs(0) {
        let zeros = Tensor.zeros([1, gradient.columns])
        for id in ids { gradient.copyRows(of: zeros, at: Int(id)) }
        sink.add(gradient, to: 0)
      }
    }
  }

  /// Overwrites the columns `ids`, which differ, with those of another tensor, in place where the
  /// memory is not shared; gradients flow to both.
  ///
  /// - Parameters:
  ///   - ids: Columns of this tensor.
  ///   - other: `[…, ids.count]` with as many rows as this one.
  public mutating func replaceColumns(_ ids: [Int32], with other: Tensor) {
    precondition(other.rows == rows && other.columns == ids.count)
    let nodes = [node, other.node]
    let (rowCount, width, values) = (rows, columns, other.detached)
    self = detached
    withMutableSlice { destination in
      values.slice.withSpan { source in
        destination.withMutableSpan { target in
          for row in 0..<rowCount {
            for (place, id) in ids.enumerated() {
              target[row * width + Int(id)] = source[row * ids.count + place]
            }
          }
        }
      }
    }
    let otherShape = other.shape
    self = recorded(fromNodes: nodes) { gradient, sink in
      var taken = Tensor(uninitialized: otherShape)
      taken.withMutableSlice { destination in
        gradient.slice.withSpan { source in
          destination.withMutableSpan { target in
            for row in 0..<rowCount {
              for (place, id) in ids.enumerated() {
                target[row * ids.count + place] = source[row * width + Int(id)]
              }
            }
          }
        }
      }
      if sink.needs(1) { sink.add(taken, to: 1) }
      if sink.needs(0) {
        gradient.withMutableSlice { destination in
          destination.withMutableSpan { target in
            for row in 0..<rowCount {
              for id in ids { target[row * width + Int(id)] = 0 }
            }
          }
        }
        sink.add(gradient, to: 0)
      }
    }
  }

  /// Tensors with equal columns, one below the other, without a graph.
  public static func stackingRows(_ tensors: [Tensor]) -> Tensor {
    let columns = tensors.first?.columns ?? 0
    var result = Tensor(uninitialized: [tensors.reduce(0) { $0 + $1.rows }, columns])
    var start = 0
    for tensor in tensors {
      result.copyRows(of: tensor, at: start)
      start += tensor.rows
    }
    return result
  }
}

extension Tensor {
  /// The transpose of a matrix; gradients flow through.
  public func transposed() -> Tensor {
    precondition(shape.count == 2)
    let (rowCount, columnCount) = (shape[0], shape[1])
    let result = Tensor.filled([columnCount, rowCount]) {
      Rows.transpose(rows: rowCount, columns: columnCount, slice, into: $0)
    }
    return result.recorded(from: [self]) { gradient, sink in
      sink.add(gradient.transposed(), to: 0)
    }
  }

  /// Consecutive columns, `[…, range.count]`; gradients flow back to them.
  public func columnRange(_ range: Range<Int>) -> Tensor {
    let (rowCount, width) = (rows, columns)
    precondition(range.lowerBound >= 0 && range.upperBound <= width)
    if range == 0..<width { return self }
    let inputShape = shape
    let result = Tensor.filled(shape.dropLast() + [range.count]) { y in
      for row in 0..<rowCount {
        y[row * range.count..<(row + 1) * range.count].copy(
          from: slice[row * width + range.lowerBound..<row * width + range.upperBound])
      }
    }
    return result.recorded(from: [self]) { gradient, sink in
      sink.accumulate(into: 0, shape: inputShape) { dx, beta in
        if beta == 0 { dx.fill(0) }
        for row in 0..<rowCount {
          let part = gradient.slice[row * range.count..<(row + 1) * range.count]
          VectorMath.axpy(
            1, part, into: dx[row * width + range.lowerBound..<row * width + range.upperBound])
        }
      }
    }
  }
}
