import NN
import PEFTCore
import PEFTSupport
import Tensors
import TunerDoRA
import TunerLoRA

/// EDoRA or LoRA-XS on a linear layer: y = b + g∘(x·Wᵀ + s·B(R(A(x)))), g being 1 for LoRA-XS.
final class EDoRALayer: ScaledLayer {
  /// The rank.
  let rank: Int
  /// s.
  var scaling: Double
  /// s as the config has it.
  let configuredScaling: Double
  /// Dropout on the input of A.
  let dropout: Dropout
  /// A, `[rank, inputs]`, frozen.
  let a: Parameter
  /// B, `[outputs, rank]`, frozen.
  let b: Parameter
  /// R, `[rank, rank]`; `nil` where A and B are trained instead of it.
  let latent: Parameter?
  /// The magnitude and the norms; `nil` for LoRA-XS.
  private(set) var weight: DecomposedWeight?
  /// What a compact file has in the place of A and B: the base weight's fingerprint and theirs.
  let mark: Parameter?
  private let site: UInt64
  private let reconstruction: Reconstruction

  /// Makes the layer; A and B are not computed where they are read from a file next.
  ///
  /// - Throws: ``PEFTError`` when the rank does not fit the host or the weight is not finite.
  init(_ site: AdapterSite, _ config: EDoRAConfig) throws(PEFTError) {
    let (inputs, outputs) = (site.host.inputFeatures, site.host.outputFeatures)
    rank = try config.lora.rank(site.target)
    guard rank <= min(inputs, outputs) else {
      throw PEFTError(
        .invalidConfiguration,
        "'r' is \(rank), but a weight [\(outputs), \(inputs)] has only \(min(inputs, outputs)) "
          + "singular vectors", remedy: "Lower 'r', or set 'rank_pattern' for this module.")
    }
    configuredScaling = try config.lora.scaling(site.target, rank: rank)
    scaling = configuredScaling
    dropout = Dropout(config.lora.dropout, at: site)
    self.site = siteID(site.path)
    reconstruction = config.reconstruction
    let trainsFactors = !config.reconstruction.hasLatent
    a = Parameter(.zeros([rank, inputs]), isTrainable: trainsFactors)
    b = Parameter(.zeros([outputs, rank]), isTrainable: trainsFactors)
    latent =
      trainsFactors
      ? nil
      : Parameter(
        .normal(
          [rank, rank], deviation: Float(config.sigma),
          key: site.randomKey("lora_latent_mapping")))
    mark =
      config.isCompact
      ? Parameter(.zeros([Fingerprint.length + 2 * rank]), isTrainable: false) : nil
    if config.method == .edora {
      let (inner, outer, between) = (a, b, latent)
      weight = DecomposedWeight(
        magnitude: Parameter(Tensor(repeating: 1, shape: [outputs])),
        change: .init(
          a: a, outer: [b] + (latent.map { [$0] } ?? []),
          scaling: { [unowned self] in Float(self.scaling) }, aMatrix: { inner.tensor },
          outerMatrix: { Self.product(outer.tensor, between?.tensor) }),
        host: site.host, detachesNorm: config.lora.detachesNorm)
    }
    guard site.initializesFromWeight else { return }
    try computeFactors(site.parameters)
    if trainsFactors {
      a.assign(
        .normal(
          [rank, inputs], deviation: Float(config.sigma),
          key: site.randomKey("lora_A")))
    }
    mark?.assign(makeMark(site.parameters))
    // As the repository: the norm of W alone, from which R's first effect is not told apart.
    weight?.magnitude.assign(Self.norms(of: site.parameters))
  }

  /// P = B·R, or B where there is no R.
  private static func product(_ b: Tensor, _ latent: Tensor?) -> Tensor {
    // B·R = (Rᵀ as a linear layer's weight)(B).
    latent.map { linear(b, $0.transposed()) } ?? b
  }

  /// ‖W‖ of each row.
  static func norms(of parameters: HostParameters) -> Tensor {
    let squared = parameters.squaredNorms(.rows).scalars
    return Tensor(shape: [squared.count], scalars: squared.map { $0.squareRoot() })
  }

  // MARK: Initial values

  /// Sets A and B by the recipe: B's columns are left singular vectors of the weight, A's rows right
  /// ones times their singular values.
  private func computeFactors(_ parameters: HostParameters) throws(PEFTError) {
    let (inputs, outputs) = (a.shape[1], b.shape[0])
    let seed = UInt64(bitPattern: Int64(reconstruction.randomState))
    func uniform(_ shape: [Int], fanIn: Int, _ name: UInt64) -> Tensor {
      // kaiming_uniform with a = √5 is uniform in ±1/√fan_in; the repository draws the transposes.
      .uniform(
        shape, bound: 1 / Float(fanIn).squareRoot(),
        key: DropoutKey(seed: seed, stream: site &+ name))
    }
    if reconstruction.isRandom {
      a.assign(uniform([rank, inputs], fanIn: rank, 1))
      b.assign(uniform([outputs, rank], fanIn: outputs, 2))
      return
    }
    let weight = parameters.matrix.dequantized()
    let parts: Decomposition
    switch reconstruction.decomposition {
    case .exact: parts = try weight.decomposed(rank: rank)
    case .randomized(let iterations):
      parts = try weight.decomposed(
        rank: rank, oversampling: 10, iterations: iterations, seed: seed)
    }
    let a = parts.vt.scalingRows(by: Tensor(shape: [rank], scalars: parts.s))
    var b = parts.u
    if reconstruction.drawsHalfOfB {
      let first = (rank + 1) / 2
      let drawn = uniform([outputs, rank], fanIn: outputs, 3).scalars
      var values = b.scalars
      for row in 0..<outputs {
        for column in first..<rank { values[row * rank + column] = drawn[row * rank + column] }
      }
      b = Tensor(shape: [outputs, rank], scalars: values)
    }
    self.a.assign(a)
    self.b.assign(b)
  }

