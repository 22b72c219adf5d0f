import Tensors

extension Tensor {
  /// A matrix of which each group of rows has columns for itself, `[rows, columns/groups]`, as one over
  /// all columns: the rows of a group keep their numbers in the columns of the group, and the rest is
  /// zero.
  func spread(overGroups groups: Int) -> Tensor {
    guard groups > 1 else { return self }
    let (rowCount, width) = (rows, columns)
    @Sendable func place(_ row: Int) -> Range<Int> {
      let start = (row * groups + row / (rowCount / groups)) * width
      return start..<start + width
    }
    let result = Tensor.filled([rowCount, width * groups]) { output in
      output.fill(0)
      for row in 0..<rowCount {
        output[place(row)].copy(from: slice[row * width..<(row + 1) * width])
      }
    }
    let inputShape = shape
    return result.recorded(from: [self]) { gradient, sink in
      sink.add(
        Tensor.filled(inputShape) { output in
          for row in 0..<rowCount {
            output[row * width..<(row + 1) * width].copy(from: gradient.slice[place(row)])
          }
        }, to: 0)
    }
  }
}
