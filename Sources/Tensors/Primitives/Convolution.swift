import BLASKernels

/// A convolution by a frozen weight, with the channels last: `[n, channels, size…]` to
/// `[n, positions…, rows]`.
///
/// Windows of the input are unfolded block by block and multiplied by the weight, in whatever
/// format that is; they are never kept. Channels stand last because every position then is a row
/// of features, as after a linear layer; ``channelsFirst(_:)`` restores PyTorch's order.
///
/// - Parameters:
///   - x: Images `[n, channels, size…]`.
///   - weight: `[outputs, channels/groups · kernel]`, PyTorch's weight flattened.
///   - windows: The shapes.
///   - groups: Number of runs of channels that only see one another.
///   - bias: `[outputs]`.
public func convolution(
  _ x: Tensor, _ weight: any WeightMatrix, _ windows: ConvolutionWindows, groups: Int = 1,
  bias: Tensor? = nil
) -> Tensor {
  convolve(x, weight, trained: nil, windows, groups: groups, bias: bias)
}

/// A convolution by a trainable weight `[outputs, channels/groups, kernel…]`; otherwise like
/// ``convolution(_:_:_:groups:bias:)``.
public func convolution(
  _ x: Tensor, _ weight: Tensor, _ windows: ConvolutionWindows, groups: Int = 1,
  bias: Tensor? = nil
) -> Tensor {
  let outputs = weight.shape[0]
  let matrix = DenseMatrix(
    Tensor(shape: [outputs, weight.count / max(outputs, 1)], slice: weight.slice))
  return convolve(x, matrix, trained: weight, windows, groups: groups, bias: bias)
}

/// Moves the channels to where PyTorch has them: `[n, positions…, channels]` to
/// `[n, channels, positions…]`.
public func channelsFirst(_ x: Tensor) -> Tensor {
  let (images, channels) = (x.shape[0], x.columns)
  let positions = x.rows / max(images, 1)
  let middle = Array(x.shape.dropFirst().dropLast())
  let output = transposedImages(
    x, images, rows: positions, columns: channels, shape: [images, channels] + middle)
  let inputShape = x.shape
  return output.recorded(from: [x]) { gradient, sink in
    sink.add(
      transposedImages(
        gradient, images, rows: channels, columns: positions, shape: inputShape), to: 0)
  }
}

private func transposedImages(
  _ x: Tensor, _ images: Int, rows: Int, columns: Int, shape: [Int]
) -> Tensor {
  let size = rows * columns
  return Tensor.filled(shape) { y in
    for image in 0..<images {
      let range = image * size..<(image + 1) * size
      Rows.transpose(rows: rows, columns: columns, x.slice[range], into: y[range])
    }
  }
}

private func convolve(
  _ x: Tensor, _ weight: any WeightMatrix, trained: Tensor?, _ windows: ConvolutionWindows,
  groups: Int, bias: Tensor?
) -> Tensor {
  precondition(
    Array(x.shape.dropFirst()) == [windows.channels] + windows.size,
    "images \(x.shape) for windows over [\(windows.channels), \(windows.size)]")
  precondition(
    weight.columns * groups == windows.windowSize && weight.rows % groups == 0,
    "[\(weight.rows), \(weight.columns)] for windows of \(windows.windowSize), \(groups) groups")
  let product = WindowProduct(weight: weight, windows: windows, groups: groups)
  let outputs = weight.rows
  let rows = x.shape[0] * windows.positionCount
  let output = Tensor.filled([x.shape[0]] + windows.positions + [outputs]) { y in
    if let bias { Rows.fill(rows: rows, columns: outputs, with: bias.slice, into: y) }
    let beta: Float = bias == nil ? 0 : 1
    product.forEachBlock(of: rows) { range, columns in
      windows.unfold(x.slice, rows: range, into: columns)
      let place = y[range.lowerBound * outputs..<range.upperBound * outputs]
      product.multiply(columns.readOnly, count: range.count, beta: beta, into: place)
    }
  }
  let inputShape = x.shape
  let saved = trained?.isTracked == true ? x.detached : nil
  let weightShape = trained?.shape ?? []
  var inputs = [x, trained ?? Tensor(0)]
  if let bias { inputs.append(bias) }
  return output.recorded(from: inputs) { gradient, sink in
    let dy = gradient.slice
    if sink.needs(0) {
      sink.accumulate(into: 0, shape: inputShape) { dx, beta in
        if beta == 0 { dx.fill(0) }
        product.forEachBlock(of: rows) { range, columns in
          let place = dy[range.lowerBound * outputs..<range.upperBound * outputs]
          product.multiplyTransposed(place, count: range.count, into: columns)
          windows.fold(columns.readOnly, rows: range, into: dx)
        }
      }
    }
    if let saved, sink.needs(1) {
      sink.accumulate(into: 1, shape: weightShape) { dw, beta in
        if beta == 0 { dw.fill(0) }
        product.forEachBlock(of: rows) { range, columns in
          windows.unfold(saved.slice, rows: range, into: columns)
          let place = dy[range.lowerBound * outputs..<range.upperBound * outputs]
          product.addWeightGradient(place, columns.readOnly, count: range.count, to: dw)
        }
      }
    }
    if sink.inputs.count > 2 { addBiasGradient(gradient, rows: rows, to: 2, in: &sink) }
  }
}

