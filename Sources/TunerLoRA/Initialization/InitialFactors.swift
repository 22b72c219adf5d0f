import NN
import PEFTCore
import PEFTSupport
import Tensors

/// What a layer begins with.
struct InitialFactors {
  /// A, `[r, in]`, for a convolution `[r, in, kernel…]`.
  var a: Tensor
  /// B, `[out, r]`, for a convolution `[out, r/groups, 1…]`.
  var b: Tensor
  /// The bias of B, `[out]`, where the settings ask for one.
  var bias: Tensor?
  /// What the change of the weight is measured from; `nil` for zero.
  var reference: Reference?
  /// A weight in the place of the base's.
  var standIn: (any WeightMatrix)?

  /// s·B₀·A₀, which peft takes out of the base weight.
  struct Reference {
    /// A₀, `[r, in]`.
    let a: Tensor
    /// B₀, `[out, r]`.
    let b: Tensor
    /// s when the adapter was new, whatever it is scaled by later.
    let scaling: Float
  }

  init(a: Tensor, b: Tensor) {
    self.a = a
    self.b = b
  }

  /// The initial values of a layer.
  ///
  /// - Parameters:
  ///   - site: The place.
  ///   - config: The settings.
  ///   - rank: r.
  ///   - scaling: s.
  /// - Throws: ``PEFTError`` when the layer, the rank or missing data do not allow for it.
  init(
    _ site: AdapterSite, _ config: LoRAConfig, rank: Int, scaling: Double
  ) throws(PEFTError) {
    let initialization = config.initialization
    let isLinear = site.host.kernelShape.isEmpty && !(site.host is Embedding)
    if !isLinear { try initialization.checkWithoutWeight(site.host) }
    let kind = isLinear ? initialization : initialization.withoutWeight
    // A file's values take the place of those that nothing is measured from; and a model that is
    // only described has no weights to begin from.
    if kind.isPlainProduct ? site.isLoading : !site.parameters.matrix.hasValues {
      self = Self.zeros(site, rank, hasBias: config.usesLoRABias)
      return
    }
    switch kind {
    case .standard, .gaussian, .random:
      self = Self.plain(
        site, initialization.withoutWeight, rank, hasBias: config.usesLoRABias)
    case .orthogonal: self = try Self.orthogonal(site, rank)
    case .eva:
      self = Self.plain(site, .standard, rank, hasBias: false)
      if let a = site.initialValues[LoRAKey.a] { self.a = a }
    case .loftq(let settings):
      self = try Self.loftq(Self.weight(site), settings, rank, scaling)
    case .pissa, .randomizedPiSSA, .olora:
      if let given = try Self.given(site, rank) {
        self = given
      } else {
        self = try Self.decomposed(site, initialization, rank, scaling)
      }
    case .corda, .loraGA:
      guard let given = try Self.given(site, rank) else {
        throw Self.noInitialValues(initialization)
      }
      self = given
    }
    if isLinear, initialization.hasReference {
      reference = Reference(a: a, b: b, scaling: Float(scaling))
    }
  }

  /// Both factors, where the tuner's preparation or a file has them.
  private static func given(
    _ site: AdapterSite, _ rank: Int
  ) throws(PEFTError) -> InitialFactors? {
    guard let a = site.initialValues[LoRAKey.a], let b = site.initialValues[LoRAKey.b]
    else { return nil }
    let (inputs, outputs) = (site.host.inputFeatures, site.host.outputFeatures)
    // A weight has no more singular vectors.
    let count = min(rank, inputs, outputs)
    guard a.shape == [count, inputs], b.shape == [outputs, count] else {
      throw PEFTError(
        .shapeMismatch,
        "the initial values of A and B have the shapes \(a.shape) and \(b.shape), "
          + "\([count, inputs]) and \([outputs, count]) were expected",
        remedy: "Name the folder of the adapter that the training began with.")
    }
    return InitialFactors(a: a, b: b)
  }

  /// From the weight alone.
  private static func decomposed(
    _ site: AdapterSite, _ initialization: LoRAConfig.Initialization, _ rank: Int, _ scaling: Double
  ) throws(PEFTError) -> InitialFactors {
    switch initialization {
    case .olora: return try olora(weight(site), rank)
    case .randomizedPiSSA(let iterations):
      return try pissa(
        weight(site), rank, scaling, iterations: iterations, seed: siteID(site.path))
    default: return try pissa(weight(site), rank, scaling)
    }
  }

  private static func weight(_ site: AdapterSite) -> any WeightMatrix { site.parameters.matrix }

  private static func noInitialValues(_ initialization: LoRAConfig.Initialization) -> PEFTError {
    let name = initialization.json.string ?? ""
    return PEFTError(
      .missingTensor,
      "the adapter's changes are measured from initial values ('init_lora_weights': '\(name)') that "
        + "came from data and are not in its folder",
      remedy: "Name the folder of the initial adapter, or have peft convert the adapter to plain "
        + "LoRA (path_initial_model_for_weight_conversion). If the base model is the residual one, "
        + "set 'init_lora_weights' to true.")
  }
}

extension InitialFactors.Reference {
  /// The base weight less s·B₀·A₀ in its own format: what peft leaves of the base.
  func residual(of base: any WeightMatrix) throws -> any WeightMatrix {
    let transposed = a.transposed()
    return try base.merging { rows, block in
      block.addProduct(b.rowRange(rows), transposed, scale: -scaling)
    }
  }
}
