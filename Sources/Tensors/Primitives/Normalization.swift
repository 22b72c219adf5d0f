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
          Norms.layerNorm(
            rows: rows, columns: columns, xSlice, residual: residualSlice, sum: sum,
            weight: weightValue.slice, bias: biasSlice, epsilon: epsilon, mean: mean, rstd: rstd,
            into: y)
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
    var dWeight: Tensor? = sink.needs(1) ? Tensor(uninitialized: [columns]) : nil
    var dBias: Tensor? = sink.needs(2) ? Tensor(uninitialized: [columns]) : nil
    let needsInput = sink.needs(0) || (hasResidual && sink.needs(3))
    gradient.withMutableSlice { dy in
      withOptionalMutableSlice(&dWeight) { dWeight in
        withOptionalMutableSlice(&dBias) { dBias in
          Norms.layerNormBackward(
            rows: rows, columns: columns, input.slice, weight: weightValue.slice,
            mean: means.slice, rstd: rstds.slice, dy.readOnly, weightGradient: dWeight,
            biasGradient: dBias, into: needsInput ? dy : nil)
        }
      }
    }
    if needsInput {
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
      Norms.rmsNorm(
        rows: rows, columns: columns, input.slice, weight: weightValue.slice, epsilon: epsilon,
        rstd: rstd, into: y)
    }
  }
  let rstds = rstd
  return output.recorded(from: [x, weight]) { gradient, sink in
    var dWeight: Tensor? = sink.needs(1) ? Tensor(uninitialized: [columns]) : nil
    let needsInput = sink.needs(0)
    gradient.withMutableSlice { dy in
      withOptionalMutableSlice(&dWeight) { dWeight in
        Norms.rmsNormBackward(
          rows: rows, columns: columns, input.slice, weight: weightValue.slice, rstd: rstds.slice,
          dy.readOnly, weightGradient: dWeight, into: needsInput ? dy : nil)
      }
    }
    if needsInput { sink.add(gradient, to: 0) }
    if let dWeight { sink.add(dWeight, to: 1) }
  }
}

private func withOptionalMutableSlice(
  _ tensor: inout Tensor?, _ body: (MutableSlice<Float>?) -> Void
) {
  if tensor != nil { tensor!.withMutableSlice { body($0) } } else { body(nil) }
}
