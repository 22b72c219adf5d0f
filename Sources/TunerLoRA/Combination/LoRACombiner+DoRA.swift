import BLASKernels
import PEFTCore
import PEFTSupport
import Tensors

extension LoRACombiner {
  /// Combines changes of which some have magnitudes.
  ///
  /// A DoRA adapter's change is cᵢ∘(W + sᵢBᵢAᵢ) − W with a factor cᵢ = mᵢ/‖W + sᵢBᵢAᵢ‖ for each row;
  /// a plain one's is that with cᵢ = 1. With D = 1 + Σ wᵢ(cᵢ − 1),
  ///
  /// W + Σ wᵢΔWᵢ = D∘(W + Σ wᵢsᵢ(cᵢ/D)∘BᵢAᵢ),
  ///
  /// which is a DoRA adapter with magnitude D∘‖W + B'A'‖. A row with D = 0 is one of zeros where the
  /// sum of the updates is zero too, and has magnitude 0; any other is no row of a DoRA adapter.
  func decomposedChange(
    _ parts: [CombinationPart], magnitudes: [Tensor?], at path: String, _ like: LoRAPart,
    rank: Int
  ) throws(PEFTError) -> (FactoredChange, Tensor) {
    guard let base else {
      throw PEFTError(
        .invalidConfiguration, "combining DoRA adapters needs the weights of the base model",
        at: path, remedy: "Give the base model, or combine on a loaded model.")
    }
    let weight = try base(
      path, outputs: like.factors.outputs, inputs: like.factors.inputs,
      isEmbedding: like.isEmbedding)
    if !isExact {
      // peft leaves the magnitude as it is in a new adapter.
      return (
        try combination.combine(parts, at: path, rank: rank),
        Tensor(shape: magnitudeShape(like), scalars: norms(weight).map { Float($0) })
      )
    }
    guard [.linear, .cat, .svd].contains(combination.kind) else {
      throw PEFTError(
        .unsupported,
        "combination_type \(combination.kind.rawValue) is not defined for DoRA adapters", at: path,
        remedy: "Use linear, cat or svd.")
    }
    if makesBias {
      throw PEFTError(
        .unsupported, "adapters with 'lora_bias' cannot be combined with DoRA adapters", at: path,
        remedy: "Combine the DoRA adapters by themselves.")
    }
    var factors: [[Double]] = []
    for (part, magnitude) in zip(parts, magnitudes) {
      guard let magnitude else {
        factors.append([Double](repeating: 1, count: weight.rows))
        continue
      }
      guard magnitude.count == weight.rows else {
        throw PEFTError(
          .shapeMismatch,
          "'lora_magnitude_vector' of the adapter '\(adapters[part.adapter].name)' has shape "
            + "\(magnitude.shape), \(weight.rows) elements were expected", at: path,
          remedy: "The adapter was made for another base model.")
      }
      let changed = weight + part.factors.product(scale: part.scaling)
      // A row of zeros stays one whatever it is multiplied by; 1 leaves it out of D.
      factors.append(zip(magnitude.scalars, norms(changed)).map { $1 == 0 ? 1 : Double($0) / $1 })
    }
    var total = (0..<weight.rows).map { row in
      zip(parts, factors).reduce(1) { $0 + $1.0.weight * ($1.1[row] - 1) }
    }
    let lost = total.indices.filter { !(total[$0].magnitude > 1e-6) }
    if let row = firstUpdated(of: lost, weight, parts, factors) {
      throw PEFTError(
        .numericalFailure,
        "the weights of the DoRA adapters cancel row \(row) of the base's weight", at: path,
        remedy: "Change the weights of the combination.")
    }
    for row in lost { total[row] = 0 }
    var scaled: [CombinationPart] = []
    for (part, factor) in zip(parts, factors) {
      let rows = Tensor(
        shape: [total.count],
        scalars: zip(factor, total).map { $1 == 0 ? 0 : Float($0 / $1) })
      scaled.append(
        CombinationPart(
          adapter: part.adapter,
          factors: try FactoredChange(a: part.factors.a, b: part.factors.b.scalingRows(by: rows)),
          scaling: part.scaling, weight: part.weight))
    }
    let combined = try combination.combine(scaled, at: path, rank: rank)
    let lengths = norms(weight + combined.product())
    return (
      combined,
      Tensor(shape: magnitudeShape(like), scalars: zip(total, lengths).map { Float($0 * $1) })
    )
  }

  /// The first of some rows in which Σ wᵢsᵢcᵢ∘BᵢAᵢ is more than rounding beside the row of the base
  /// and those of the parts.
  private func firstUpdated(
    of rows: [Int], _ weight: Tensor, _ parts: [CombinationPart], _ factors: [[Double]]
  ) -> Int? {
    if rows.isEmpty { return nil }
    let updates = parts.map { $0.factors.product(scale: $0.weight * $0.scaling) }
    return rows.first { row in
      var sum = Tensor.zeros([1, weight.columns])
      var size = norms(weight.rowRange(row..<row + 1))[0]
      for (update, factor) in zip(updates, factors) {
        let own = update.rowRange(row..<row + 1)
        size += norms(own)[0]
        sum = sum + own.scaled(by: Float(factor[row]))
      }
      return !(norms(sum)[0] <= 1e-6 * size)
    }
  }

  /// As peft stores magnitudes: a vector, with dimensions of 1 around it for a convolution.
  private func magnitudeShape(_ like: LoRAPart) -> [Int] {
    let outputs = like.factors.outputs
    return like.a.shape.count == 2
      ? [outputs] : [1, outputs] + [Int](repeating: 1, count: like.a.shape.count - 2)
  }

  /// Lengths of rows.
  private func norms(_ matrix: Tensor) -> [Double] {
    (0..<matrix.rows).map {
      VectorMath.sumOfSquares(matrix.rowRange($0..<$0 + 1).slice).squareRoot()
    }
  }
}
