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

  /// Whether nothing is in the slot.
  public var isEmpty: Bool { layers.isEmpty && copies.isEmpty }

  func add(_ layer: any TunerLayer, adapter: String) { layers.append((adapter, layer)) }
  func add(_ copy: HostParameters, adapter: String) { copies.append((adapter, copy)) }

  func remove(_ adapter: String) {
    layers.removeAll { $0.adapter == adapter }
    copies.removeAll { $0.adapter == adapter }
  }

  // MARK: Forward

  /// The output of the host with the active adapters.
  public func forward(
    _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    if selection.isDisabled { return host.base(input, original ?? host.parameters) }
    if let names = context.sequenceAdapters {
      return forwardMixed(names, input, host: host, context)
    }
    return forward(selection.active, input, host: host, context)
  }

  private func forward(
    _ active: [String], _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    let parameters = active.lazy.compactMap { self.copy($0) }.first ?? host.parameters
    let layers = active.filter { !self.merged.contains($0) }.compactMap { self.layer($0) }
    let standIns = layers.compactMap(\.standIn)
    var sum = baseSum(input, parameters, standIns, host)
    // Taken before any layer adds to the sum: what a layer sees must not depend on the order.
    let base =
      layers.contains(where: \.needsBaseOutput)
      ? original.map { host.base(input, $0) }
        ?? (standIns.isEmpty ? sum : host.base(input, parameters)) : nil
    for layer in layers {
      layer.contribute(
        LayerCall(
          input: input, base: layer.needsBaseOutput ? base : nil, host: host, context: context),
        to: &sum)
    }
    return sum
  }

  /// The output of the base with weights that stand in for its own: their differences add up.
  private func baseSum(
    _ input: HostInput, _ parameters: HostParameters, _ standIns: [any WeightMatrix],
    _ host: any AdapterHost
  ) -> Tensor {
    guard let first = standIns.first else { return host.base(input, parameters) }
    func output(_ weight: HostParameters.Weight, bias: Parameter? = nil) -> Tensor {
      var changed = parameters
      changed.weight = weight
      changed.bias = bias
      return host.base(input, changed)
    }
    guard merged.isEmpty else {
      let own = output((original ?? parameters).weight).scaled(by: -Float(standIns.count))
      return standIns.reduce(host.base(input, parameters) + own) { $0 + output(.matrix($1)) }
    }
    var sum = output(.matrix(first), bias: parameters.bias)
    guard standIns.count > 1 else { return sum }
    sum = sum + output(parameters.weight).scaled(by: -Float(standIns.count - 1))
    return standIns.dropFirst().reduce(sum) { $0 + output(.matrix($1)) }
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
    let base = host.base(input, original ?? host.parameters)
    // The positions of an image go with it.
    let count = input.rows
    func flat(_ x: Tensor, _ rows: Int) -> Tensor { x.reshaped([rows, x.count / max(rows, 1)]) }
    let whole = flat(base, count)
    var output = whole
    var groups: [(name: String, rows: [Int32])] = []
    for (sequence, name) in names.enumerated() where layer(name) != nil || copy(name) != nil {
      let own = rows(sequence).map { Int32($0) }
      if let place = groups.firstIndex(where: { $0.name == name }) {
        groups[place].rows += own
      } else {
        groups.append((name, own))
      }
    }
    for (name, rows) in groups {
      let part = input.selecting(rows)
      var sum: Tensor
      if let copy = copy(name) {
        sum = host.base(part, copy)
      } else if let standIn = layer(name)?.standIn, layer(name)?.needsBaseOutput == false {
        var parameters = original ?? host.parameters
        parameters.weight = .matrix(standIn)
        sum = host.base(part, parameters)
      } else {
        let shape: [Int]
        if case .images = input {
          shape = Array(base.shape.dropFirst())
        } else {
          shape = [base.columns]
        }
        sum = whole.selectRows(rows).reshaped([rows.count] + shape)
      }
      layer(name)?.contribute(
        LayerCall(input: part, base: sum, host: host, context: inner), to: &sum)
      output.replaceRows(rows, with: flat(sum, rows.count))
    }
    return output.reshaped(base.shape)
  }

  // MARK: Merging

  /// Computes the host's parameters with the given adapters merged into the untouched weight.
  ///
  /// All deltas are summed first and rounded once.
  func mergedParameters(
    _ names: [String], host: any AdapterHost, checkingFinite: Bool
  ) throws -> HostParameters? {
    let present = names.filter { layer($0) != nil }
    guard !present.isEmpty else { return nil }
    var result = original ?? host.parameters
    let base = result.matrix
    let matrix = try base.merging { rows, block in
      for name in present {
        let layer = self.layer(name)!
        try layer.addDelta(rows: rows, to: &block, base: base)
        if let standIn = layer.standIn {
          block = block + standIn.dequantized(rows: rows)
          block = block + base.dequantized(rows: rows).scaled(by: -1)
        }
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
    result.bias = try mergedBias(present, result.bias)
    // A tied weight is no longer the one that it was tied to.
    result.isTied = false
    return result
  }

  /// The host's parameters without anything merged into them.
  func untouched(_ host: any AdapterHost) -> HostParameters { original ?? host.parameters }

  private func mergedBias(_ names: [String], _ bias: Parameter?) throws(PEFTError) -> Parameter? {
    var sum: Tensor?
    for name in names {
      guard let change = layer(name)?.biasDelta else { continue }
      guard let bias else {
        throw PEFTError(
          .unsupported,
          "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.",
          at: path, remedy: "Keep the adapter '\(name)' unmerged.")
      }
      sum = (sum ?? bias.value) + change
    }
    guard let bias, let sum else { return bias }
    return Parameter(sum, isTrainable: bias.isTrainable)
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
  }

  /// `lora_A.weight` of the adapter `x` is `lora_A.x.weight` in memory, as in peft.
  static func memoryKey(_ suffix: String, _ adapter: String) -> String {
    guard let dot = suffix.firstIndex(of: ".") else { return "\(suffix).\(adapter)" }
    return "\(suffix[..<dot]).\(adapter)\(suffix[dot...])"
  }

  /// How the host prints with its adapters.
  public func printed(around base: PrintedModule) -> PrintedModule {
    var result = base
    if !copies.isEmpty {
      result = PrintedModule(
        "ModulesToSaveWrapper",
        children: [
          ("original_module", base),
          (
            "modules_to_save",
            PrintedModule("ModuleDict", children: copies.map { ($0.adapter, base) })
          ),
        ])
    }
    var rest = layers
    while let first = rest.first {
      let kind = type(of: first.layer)
      let same = rest.filter { type(of: $0.layer) == kind }
      rest.removeAll { type(of: $0.layer) == kind }
      result = first.layer.printed(around: result, layers: same)
    }
    return result
  }
}
