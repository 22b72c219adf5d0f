import NN
import PEFTCore
import PEFTSupport
import Tensors

/// LoRA on some of the parts of a fused projection, loralib's `MergedLinear`.
///
/// The output is cut into `enable_lora.count` equal parts, as queries, keys and values of one
/// matrix. Every enabled part has an update of its own: rows of A and B belong to the parts in
/// order, and a part of B sees its part of A alone.
final class FusedLayer: LowRankLayer, ScaledLayer {
  /// Rank of each part's update.
  let rank: Int
  /// s, the factor of B·A.
  var scaling: Double
  /// s as the config has it.
  let configuredScaling: Double
  /// Dropout on the input of A.
  let dropout: Dropout
  /// `[enabled · rank, inputFeatures]`.
  let a: Parameter
  /// `[enabled · partWidth, rank]`.
  let b: Parameter
  /// First output of each enabled part.
  private let starts: [Int]
  private let partWidth: Int
  private let outputs: Int

  /// Creates a layer with initial values.
  ///
  /// - Throws: ``PEFTError`` when the parts do not fit the host.
  init(_ site: AdapterSite, _ config: LoRAConfig) throws(PEFTError) {
    let (host, parts) = (site.host, config.enabledParts)
    guard host.outputFeatures % parts.count == 0 else {
      throw PEFTError(
        .invalidConfiguration,
        "'enable_lora': \(parts.count) parts of \(host.outputFeatures) outputs; the length of "
          + "enable_lora must divide out_features",
        remedy: "List the parts of this layer, or do not target it.")
    }
    rank = try config.rank(site.target)
    configuredScaling = try config.scaling(site.target, rank: rank)
    scaling = configuredScaling
    outputs = host.outputFeatures
    partWidth = outputs / parts.count
    let width = partWidth
    starts = parts.indices.filter { parts[$0] }.map { $0 * width }
    dropout = Dropout(config.dropout, at: site)
    let aShape = [starts.count * rank, host.inputFeatures]
    let bShape = [starts.count * partWidth, rank]
    if site.isLoading {
      // A file's values take their place.
      a = Parameter(.zeros(aShape))
      b = Parameter(.zeros(bShape))
      return
    }
    let initial = InitialFactors.drawn(
      site, config.initialization, rank, a: aShape, b: bShape)
    a = Parameter(initial.a)
    b = Parameter(initial.b)
  }

  var parameters: [AdapterParameter] {
    [AdapterParameter(LoRAKey.a, a), AdapterParameter(LoRAKey.b, b)]
  }

  /// With B as if all parts saw all of A: the change is no product of A and B themselves.
  var change: FactoredChange {
    get throws(PEFTError) {
      try FactoredChange(
        a: a.value.scaled(by: Float(scaling)),
        b: Self.expanded(b.value, rank: rank, starts: starts, outputs: outputs))
    }
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    let input = call.input.map { dropout($0, call.context) }
    let low = call.host.project(input, by: a.tensor)
    sum.addProduct(
      low, b.tensor, groups: starts.count, starts: starts, scale: Float(scaling))
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    let expanded = Self.expanded(
      b.value, rank: rank, starts: starts, outputs: outputs
    ).rowRange(rows)
    block.addProduct(expanded, a.value.transposed(), scale: Float(scaling))
  }

  /// B with the columns of all parts, `[outputs, enabled · rank]`, zero where a part does not
  /// reach: with it, B·A is an ordinary low-rank update.
  static func expanded(_ b: Tensor, rank: Int, starts: [Int], outputs: Int) -> Tensor {
    let width = starts.count * rank
    let partWidth = b.rows / max(starts.count, 1)
    var result = Tensor.zeros([outputs, width])
    let values = b.slice
    result.withMutableSlice { target in
      for (part, start) in starts.enumerated() {
        for row in 0..<partWidth {
          let source = (part * partWidth + row) * rank
          let place = (start + row) * width + part * rank
          target[place..<place + rank].copy(from: values[source..<source + rank])
        }
      }
    }
    return result
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let own = PrintedLayers<FusedLayer>(layers)
    return PrintedModule(
      "lora.MergedLinear",
      children: [
        ("base_layer", base),
        ("lora_dropout", own.modules { LoRAPrinter.dropout($0.dropout) }),
        (
          "lora_A",
          own.modules { LoRAPrinter.linear($0.a.shape[1], $0.a.shape[0]) }
        ),
        (
          "lora_B",
          own.modules { layer in
            let groups = layer.starts.count
            let settings = ConvolutionSettings(
              groups * layer.rank, groups * layer.partWidth, kernel: [1], groups: groups)
            return PrintedModule("Conv1d", attributes: settings.attributes(bias: false))
          }
        ),
      ])
  }
}

/// LoRA on the parts of fused linear layers, for configs that name parts.
struct FusedDispatcher: Dispatcher {
  var supports: String { "Linear and Conv1D with 'enable_lora'" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard let config = site.config as? LoRAConfig, !config.enabledParts.isEmpty else {
      return nil
    }
    guard site.host is Linear || site.host is Conv1D else {
      throw PEFTError(
        .unsupported, "'enable_lora' is for fused linear layers, not for \(site.host.typeName)",
        remedy: "Do not target this layer, or remove the key.")
    }
    return try FusedLayer(site, config)
  }
}

extension PeftModel {
  /// Adds an adapter that computes the same as one with `enable_lora`, in the form of plain LoRA,
  /// which peft and every server of adapters can read: its rank is the sum of the parts' ranks,
  /// and B is zero where a part does not reach.
  ///
  /// When it throws, the model is as it was before.
  ///
  /// - Parameters:
  ///   - adapter: An adapter whose config has ``LoRAConfig/enabledParts``.
  ///   - name: The new adapter's name.
  /// - Throws: ``PEFTError``: `invalidAdapter` for unknown names, a name that is taken, or an
  ///   adapter without parts.
  public func expandParts(of adapter: String, as name: String) throws(PEFTError) {
    guard let config = try config(adapter) as? LoRAConfig, let plain = config.withoutParts else {
      throw PEFTError(
        .invalidAdapter, "the adapter '\(adapter)' has no parts ('enable_lora')",
        remedy: "It can be saved as it is.")
    }
    let sources = try tensors(of: adapter)
    try add(name, plain)
    let targets = Dictionary(
      uniqueKeysWithValues: try tensors(of: name).map { ($0.key, $0.parameter) })
    for source in sources {
      guard let target = targets[source.key] else { continue }
      let value = source.parameter.value
      if value.shape == target.shape {
        target.assign(value)
      } else {
        let parts = config.enabledParts
        let width = target.shape[0] / parts.count
        target.assign(
          FusedLayer.expanded(
            value, rank: value.columns,
            starts: parts.indices.filter { parts[$0] }.map { $0 * width },
            outputs: target.shape[0]))
      }
    }
  }
}
