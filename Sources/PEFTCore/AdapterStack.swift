import NN
import PEFTSupport
import Tensors

/// Which adapters of a model are in use; one object is shared by all slots of the model, so
/// switching does not visit the layers.
public final class AdapterSelection {
  /// Names of the active adapters in the order in which they were chosen.
  public internal(set) var active: [String] = []
  /// Whether all adapters are switched off.
  public internal(set) var isDisabled = false
}

/// What a host's slot holds: the layers of any number of adapters, and modules trained in full.
public final class AdapterStack: HostAdapters {
  /// The host's path in the model.
  public let path: String
  /// The model's selection.
  public let selection: AdapterSelection
  /// The layers, in the order in which they were added.
  public private(set) var layers: [(adapter: String, layer: any TunerLayer)] = []
  /// Fully trained copies of the host's parameters, by adapter.
  public private(set) var copies: [(adapter: String, parameters: HostParameters)] = []
  /// Names of the merged adapters.
  public private(set) var merged: [String] = []
  /// Rows of the weight that adapters train.
  private(set) var tokens: [(adapter: String, rows: TokenRows)] = []
  /// Base weights that came with adapters and differ from the model's own.
  private(set) var replacements: [(adapter: String, weight: any WeightMatrix)] = []
  /// The bias that an adapter trains.
  private(set) var trainedBias: TrainedBias?
  private var original: HostParameters?

  init(path: String, selection: AdapterSelection) {
    self.path = path
    self.selection = selection
  }

  /// The layer of an adapter.
  public func layer(_ adapter: String) -> (any TunerLayer)? {
    layers.first { $0.adapter == adapter }?.layer
  }

  /// The fully trained copy of an adapter.
  public func copy(_ adapter: String) -> HostParameters? {
    copies.first { $0.adapter == adapter }?.parameters
  }

  /// The rows that an adapter trains.
  func tokens(_ adapter: String) -> TokenRows? { tokens.first { $0.adapter == adapter }?.rows }

  /// Whether nothing is in the slot.
  public var isEmpty: Bool {
    layers.isEmpty && copies.isEmpty && tokens.isEmpty && replacements.isEmpty
      && trainedBias == nil
  }

  func add(_ layer: any TunerLayer, adapter: String) { layers.append((adapter, layer)) }
  func add(_ copy: HostParameters, adapter: String) { copies.append((adapter, copy)) }
  func add(_ rows: TokenRows, adapter: String) { tokens.append((adapter, rows)) }

  func replaceBase(by weight: any WeightMatrix, adapter: String) {
    replacements.removeAll { $0.adapter == adapter }
    replacements.append((adapter, weight))
  }

  /// Lets an adapter train the host's bias.
  func trainBias(_ adapter: String, host: any AdapterHost) {
    if let bias = host.parameters.bias { trainedBias = TrainedBias(adapter, bias) }
  }

  /// Gives the host's bias its values from before.
  func restoreBias() {
    guard let bias = trainedBias else { return }
    bias.trained.assign(bias.untrained.value)
    bias.trained.isTrainable = false
    trainedBias = nil
  }

  func remove(_ adapter: String) {
    layers.removeAll { $0.adapter == adapter }
    copies.removeAll { $0.adapter == adapter }
    tokens.removeAll { $0.adapter == adapter }
    replacements.removeAll { $0.adapter == adapter }
    if trainedBias?.adapter == adapter { restoreBias() }
  }

  /// Leaves what an adapter trained in the base: its copy, its bias.
  func keep(_ adapters: [String], host: any AdapterHost) {
    if let copy = adapters.lazy.compactMap({ self.copy($0) }).first {
      host.parameters = copy
      copy.info.forEach { $0.parameter?.isTrainable = false }
    }
    if let bias = trainedBias, adapters.contains(bias.adapter) {
      bias.trained.isTrainable = false
      trainedBias = nil
    }
  }

  // MARK: Forward

  /// The output of the host with the active adapters.
  public func forward(
    _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    if selection.isDisabled {
      // As in peft, a trained bias is the base's own and stays.
      return host.base(
        input, withBias(original ?? host.parameters, for: selection.active, host: host))
    }
    if let names = context.sequenceAdapters {
      return forwardMixed(names, input, host: host, context)
    }
    return forward(selection.active, input, host: host, context)
  }

