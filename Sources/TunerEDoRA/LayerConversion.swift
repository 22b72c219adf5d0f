import NN
import PEFTCore
import PEFTSupport
import Tensors
import TunerDoRA
import TunerLoRA

/// The conversion of one layer's adapter.
struct LayerConversion {
  let from: AdaptedLayer
  let to: AdaptedLayer
  let isExact: Bool

  /// An update s·(P·A, bias), and DoRA's magnitude.
  private struct Update {
    let a: Tensor, outer: Tensor
    var bias: Tensor?
    var magnitude: Tensor?
    let scaling: Double
  }

  /// The old adapter's; R goes into A.
  private func makeOld() throws(PEFTError) -> Update? {
    switch from.layer {
    case let layer as EDoRALayer:
      let a = layer.latent.map { linear(layer.a.value.transposed(), $0.value).transposed() }
      return Update(
        a: a ?? layer.a.value, outer: layer.b.value, magnitude: layer.weight?.magnitude.value,
        scaling: Double(layer.scaling))
    case let layer as DoRALayer:
      return Update(
        a: layer.factors.a.value, outer: layer.factors.b.value,
        magnitude: layer.weight.magnitude.value, scaling: layer.factors.scaling)
    case let layer as any LoRAFactors:
      let tensors = try layer.plainTensors()
      return Update(
        a: tensors[0].value, outer: tensors[1].value,
        bias: tensors.first { $0.suffix == LoRAKey.bias }?.value, scaling: layer.scaling)
    default: return nil
    }
  }

  /// What factors are multiplied by in a layer of another scaling: the old one may have been changed
  /// since it was configured.
  private static func ratio(_ old: Double, _ new: Double) -> Float {
    // Where s is 0 there is no change to hold, nor is one made.
    old == new ? 1 : new == 0 ? 0 : Float(old / new)
  }

  /// Sets the new values.
  ///
  /// - Returns: ‖ΔW′ − ΔW‖² and ‖ΔW‖², both 0 where nothing is lost.
  func run() throws(PEFTError) -> (difference: Double, size: Double) {
    guard let old = try makeOld() else { throw Self.noFactors }
    switch to.layer {
    case let layer as EDoRALayer:
      if isExact, let source = from.layer as? EDoRALayer {
        try keep(source, in: layer)
        return (0, 0)
      }
      return try project(old, onto: layer)
    case let layer as DoRALayer:
      layer.factors.a.assign(old.a.scaled(by: Self.ratio(old.scaling, layer.factors.scaling)))
      layer.factors.b.assign(old.outer)
      let magnitude = layer.weight.magnitude
      if let own = old.magnitude {
        magnitude.assign(own.reshaped(magnitude.shape))
      } else {
        try requireValues()
        magnitude.assign(
          layer.weight.currentNorms(to.parameters).reshaped(magnitude.shape))
      }
      return (0, 0)
    case let layer as any LoRAFactors:
      if isExact {
        let ratio = Self.ratio(old.scaling, layer.scaling)
        layer.a.assign(old.a.scaled(by: ratio))
        layer.b.assign(old.outer)
        if let bias = old.bias {
          layer.parameters.first { $0.suffix == LoRAKey.bias }?.parameter
            .assign(bias.scaled(by: ratio))
        }
        return (0, 0)
      }
      try requireValues()
      let change = try from.fullChange()
      try factorise(change, into: layer)
      return try error(of: change)
    default: throw Self.noFactors
    }
  }

  private func error(of change: Tensor) throws(PEFTError) -> (difference: Double, size: Double) {
    let new = try to.fullChange()
    return ((new + change.scaled(by: -1)).sumOfSquares, change.sumOfSquares)
  }

  private static var noFactors: PEFTError {
    PEFTError(
      .unsupported, "the adapter's layer is not made of factors that can be converted",
      remedy: "What 'enable_lora', 'target_parameters' and 'ensure_weight_tying' make keeps its "
        + "form, and so do layers of other programs.")
  }

  private func requireValues() throws(PEFTError) {
    guard from.base.hasValues else {
      throw PEFTError(
        .invalidState, "this conversion needs the base model's weights",
        remedy: "Load the model instead of describing it.")
    }
  }

  /// B·A from the leading singular values of a change; where there are fewer than the rank, the rest
  /// is zero.
  private func factorise(_ change: Tensor, into layer: any LoRAFactors) throws(PEFTError) {
    let oriented = to.host is Embedding ? change.transposed() : change
    guard to.host.groups == 1 else {
      throw PEFTError(
        .unsupported, "the change of a convolution with groups cannot be written with two factors",
        remedy: "Leave this layer out of the adapter.")
    }
    let factors = Decomposition.factors(
      [try oriented.decomposed(rank: layer.rank)], groupRank: layer.rank)
    layer.a.assign(factors.a.scaled(by: Float(1 / layer.scaling)).reshaped(layer.a.shape))
    layer.b.assign(factors.b.reshaped(layer.b.shape))
  }

  /// Sets R, and the magnitude.
  ///
  /// A layer with a magnitude gets the update s·P·A in its span and the old magnitude; one without
  /// gets the whole change there, what an old magnitude does included.
  private func project(
    _ old: Update, onto layer: EDoRALayer
  ) throws(PEFTError) -> (difference: Double, size: Double) {
    if let source = from.layer as? EDoRALayer, source.rank == layer.rank, layer.mark == nil {
      layer.a.assign(source.a.value)
      layer.b.assign(source.b.value)
    }
    try requireValues()
    let change = try from.fullChange()
    let (a, b) = (layer.a.value, layer.b.value.transposed())
    if layer.weight == nil, old.magnitude != nil {
      try setLatent(of: layer, linear(linear(b, change.transposed()), a), scaling: 1)
    } else {
      let right = linear(old.a, a)
      try setLatent(
        of: layer, linear(linear(b, old.outer.transposed()), right.transposed()),
        scaling: old.scaling)
    }
    if let weight = layer.weight {
      let magnitude = old.magnitude ?? nearestMagnitude(to: change, of: layer)
      weight.magnitude.assign(magnitude.reshaped(weight.magnitude.shape))
    }
    return try error(of: change)
  }

