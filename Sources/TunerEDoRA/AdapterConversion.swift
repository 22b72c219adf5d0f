import NN
import PEFTCore
import PEFTSupport
import Tensors
import TunerDoRA
import TunerLoRA

/// The methods that adapters can be converted to.
public enum AdapterForm: String, Sendable, CaseIterable {
  /// Plain LoRA.
  case lora
  /// DoRA, which peft and every server that knows it can run.
  case dora
  /// EDoRA.
  case edora
  /// LoRA-XS.
  case loraXS = "lora-xs"
}

/// What a conversion lost.
public struct ConversionReport: Sendable {
  /// ‖ΔW′ − ΔW‖/‖ΔW‖ over all adapted weights; 0 where the new form holds the same change.
  public var relativeError: Double
  /// Numbers that the new adapter trains.
  public var trainedParameters: Int
}

extension PeftModel {
  /// Adds an adapter that makes the change of another one, in the form of another method.
  ///
  /// EDoRA becomes DoRA, and LoRA-XS becomes LoRA, by multiplying R into A, and LoRA becomes DoRA with
  /// the norms as magnitudes: the same change. A decomposed or dense change becomes LoRA by its leading
  /// singular values, and EDoRA or LoRA-XS by projection onto the singular vectors of the weight: the
  /// nearest change of that form, and the report says how near. Modules that are saved in full are
  /// copied.
  ///
  /// - Parameters:
  ///   - name: The adapter.
  ///   - form: What to make of it.
  ///   - newName: The new adapter's name.
  ///   - rank: The new rank; the old one's unless given. A conversion that needs none refuses another.
  ///   - isCompact: Whether files of an EDoRA or LoRA-XS adapter leave out A and B.
  /// - Throws: ``PEFTError``; the model is as it was before then.
  @discardableResult
  public func convert(
    _ name: String, to form: AdapterForm, as newName: String, rank: Int? = nil,
    isCompact: Bool = false
  ) throws(PEFTError) -> ConversionReport {
    let old = try config(name)
    let source: LoRAConfig
    let recipe: EDoRAConfig?
    switch old {
    // Factors alone, also of PiSSA and the like.
    case let config as LoRAConfig: (source, recipe) = (config.plain(), nil)
    case let config as EDoRAConfig: (source, recipe) = (config.lora, config)
    default:
      throw PEFTError(
        .unsupported,
        "an adapter of the method \(old.object["peft_type"]?.string ?? "?") cannot be converted",
        at: name, remedy: "Adapters of LoRA, DoRA, EDoRA and LoRA-XS can.")
    }
    let plan: ConversionPlan
    do throws(PEFTError) {
      plan = try ConversionPlan(source, recipe, to: form, rank: rank, isCompact: isCompact)
    } catch {
      throw error.located(at: name)
    }
    try add(newName, any: plan.config, seed: 0)
    do throws(PEFTError) {
      return try fill(newName, from: name, plan)
    } catch {
      try delete(newName)
      throw error
    }
  }

  private func fill(
    _ newName: String, from name: String, _ plan: ConversionPlan
  ) throws(PEFTError) -> ConversionReport {
    let old = try tensors(of: name)
    let places = Dictionary(uniqueKeysWithValues: old.map { ($0.key, $0.parameter) })
    var (difference, size) = (0.0, 0.0)
    var ofLayers: Set<Parameter.ID> = []
    var trained = 0
    let sources = Dictionary(
      try adaptedLayers(of: name).map { ($0.path, $0) }, uniquingKeysWith: { first, _ in first })
    for to in try adaptedLayers(of: newName) {
      guard let from = sources[to.path] else { continue }
      for parameter in to.layer.parameters {
        ofLayers.insert(parameter.parameter.id)
        if parameter.isTrained { trained += parameter.parameter.value.count }
      }
      do throws(PEFTError) {
        let errors = try LayerConversion(from: from, to: to, isExact: plan.isExact).run()
        difference += errors.difference
        size += errors.size
      } catch {
        throw error.located(at: to.path)
      }
    }
    // The heads.
    for tensor in try tensors(of: newName) where !ofLayers.contains(tensor.parameter.id) {
      if let parameter = places[tensor.key] { tensor.parameter.assign(parameter.value) }
    }
    return ConversionReport(
      relativeError: size > 0 ? (difference / size).squareRoot() : 0, trainedParameters: trained)
  }
}