  /// The host's parameters with the bias that is right where the given adapters are in use.
  private func withBias(
    _ parameters: HostParameters, for active: [String], host: any AdapterHost
  ) -> HostParameters {
    guard let trainedBias, !active.contains(trainedBias.adapter),
      parameters.bias?.id == trainedBias.trained.id
    else { return parameters }
    var result = parameters
    result.bias = trainedBias.untrained
    return result
  }

  /// The parameters that the given adapters see below their changes, nothing merged.
  private func unmerged(_ active: [String], host: any AdapterHost) -> HostParameters {
    if let copy = active.lazy.compactMap({ self.copy($0) }).first { return copy }
    var result = withBias(original ?? host.parameters, for: active, host: host)
    let replacement = active.lazy.compactMap { name in
      self.replacements.first { $0.adapter == name }
    }.first
    if let replacement { result.weight = .matrix(replacement.weight) }
    return result
  }

  private func forward(
    _ active: [String], _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    let parameters =
      original == nil
      ? unmerged(active, host: host)
      : active.lazy.compactMap { self.copy($0) }.first ?? host.parameters
    var sum = host.base(input, parameters)
    let others = active.lazy.filter { !self.merged.contains($0) }
    for rows in others.compactMap({ self.tokens($0) }) {
      rows.replace(in: &sum, input, bias: parameters.bias)
    }
    let layers = others.compactMap { self.layer($0) }
    // Taken before any layer adds to the sum: what a layer sees must not depend on the order.
    let base =
      layers.contains(where: \.needsBaseOutput)
      ? original.map { host.base(input, $0) } ?? sum : nil
    for layer in layers {
      layer.contribute(
        LayerCall(
          input: input, base: layer.needsBaseOutput ? base : nil, host: host, context: context),
        to: &sum)
    }
    return sum
  }

  /// Each sequence with its own adapter: rows of one adapter are computed together.
  private func forwardMixed(
    _ names: [String], _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    let layout = context.sequences
    let perRow = input.rows == layout.rows
    precondition(
      names.count == layout.count && (perRow || input.rows == layout.count),
      "\(names.count) adapters for \(layout.count) sequences and \(input.rows) rows")
    func rows(_ sequence: Int) -> Range<Int> {
      perRow ? layout.range(sequence) : sequence..<sequence + 1
    }
    var inner = context
    inner.sequenceAdapters = nil
    // Merged adapters are in no one's share: each sequence gets its own and nothing else.
    let base = host.base(input, unmerged([], host: host))
    var output = base
    var groups: [(name: String, rows: [Int32])] = []
    for (sequence, name) in names.enumerated() where contains(name) {
      let own = rows(sequence).map { Int32($0) }
      if let place = groups.firstIndex(where: { $0.name == name }) {
        groups[place].rows += own
      } else {
        groups.append((name, own))
      }
    }
    for (name, rows) in groups {
      let part: Tensor
      switch input {
      case .features(let x):
        part = forwardPart(name, .features(x.selectRows(rows)), rows, base, host, inner)
      case .tokenIDs(let ids):
        let own = rows.map { ids[Int($0)] }
        part = forwardPart(name, .tokenIDs(own), rows, base, host, inner)
      case .expert(let x, let index):
        part = forwardPart(
          name, .expert(x.selectRows(rows), index: index), rows, base, host, inner)
      }
      output.replaceRows(rows, with: part)
    }
    return output
  }

  /// Whether an adapter changes the host.
  func contains(_ adapter: String) -> Bool {
    layer(adapter) != nil || copy(adapter) != nil || tokens(adapter) != nil
      || trainedBias?.adapter == adapter || replacements.contains { $0.adapter == adapter }
  }

  private func forwardPart(
    _ name: String, _ input: HostInput, _ rows: [Int32], _ base: Tensor,
    _ host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    let hasOwnBase =
      copy(name) != nil || trainedBias?.adapter == name
      || replacements.contains { $0.adapter == name }
    let parameters = unmerged([name], host: host)
    var base = hasOwnBase ? host.base(input, parameters) : base.selectRows(rows)
    tokens(name)?.replace(in: &base, input, bias: parameters.bias)
    var sum = base
    layer(name)?.contribute(
      LayerCall(input: input, base: base, host: host, context: context), to: &sum)
    return sum
  }

  // MARK: Merging