  private func makeMark(_ parameters: HostParameters) -> Tensor {
    Fingerprint.mark(parameters.matrix, a: a.value, b: b.value)
  }

  /// A compact file has no A and B: they are computed, and must be those that R was trained with.
  func didLoad(on parameters: HostParameters) throws(PEFTError) {
    // A model that is only described has nothing to check, or to make A and B of.
    guard let mark, parameters.matrix.hasValues else { return }
    // What was loaded says which base it is; checked before a decomposition is computed.
    guard Fingerprint.isOf(parameters.matrix, mark.value) else {
      throw PEFTError(
        .invalidAdapter,
        "the compact adapter was made for another base model: this module's weight is another one",
        remedy: "Load the base model that it was trained on, in the same precision "
          + "(--precision of the peft tool).")
    }
    try computeFactors(parameters)
    guard Fingerprint.agrees(makeMark(parameters), mark.value) else {
      throw PEFTError(
        .invalidAdapter,
        "the compact adapter's A and B cannot be made again on this machine: the decomposition of "
          + "this module's weight comes out differently",
        remedy: "Use the adapter in its full form.")
    }
  }

  /// A, B and m as those of a new layer, and R zero, or A where there is no R.
  func becomeEmpty(on parameters: HostParameters) throws(PEFTError) {
    guard parameters.matrix.hasValues else { return }
    try computeFactors(parameters)
    let between = latent ?? a
    between.assign(.zeros(between.shape))
    mark?.assign(makeMark(parameters))
    weight?.magnitude.assign(Self.norms(of: parameters))
  }

  // MARK: TunerLayer

  var parameters: [AdapterParameter] {
    var result = [
      AdapterParameter(LoRAKey.a, a, isTrained: latent == nil),
      AdapterParameter(LoRAKey.b, b, isTrained: latent == nil),
    ]
    if mark != nil {
      result[0].isStored = false
      result[1].isStored = false
    }
    if let latent {
      var parameter = AdapterParameter("lora_latent_mapping.weight", latent)
      // `default_lora_latent_mapping` without `.default`, as peft 0.10 makes it.
      parameter.separator = "_"
      parameter.otherSuffixes = ["default_lora_latent_mapping.weight"]
      result.append(parameter)
    }
    if let weight { result.append(AdapterParameter(LoRAKey.magnitude, weight.magnitude)) }
    if let mark {
      var parameter = AdapterParameter("base_fingerprint", mark, isTrained: false)
      // Numbers of 16 bits, and sums that are compared closely.
      parameter.isExact = true
      result.append(parameter)
    }
    return result
  }

  var needsBaseOutput: Bool { weight != nil }

  /// R(A(x)); a frozen A keeps nothing for gradients.
  private func low(_ x: Tensor) -> Tensor {
    guard let latent else { return linear(x, a.tensor) }
    return linear(linear(x, DenseMatrix(a.value)), latent.tensor)
  }

  func output(_ call: LayerCall) -> Tensor? {
    weight?.output(call, isDropped: dropout.key(call.context) != nil, b: b, low: low)
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .features(let x) = call.input else {
      preconditionFailure("a linear layer takes features")
    }
    let dropped = dropout(x, call.context)
    func addChange(_ direction: inout Tensor) {
      direction.addProduct(low(dropped), b.tensor, scale: Float(scaling))
    }
    guard let weight else { return addChange(&sum) }
    weight.contribute(
      call, of: .features(dropped), isDropped: dropout.key(call.context) != nil, to: &sum,
      addChange: addChange)
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    if let weight { return try weight.addDelta(rows: rows, to: &block, base: base) }
    addUpdate(rows: rows, to: &block)
  }

  /// Adds rows of s·B·R·A to a block.
  func addUpdate(rows: Range<Int>, to block: inout Tensor) {
    let outer = Self.product(b.value, latent?.value)
    block.addProduct(outer.rowRange(rows), a.value.transposed(), scale: Float(scaling))
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let own = PrintedLayers<EDoRALayer>(layers)
    let wrapper = LoRAPrinter.wrapper(
      "Linear", around: base, dropout: own.modules { LoRAPrinter.dropout($0.dropout) },
      a: own.modules { LoRAPrinter.linear($0.a.shape[1], $0.rank) },
      b: own.modules { LoRAPrinter.linear($0.rank, $0.b.shape[0]) },
      magnitude: own.modules {
        $0.weight.map { _ in PrintedModule("lora.dora.DoraLinearLayer") }
      })
    // The repository hangs each R on the module under the adapter's name.
    let latents = own.layers.filter { $0.layer.latent != nil }.map { name, layer in
      ("\(name)_lora_latent_mapping", LoRAPrinter.linear(layer.rank, layer.rank))
    }
    return PrintedModule(
      wrapper.typeName, children: wrapper.children.map { ($0.name, $0.module) } + latents)
  }
}