/// The three products of a convolution over unfolded windows.
private struct WindowProduct: Sendable {
  let weight: any WeightMatrix
  let windows: ConvolutionWindows
  let groups: Int

  /// Calls `body` for runs of rows whose windows take a few megabytes, with room for them.
  func forEachBlock(of rows: Int, _ body: (Range<Int>, MutableSlice<Float>) -> Void) {
    let width = windows.windowSize
    let step = max(1, min(rows, 1_048_576 / max(width, 1)))
    let room = MutableSlice<Float>(count: step * width)
    for start in stride(from: 0, to: rows, by: step) {
      let range = start..<min(start + step, rows)
      body(range, room[0..<range.count * width])
    }
  }

  func multiply(
    _ columns: Slice<Float>, count: Int, beta: Float, into y: MutableSlice<Float>
  ) {
    guard groups > 1 else {
      return weight.multiply(columns, count: count, beta: beta, into: y)
    }
    forEachGroup { w, group in
      BLAS.gemm(
        .no, .yes, m: count, n: group.outputs.count, k: weight.columns,
        columns[group.inputs.lowerBound...], lda: windows.windowSize, w, beta: beta,
        into: y[group.outputs.lowerBound...], ldc: weight.rows)
    }
  }

  func multiplyTransposed(_ y: Slice<Float>, count: Int, into columns: MutableSlice<Float>) {
    guard groups > 1 else {
      return weight.multiplyTransposed(y, count: count, beta: 0, into: columns)
    }
    forEachGroup { w, group in
      BLAS.gemm(
        .no, .no, m: count, n: weight.columns, k: group.outputs.count,
        y[group.outputs.lowerBound...], lda: weight.rows, w,
        into: columns[group.inputs.lowerBound...], ldc: windows.windowSize)
    }
  }

  func addWeightGradient(
    _ y: Slice<Float>, _ columns: Slice<Float>, count: Int, to dw: MutableSlice<Float>
  ) {
    let (outputs, inputs) = (weight.rows / groups, weight.columns)
    for group in 0..<groups {
      BLAS.gemm(
        .yes, .no, m: outputs, n: inputs, k: count, y[(group * outputs)...], lda: weight.rows,
        columns[(group * inputs)...], ldb: windows.windowSize, beta: 1,
        into: dw[group * outputs * inputs..<(group + 1) * outputs * inputs])
    }
  }

  private func forEachGroup(
    _ body: (Slice<Float>, (outputs: Range<Int>, inputs: Range<Int>)) -> Void
  ) {
    let (outputs, inputs) = (weight.rows / groups, weight.columns)
    for group in 0..<groups {
      let rows = group * outputs..<(group + 1) * outputs
      body(
        weight.dequantized(rows: rows).slice, (rows, group * inputs..<(group + 1) * inputs))
    }
  }
}
