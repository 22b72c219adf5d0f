import NN
import PEFTSupport
import Tensors

/// What a host's slot holds: the layers of any number of adapters, and modules trained in full.
public final class AdapterStack: HostAdapters {
  /// The host's path in the model.
  public let path: String
  /// The model's selection.
  public let selection: AdapterSelection
  /// The layers by their adapter's place in the selection.
  private var layersByPlace: [(any TunerLayer)?] = []
  /// Fully trained copies of the host's parameters, by the adapter's place.
  private var copiesByPlace: [(place: Int, parameters: HostParameters)] = []
  /// Names of the merged adapters.
  public var merged: [String] { mergedPlaces.map { selection.name(at: $0) } }
  private var mergedPlaces: [Int] = []
  /// The host's parameters before anything was merged, while something is.
  private(set) var original: HostParameters?

  init(path: String, selection: AdapterSelection) {
    self.path = path
    self.selection = selection
  }

  /// The layers, in the order in which their adapters were added.
  public var layers: [(adapter: String, layer: any TunerLayer)] {
    selection.order.compactMap { place in
      layer(at: place).map { (selection.name(at: place), $0) }
    }
  }

  /// Fully trained copies of the host's parameters, by adapter.
  public var copies: [(adapter: String, parameters: HostParameters)] {
    copiesByPlace.map { (selection.name(at: $0.place), $0.parameters) }
  }

  /// The layer of an adapter.
  public func layer(_ adapter: String) -> (any TunerLayer)? {
    selection.place(of: adapter).flatMap { layer(at: $0) }
  }

  /// The fully trained copy of an adapter.
  public func copy(_ adapter: String) -> HostParameters? {
    selection.place(of: adapter).flatMap { copy(at: $0) }
  }

  func layer(at place: Int) -> (any TunerLayer)? {
    place < layersByPlace.count ? layersByPlace[place] : nil
  }

  func copy(at place: Int) -> HostParameters? {
    copiesByPlace.isEmpty ? nil : copiesByPlace.first { $0.place == place }?.parameters
  }

  /// Whether nothing is in the slot.
  public var isEmpty: Bool { copiesByPlace.isEmpty && layersByPlace.allSatisfy { $0 == nil } }

  /// Puts a layer into the slot, in place of the adapter's layer if it has one.
  func add(_ layer: any TunerLayer, adapter: String) {
    let place = selection.takePlace(adapter)
    while layersByPlace.count <= place { layersByPlace.append(nil) }
    layersByPlace[place] = layer
  }

  func add(_ copy: HostParameters, adapter: String) {
    let place = selection.takePlace(adapter)
    copiesByPlace.removeAll { $0.place == place }
    copiesByPlace.append((place, copy))
  }

  func remove(_ adapter: String) {
    guard let place = selection.place(of: adapter) else { return }
    if place < layersByPlace.count { layersByPlace[place] = nil }
    copiesByPlace.removeAll { $0.place == place }
  }

  // MARK: Forward

  /// The output of the host with the active adapters.
  public func forward(
    _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    if selection.isDisabled { return host.base(input, original ?? host.parameters) }
    if let adapters = context.sequenceAdapters {
      return forwardMixed(adapters, input, host: host, context)
    }
    return forward(selection.activePlaces, input, host: host, context)
  }

  private func forward(
    _ active: [Int], _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    let copy = active.lazy.compactMap { self.copy(at: $0) }.first
    let layers = active.compactMap { mergedPlaces.contains($0) ? nil : layer(at: $0) }
    if layers.count == 1, copy == nil, original == nil,
      let output = layers[0].output(call(input, nil, host, context))
    {
      return output
    }
    let parameters = copy ?? host.parameters
    let standIns = layers.compactMap(\.standIn)
    var sum = baseSum(input, parameters, standIns, host)
    // Taken before any layer adds to the sum: what a layer sees must not depend on the order.
    let base =
      layers.contains(where: \.needsBaseOutput)
      ? original.map { host.base(input, $0) }
        ?? (standIns.isEmpty ? sum : host.base(input, parameters)) : nil
    for layer in layers {
      layer.contribute(call(input, layer.needsBaseOutput ? base : nil, host, context), to: &sum)
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
    guard mergedPlaces.isEmpty else {
      let own = output((original ?? parameters).weight).scaled(by: -Float(standIns.count))
      return standIns.reduce(host.base(input, parameters) + own) { $0 + output(.matrix($1)) }
    }
    var sum = output(.matrix(first), bias: parameters.bias)
    guard standIns.count > 1 else { return sum }
    sum = sum + output(parameters.weight).scaled(by: -Float(standIns.count - 1))
    return standIns.dropFirst().reduce(sum) { $0 + output(.matrix($1)) }
  }

  func call(
    _ input: HostInput, _ base: Tensor?, _ host: any AdapterHost, _ context: ForwardContext
  ) -> LayerCall {
    LayerCall(
      input: input, base: base, host: host, parameters: original ?? host.parameters,
      context: context)
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
        do {
          try layer.addDelta(rows: rows, to: &block, base: base)
        } catch let error as PEFTError { throw error.located(at: self.path) }
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
    mergedPlaces = names.compactMap { selection.place(of: $0) }
    host.parameters = parameters
  }

  /// Restores the untouched parameters, which were kept.
  func unmerge(host: any AdapterHost) {
    if let original { host.parameters = original }
    original = nil
    mergedPlaces = []
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