/// The new settings, and whether the change stays the same.
struct ConversionPlan {
  let config: any TunerConfig
  let isExact: Bool

  init(
    _ source: LoRAConfig, _ recipe: EDoRAConfig?, to form: AdapterForm, rank: Int?,
    isCompact: Bool
  ) throws(PEFTError) {
    let isDecomposed = source.usesDoRA || recipe?.method == .edora
    switch form {
    case .lora: isExact = !isDecomposed
    case .dora: isExact = true
    case .edora: isExact = recipe?.method == .edora
    case .loraXS: isExact = recipe?.method == .loraXS
    }
    if isExact, let rank, rank != source.rank {
      throw PEFTError(
        .invalidConfiguration,
        "the change has rank \(source.rank) and keeps it; a rank of \(rank) cannot be had",
        remedy: "Leave the rank out.")
    }
    if isCompact, form == .lora || form == .dora {
      throw PEFTError(
        .invalidConfiguration, "an adapter of \(form.rawValue) has no compact form",
        remedy: "Only EDoRA and LoRA-XS do.")
    }
    var lora = source
    lora.usesDoRA = false
    lora.initialization = .standard
    if !isExact, form == .lora {
      // The factors hold the whole change.
      lora.rankPattern = SuffixPatterns()
      lora.alphaPattern = SuffixPatterns()
      lora.usesRSLoRA = false
      lora.rank = rank ?? source.rank
      lora.alpha = Double(lora.rank)
    } else if let rank {
      lora.rankPattern = SuffixPatterns()
      lora.rank = rank
    }
    switch form {
    case .lora: config = lora
    case .dora:
      lora.usesDoRA = true
      config = lora
    case .edora, .loraXS:
      var new =
        recipe
        ?? EDoRAConfig(form == .edora ? .edora : .loraXS, lora: lora, sigma: 0)
      new.method = form == .edora ? .edora : .loraXS
      new.lora = lora
      new.isCompact = isCompact
      config = new
    }
  }
}

/// The conversion of one layer's adapter.
struct LayerConversion {
  let from: AdaptedLayer
  let to: AdaptedLayer
  let isExact: Bool