  /// m of the direction V = W + s·B·R·A for which m∘V/‖V‖ is nearest to W + ΔW: rowsum((W + ΔW)∘V)/‖V‖.
  ///
  /// ‖V‖ would leave s·B·R·A, the part of ΔW in the span, so the result is never worse than no change;
  /// the norms of W + ΔW can be.
  private func nearestMagnitude(to change: Tensor, of layer: EDoRALayer) -> Tensor {
    var lengths: [Float] = []
    let width = change.columns
    for rows in from.base.rowBlocks {
      var direction = from.base.dequantized(rows: rows)
      let wanted = (direction + change.rowRange(rows)).scalars
      layer.addUpdate(rows: rows, to: &direction)
      let along = direction.scalars
      for row in 0..<rows.count {
        var (product, square) = (0.0, 0.0)
        for place in row * width..<(row + 1) * width {
          product += Double(wanted[place]) * Double(along[place])
          square += Double(along[place]) * Double(along[place])
        }
        lengths.append(square > 0 ? Float(product / square.squareRoot()) : 0)
      }
    }
    return Tensor(shape: [lengths.count], scalars: lengths)
  }

  /// R of the change in the span of A and B that is nearest to a change sM, from Bᵀ·M·Aᵀ:
  /// R = (BᵀB)⁻¹ Bᵀ(sM)Aᵀ(AAᵀ)⁻¹/s′.
  private func setLatent(
    of layer: EDoRALayer, _ middle: Tensor, scaling: Double
  ) throws(PEFTError) {
    guard let latent = layer.latent else {
      throw PEFTError(
        .unsupported, "the recipe has no R ('r_squared': false) that a change could go into",
        remedy: "Convert the adapter to DoRA or LoRA first.")
    }
    let b = layer.b.value.transposed()
    let (bb, aa) = (linear(b, b), linear(layer.a.value, layer.a.value))
    let first = try solve(bb, middle)
    let second = try solve(aa, first.transposed()).transposed()
    latent.assign(second.scaled(by: Self.ratio(scaling, layer.scaling)))
  }

  /// Keeps R and magnitude. Where A and B are made anew, they have to be those of before up to sign.
  private func keep(_ source: EDoRALayer, in layer: EDoRALayer) throws(PEFTError) {
    let ratio = Self.ratio(source.scaling, layer.scaling)
    if let magnitude = source.weight?.magnitude { layer.weight?.magnitude.assign(magnitude.value) }
    guard layer.mark != nil, let latent = source.latent, let newLatent = layer.latent else {
      layer.a.assign(source.latent == nil ? source.a.value.scaled(by: ratio) : source.a.value)
      layer.b.assign(source.b.value)
      if let latent = source.latent { layer.latent?.assign(latent.value.scaled(by: ratio)) }
      return
    }
    try requireValues()
    let rank = layer.rank
    // Taken once: each access makes an array of the whole matrix.
    let (one, other) = (source.b.value.scalars, layer.b.value.scalars)
    let signs = (0..<rank).map { column -> Float in
      let dot = stride(from: column, to: one.count, by: rank).reduce(Float(0)) {
        $0 + one[$1] * other[$1]
      }
      return dot < 0 ? -1 : 1
    }
    let vector = Tensor(shape: [rank], scalars: signs)
    let (a, b) = (
      layer.a.value.scalingRows(by: vector), layer.b.value.scalingColumns(by: vector)
    )
    for (new, old) in [(a, source.a.value), (b, source.b.value)] {
      let error = (new + old.scaled(by: -1)).maximumMagnitude
      guard error <= 1e-3 * old.maximumMagnitude else {
        throw PEFTError(
          .unsupported,
          "A and B are not those that the recipe makes of this weight, so they cannot be left out",
          remedy: "Keep the adapter in its full form.")
      }
    }
    newLatent.assign(
      latent.value.scaled(by: ratio).scalingRows(by: vector).scalingColumns(by: vector))
  }

  /// X of M·X = N for a symmetric positive definite M, by elimination in double precision.
  private func solve(_ m: Tensor, _ n: Tensor) throws(PEFTError) -> Tensor {
    let (size, width) = (m.rows, n.columns)
    var rows = (0..<size).map { row in
      (m.rowRange(row..<row + 1).scalars + n.rowRange(row..<row + 1).scalars).map(Double.init)
    }
    // Squares of singular values that are rounding beside the largest.
    let least = 1e-12 * (0..<size).reduce(0) { max($0, abs(rows[$1][$1])) }
    for pivot in 0..<size {
      let best = (pivot..<size).max { abs(rows[$0][pivot]) < abs(rows[$1][pivot]) } ?? pivot
      rows.swapAt(pivot, best)
      guard abs(rows[pivot][pivot]) > least else {
        throw PEFTError(
          .numericalFailure,
          "the weight has fewer than \(size) singular vectors that A and B could be made of",
          remedy: "Choose a lower rank.")
      }
      for row in 0..<size where row != pivot {
        let factor = rows[row][pivot] / rows[pivot][pivot]
        for column in pivot..<size + width { rows[row][column] -= factor * rows[pivot][column] }
      }
    }
    let values = rows.enumerated().flatMap { row, numbers in
      numbers[size...].map { Float($0 / numbers[row]) }
    }
    return Tensor(shape: [size, width], scalars: values)
  }
}
