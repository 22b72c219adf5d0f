import NN
import PEFTCore
import PEFTSupport
import Tensors

/// LoRA on any layer with a weight: y = base(x) + s·(B(A(dropout(x))) + b).
///
/// A is a layer of the host's kind without bias, B a linear layer, or a convolution of size 1 with
/// the host's groups. What A does to the input is the host's business (``AdapterHost/project(_:by:)``),
/// and every place of the output is a row, so one class serves them all.
final class LoRALayer: ScaledLayer {
  /// Rank of the update.
  let rank: Int
  /// s, the factor of B·A.
  var scaling: Double
  /// s as the config has it.
  let configuredScaling: Double
  /// Dropout on the input of A.
  let dropout: Dropout
  /// The dropout of the config, which peft prints on layers too that it does not apply it to.
  let configuredDropout: Dropout
  /// `[rank, inputFeatures, kernel…]`.
  let a: Parameter
  /// `[outputFeatures, rank/groups, 1…]`.
  let b: Parameter
  /// `[outputFeatures]`, `lora_bias`.
  let bias: Parameter?
  let remark: String?
  /// What the change is measured from; see ``LoRAConfig/Initialization``.
  let reference: InitialFactors.Reference?
  /// The weight that stands in for the host's.
  let standIn: (any WeightMatrix)?
  /// The shape of the convolution that the host is.
  let convolutionSettings: ConvolutionSettings?
  private let groups: Int
  private let isEmbedding: Bool

  /// Creates a layer with initial values.
  ///
  /// - Throws: ``PEFTError`` when rank or bias do not fit the host.
  init(_ site: AdapterSite, _ config: LoRAConfig) throws(PEFTError) {
    let host = site.host
    let rank = try config.rank(site.target)
    groups = host.groups
    isEmbedding = host is Embedding
    convolutionSettings = (host as? Convolution)?.settings
    guard rank % host.groups == 0 else {
      throw PEFTError(
        .invalidConfiguration,
        "Targeting a \(host.typeName) with groups=\(host.groups) and rank \(rank). Currently, "
          + "support is limited to conv layers where the rank is divisible by groups.",
        remedy: "Either choose a different rank or do not target this specific layer.")
    }
    if isEmbedding, config.usesLoRABias {
      throw PEFTError(
        .unsupported, "lora_bias=True is not supported for \(host.typeName).",
        remedy: "Set 'lora_bias' to false or do not target this layer.")
    }
    self.rank = rank
    configuredScaling = try config.scaling(site.target, rank: rank)
    scaling = configuredScaling
    let initial = try InitialFactors(site, config, rank: rank, scaling: scaling)
    reference = initial.reference
    standIn = initial.standIn
    a = Parameter(initial.a)
    b = Parameter(initial.b)
    bias = initial.bias.map { Parameter($0) }
    remark = Self.remark(host, hasBias: bias != nil)
    configuredDropout = Dropout(config.dropout, at: site)
    dropout = Self.hasDropout(site) ? configuredDropout : Dropout(0, at: site)
  }

  private static func remark(_ host: any AdapterHost, hasBias: Bool) -> String? {
    if host.groups > 1 {
      return "LoRA adapter added to ConvNd layer with groups > 1. Merging is not supported."
    }
    guard hasBias, host.parameters.bias == nil else { return nil }
    return "`lora_bias=True` was passed but the targeted layer of type \(host.typeName) has no "
      + "bias. This means that merging LoRA weights won't be possible."
  }

  /// peft applies no dropout to embeddings and to the projections of packed attention.
  private static func hasDropout(_ site: AdapterSite) -> Bool {
    !(site.host is Embedding || site.host is MultiheadAttention || site.target != site.path)
  }

  var parameters: [AdapterParameter] {
    let keys = LoRAKey.factors(ofEmbedding: isEmbedding)
    return [AdapterParameter(keys.a, a), AdapterParameter(keys.b, b)]
      + (bias.map { [AdapterParameter(LoRAKey.bias, $0)] } ?? [])
  }