  /// A and P of the old change s·P·A, the magnitude, and s.
  private func makeOld() throws(PEFTError) -> (
    a: Tensor, outer: Tensor, magnitude: Tensor?, scaling: Double
  )? {
    switch from.layer {
    case let layer as EDoRALayer:
      let a = layer.latent.map { linear(layer.a.value.transposed(), $0.value).transposed() }
      return (
        a ?? layer.a.value, layer.b.value, layer.weight?.magnitude.value, Double(layer.scaling)
      )
    case let layer as DoRALayer:
      return (
        layer.factors.a.value, layer.factors.b.value, layer.weight.magnitude.value,
        layer.factors.scaling
      )
    case let layer as any LoRAFactors:
      let factors = try layer.plainTensors().map(\.value)
      return (factors[0], factors[1], nil, layer.scaling)
    default: return nil
    }
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
      if let source = from.layer as? EDoRALayer, source.rank == layer.rank, layer.mark == nil {
        layer.a.assign(source.a.value)
        layer.b.assign(source.b.value)
      }
      try project(old.a, old.outer, old.scaling, onto: layer)
      if let weight = layer.weight {
        let magnitude: Tensor
        if let own = old.magnitude {
          magnitude = own
        } else {
          let change = try from.fullChange()
          let changed = DenseMatrix(from.base.dequantized() + change)
          magnitude = EDoRALayer.norms(
            of: HostParameters(weight: .matrix(changed), bias: nil))
        }
        weight.magnitude.assign(magnitude.reshaped(weight.magnitude.shape))
      }
    case let layer as DoRALayer:
      layer.factors.a.assign(old.a)
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
        layer.a.assign(old.a)
        layer.b.assign(old.outer)
        return (0, 0)
      }
      try requireValues()
      try factorise(try from.fullChange(), into: layer)
    default: throw Self.noFactors
    }
    let (before, after) = (try from.fullChange(), try to.fullChange())
    return ((after + before.scaled(by: -1)).sumOfSquares, before.sumOfSquares)
  }

  private static var noFactors: PEFTError {
    PEFTError(
      .unsupported, "the adapter's layer is not made of factors that can be converted",
      remedy: "What 'enable_lora', 'target_parameters' and 'ensure_weight_tying' make keeps its "
        + "form, and so do layers of other programs.")
  }

  private func requireValues() throws(PEFTError) {
    guard !(from.base is ShapeOnlyMatrix) else {
      throw PEFTError(
        .invalidState, "this conversion needs the base model's weights",
        remedy: "Load the model instead of describing it.")
    }
  }

  /// B·A from the leading singular values of a change.
  private func factorise(_ change: Tensor, into layer: any LoRAFactors) throws(PEFTError) {
    let oriented = to.host is Embedding ? change.transposed() : change
    let most = min(oriented.rows, oriented.columns)
    guard to.host.groups == 1 else {
      throw PEFTError(
        .unsupported, "the change of a convolution with groups cannot be written with two factors",
        remedy: "Leave this layer out of the adapter.")
    }
    guard layer.rank <= most else {
      throw PEFTError(
        .invalidConfiguration,
        "The chosen rank \(layer.rank) is larger than the weight shape (\(most)), please choose a "
          + "lower rank.")
    }
    let factors = Decomposition.factors(
      [try oriented.decomposed(rank: layer.rank)], groupRank: layer.rank)
    layer.a.assign(factors.a.scaled(by: Float(1 / layer.scaling)).reshaped(layer.a.shape))
    layer.b.assign(factors.b.reshaped(layer.b.shape))
  }

  /// R of the change in the span of the new A and B that is nearest to s·P·A:
  /// R = (BᵀB)⁻¹ Bᵀ(sPA)Aᵀ(AAᵀ)⁻¹/s′.
  private func project(
    _ a: Tensor, _ outer: Tensor, _ scaling: Double, onto layer: EDoRALayer
  ) throws(PEFTError) {
    try requireValues()
    guard let latent = layer.latent else {
      throw PEFTError(
        .unsupported, "the recipe has no R ('r_squared': false) that a change could go into",
        remedy: "Convert the adapter to DoRA or LoRA first.")
    }
    let left = linear(layer.b.value.transposed(), outer.transposed())
    let right = linear(a, layer.a.value)
    let middle = linear(left, right.transposed())
    let (bb, aa) = (
      linear(layer.b.value.transposed(), layer.b.value.transposed()),
      linear(layer.a.value, layer.a.value)
    )
    let first = try solve(bb, middle)
    let second = try solve(aa, first.transposed()).transposed()
    latent.assign(second.scaled(by: Float(scaling / Double(layer.scaling))))
  }

  /// Keeps R and magnitude. Where A and B are made anew, they have to be those of before up to sign.
  private func keep(_ source: EDoRALayer, in layer: EDoRALayer) throws(PEFTError) {
    if let magnitude = source.weight?.magnitude { layer.weight?.magnitude.assign(magnitude.value) }
    guard layer.mark != nil, let latent = source.latent, let newLatent = layer.latent else {
      layer.a.assign(source.a.value)
      layer.b.assign(source.b.value)
      if let latent = source.latent { layer.latent?.assign(latent.value) }
      return
    }
    try requireValues()
    let rank = layer.rank
    let (one, other) = (source.b.value, layer.b.value)
    let signs = (0..<rank).map { column -> Float in
      let dot = (0..<one.rows).reduce(Float(0)) {
        $0 + one.scalars[$1 * rank + column] * other.scalars[$1 * rank + column]
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
    newLatent.assign(latent.value.scalingRows(by: vector).scalingColumns(by: vector))
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