  /// Computes the host's parameters with the given adapters merged into the untouched weight.
  ///
  /// All deltas are summed first and rounded once.
  func mergedParameters(
    _ names: [String], host: any AdapterHost, checkingFinite: Bool
  ) throws -> HostParameters? {
    let present = names.filter { layer($0) != nil || tokens($0) != nil }
    guard !present.isEmpty else { return nil }
    var result = unmerged(present.filter { copy($0) == nil }, host: host)
    let base = result.matrix
    let bias = try mergedBias(present, result.bias)
    let rowsOf = present.compactMap { tokens($0) }
    var taken: Set<Int32> = []
    for name in present {
      guard let indices = tokens(name)?.indices else { continue }
      guard taken.isDisjoint(with: indices) else {
        throw PEFTError(
          .invalidAdapter,
          "Token indices of adapter \(name) are already defined and would result in undefined "
            + "merging behavior. Only disjunct token indices are currently supported.",
          at: path)
      }
      taken.formUnion(indices)
    }
    let matrix = try base.merging { rows, block in
      for own in rowsOf { own.replace(in: &block, rows: rows) }
      for name in present {
        try self.layer(name)?.addDelta(rows: rows, to: &block, base: base)
      }
      if checkingFinite, !block.allFinite {
        throw PEFTError(
          .numericalFailure,
          "NaNs detected in the merged weights. The adapter "
            + "\(present.joined(separator: ", ")) seems to be broken",
          at: self.path)
      }
    }
    result.weight = .matrix(matrix)
    result.bias = bias
    // A tied weight is no longer the one that it was tied to.
    result.isTied = false
    return result
  }

  private func mergedBias(_ names: [String], _ bias: Parameter?) throws(PEFTError) -> Parameter? {
    let deltas = names.compactMap { layer($0)?.biasDelta }
    guard let first = deltas.first else { return bias }
    guard let bias else {
      throw PEFTError(
        .unsupported,
        "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.",
        at: path)
    }
    let sum = deltas.dropFirst().reduce(first) { $0 + $1 }
    return Parameter(bias.value + sum, isTrainable: false)
  }

  func setMerged(_ names: [String], _ parameters: HostParameters, host: any AdapterHost) {
    if original == nil { original = host.parameters }
    merged = names
    host.parameters = parameters
  }

  /// Restores the untouched parameters, which were kept.
  func unmerge(host: any AdapterHost) {
    if let original { host.parameters = original }
    original = nil
    merged = []
  }

  // MARK: Description

  /// The parameters that belong to this module itself.
  public var ownParameters: [ParameterInfo] {
    layers.flatMap { adapter, layer in
      layer.parameters.map { ParameterInfo(Self.memoryKey($0.suffix, adapter), $0.parameter) }
    }
      + copies.flatMap { adapter, parameters in
        parameters.info.compactMap { info in
          info.parameter.map { ParameterInfo("modules_to_save.\(adapter).\(info.name)", $0) }
        }
      }
      + tokens.filter { !$0.rows.isShared }.map { adapter, rows in
        ParameterInfo("token_adapter.trainable_tokens_delta.\(adapter)", rows.rows)
      }
  }

  /// `lora_A.weight` of the adapter `x` is `lora_A.x.weight` in memory, as in peft.
  static func memoryKey(_ suffix: String, _ adapter: String) -> String {
    guard let dot = suffix.firstIndex(of: ".") else { return "\(suffix).\(adapter)" }
    return "\(suffix[..<dot]).\(adapter)\(suffix[dot...])"
  }

  /// How the host prints with its adapters.
  public func printed(around base: PrintedModule) -> PrintedModule {
    var result = base
    if !tokens.isEmpty { result = printedTokens(around: result) }
    var rest = layers
    while let first = rest.first {
      let kind = type(of: first.layer)
      let same = rest.filter { type(of: $0.layer) == kind }
      rest.removeAll { type(of: $0.layer) == kind }
      result = first.layer.printed(around: result, layers: same)
    }
    return result
  }

  /// The host with a wrapper for its trained rows, as peft prints it.
  private func printedTokens(around base: PrintedModule) -> PrintedModule {
    let shapes = tokens.map { ($0.adapter, $0.rows.rows.shape) }
    return PrintedModule(
      "TrainableTokensWrapper",
      children: [
        ("original_module", PrintedModule("None")),
        (
          "token_adapter",
          PrintedModule(
            "TrainableTokensLayer",
            children: [
              ("base_layer", base),
              (
                "trainable_tokens_delta",
                .tensors("ParameterDict", "Parameter", shapes)
              ),
              ("trainable_tokens_original", .tensors("BufferDict", "Buffer", shapes)),
            ])
        ),
      ])
  }
}
