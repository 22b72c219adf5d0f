import BLASKernels

/// Layer normalisation of each row: (x − mean)/√(var + ε)·weight + bias.
///
/// With `residual`, the row is x + residual: the add and the normalisation share one pass, as the
/// post-norm layers of BERT need it.
///
/// - Parameters:
///   - x: `[…, n]`.
///   - residual: Added before; shape of x.
///   - weight: `[n]`.
///   - bias: `[n]`.
///   - epsilon: ε.
/// - Returns: Shape of x.
public func layerNorm(
  _ x: Tensor, residual: Tensor? = nil, weight: Tensor, bias: Tensor, epsilon: Float
) -> Tensor {
  let (rows, columns) = (x.rows, x.columns)
  precondition(weight.shape == [columns] && bias.shape == [columns])
  let isTracked = [x, weight, bias].contains(where: \.isTracked) || residual?.isTracked == true
  var output = Tensor(uninitialized: x.shape)
  var mean = Tensor(uninitialized: [rows])
  var rstd = Tensor(uninitialized: [rows])
  // Where the sum is not needed for gradients, it overwrites nothing and is not kept.
  var sum: Tensor? = residual != nil && isTracked ? Tensor(uninitialized: x.shape) : nil
  let (xSlice, residualSlice) = (x.slice, residual?.slice)
  let (weightValue, biasSlice) = (weight.detached, bias.slice)
  output.withMutableSlice { y in
    mean.withMutableSlice { mean in
      rstd.withMutableSlice { rstd in
        func run(_ sum: MutableSlice<Float>?) {
          Normalization.layerNorm(
            xSlice, residual: residualSlice, sum: sum, weight: weightValue.slice, bias: biasSlice,
            rows: rows, columns: columns, epsilon: epsilon, into: y, mean: mean, rstd: rstd)
        }
        if sum != nil { sum!.withMutableSlice { run($0) } } else { run(nil) }
      }
    }
  }
  guard isTracked else { return output }
  let (input, means, rstds) = (sum ?? x.detached, mean, rstd)
  let hasResidual = residual != nil
  return output.recorded(from: [x, weight, bias] + (residual.map { [$0] } ?? [])) {
    gradient, sink in
    var dWeight: Tensor? = sink.needs(1) ? .zeros([columns]) : nil
    var dBias: Tensor? = sink.needs(2) ? .zeros([columns]) : nil
    let needsInput = sink.needs(0) || (hasResidual && sink.needs(3))
    if dWeight != nil || dBias != nil {
      let dy = gradient.slice
      withOptionalMutableSlice(&dWeight) { dw in
        withOptionalMutableSlice(&dBias) { db in
          Normalization.layerNormParameterGradients(
            gradient: dy, x: input.slice, mean: means.slice, rstd: rstds.slice, rows: rows,
            columns: columns, intoWeight: dw, intoBias: db)
        }
      }
    }
    if needsInput {
      gradient.withMutableSlice {
        Normalization.layerNormBackward(
          gradient: $0.readOnly, x: input.slice, mean: means.slice, rstd: rstds.slice,
          weight: weightValue.slice, rows: rows, columns: columns, into: $0)
      }
      if hasResidual { sink.add(gradient, to: 3) }
      sink.add(gradient, to: 0)
    }
    if let dWeight { sink.add(dWeight, to: 1) }
    if let dBias { sink.add(dBias, to: 2) }
  }
}

/// Root-mean-square normalisation of each row: x/√(mean(x²) + ε)·weight.
///
/// - Parameters:
///   - x: `[…, n]`.
///   - weight: `[n]`.
///   - epsilon: ε.
/// - Returns: Shape of x.
public func rmsNorm(_ x: Tensor, weight: Tensor, epsilon: Float) -> Tensor {
  let (rows, columns) = (x.rows, x.columns)
  precondition(weight.shape == [columns])
  var output = Tensor(uninitialized: x.shape)
  var rstd = Tensor(uninitialized: [rows])
  let (input, weightValue) = (x.detached, weight.detached)
  output.withMutableSlice { y in
    rstd.withMutableSlice { rstd in
      Normalization.rmsNorm(
        input.slice, weight: weightValue.slice, rows: rows, columns: columns, epsilon: epsilon,
        into: y, rstd: rstd)
    }
  }
  let rstds = rstd
  return output.recorded(from: [x, weight]) { gradient, sink in
    if sink.needs(1) {
      var dWeight = Tensor.zeros([columns])
      let dy = gradient.slice
      dWeight.withMutableSlice {
        Normalization.rmsNormParameterGradient(
          gradient: dy, x: input.slice, rstd: rstds.slice, rows: rows, columns: columns, into: $0)
      }
      sink.add(dWeight, to: 1)
    }
    if sink.needs(0) {
      gradient.withMutableSlice {
        Normalization.rmsNormBackward(
          gradient: $0.readOnly, x: input.slice, rstd: rstds.slice, weight: weightValue.slice,
          rows: rows, columns: columns, into: $0)
      }
      sink.add(gradient, to: 0)
    }
  }
}

private func withOptionalMutableSlice(
  _ tensor: inout Tensor?, _ body: (MutableSlice<Float>?) -> Void
) {
  if tensor != nil { tensor!.withMutableSlice { body($0) } } else { body(nil) }
}