  // Two matrices that act on rows of features, and nothing else.
  private var hasPlainFactors: Bool {
    !isEmbedding && convolutionSettings == nil && bias == nil && reference == nil
      && standIn == nil
  }

  func lowRankFactors(_ context: ForwardContext) -> LowRankFactors? {
    guard !context.isTraining || dropout.probability == 0, hasPlainFactors else { return nil }
    return LowRankFactors(a: a.value, b: b.value, scale: Float(scaling))
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    let input = call.input.map { dropout($0, call.context) }
    let low = call.host.project(input, by: a.tensor)
    sum.addProduct(low, bMatrix, groups: groups, scale: Float(scaling))
    if let bias { sum.addToRows(bias.tensor, scale: Float(scaling)) }
    if let reference {
      // Without dropout: it belongs to the base, from which peft takes it.
      let low = call.host.project(call.input, by: reference.a)
      sum.addProduct(low, reference.b, scale: -reference.scaling)
    }
  }

  var referenceTensors: [(suffix: String, value: Tensor)] {
    reference.map { [(LoRAKey.a, $0.a), (LoRAKey.b, $0.b)] } ?? []
  }

  func plainTensors() throws(PEFTError) -> [(suffix: String, value: Tensor)] {
    if standIn != nil {
      throw PEFTError(
        .unsupported,
        "the adapter goes with a base of rounded weights (LoftQ); it has no form for the base as it is",
        remedy: "Save it in its trained form, or merge it.")
    }
    guard let reference else { return parameters.map { ($0.suffix, $0.parameter.value) } }
    let plain = reference.plain(a: a.value, b: b.value, scaling: Float(scaling), rank: rank)
    return [(LoRAKey.a, plain.a), (LoRAKey.b, plain.b)]
  }

  /// Zeros, or what the change is measured from.
  func becomeEmpty(on parameters: HostParameters) throws(PEFTError) {
    if standIn != nil {
      throw PEFTError(
        .unsupported, "a layer of rounded weights (LoftQ) cannot be left without values",
        remedy: "Load the folder as an adapter of its own.")
    }
    a.assign(reference?.a ?? .zeros(a.shape))
    b.assign(reference?.b ?? .zeros(b.shape))
    if let bias { bias.assign(.zeros(bias.shape)) }
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    if isEmbedding {
      let columns = selectColumns(a.value, rows.map { Int32($0) })
      return block.addProduct(columns, b.value, scale: Float(scaling))
    }
    guard groups == 1 else { throw PEFTError.mergesGroups }
    // Rows of s·B·A; addProduct multiplies by a transpose, and A is small.
    block.addProduct(
      b.value.asMatrix.rowRange(rows), a.value.asMatrix.transposed(), scale: Float(scaling))
    if let reference {
      block.addProduct(
        reference.b.rowRange(rows), reference.a.transposed(), scale: -reference.scaling)
    }
  }

  /// The factors of the change with the scaling in A, without what the layer refers to.
  var change: FactoredChange {
    get throws(PEFTError) {
      let plain = try plainTensors()
      return try FactoredChange(a: plain[0].value.scaled(by: Float(scaling)), b: plain[1].value)
    }
  }

  var biasDelta: Tensor? { bias?.value.scaled(by: Float(scaling)) }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    LoRAPrinter(layers).printed(around: base)
  }
}

/// LoRA on every layer that peft adapts.
struct LoRADispatcher: Dispatcher {
  var supports: String {
    "Linear, Embedding, Conv1d, Conv2d, Conv3d, Conv1D, MultiheadAttention"
  }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard let config = site.config as? LoRAConfig else { return nil }
    switch site.host {
    case is Linear, is Embedding, is Convolution, is Conv1D, is MultiheadAttention:
      return try LoRALayer(site, config)
    default: return nil
    }
  }
}

extension PEFTError {
  /// A merge into a convolution with groups: A sees all channels, so the sum of base and change is no
  /// grouped convolution.
  package static let mergesGroups = PEFTError(
    .unsupported, "Merging is not supported for _ConvNd layers with groups > 1!",
    remedy: "Keep the adapter unmerged, or do not target this layer.")
}
