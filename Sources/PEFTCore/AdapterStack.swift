import NN
import PEFTSupport
import Tensors

extension AdapterHost {
  /// What adapters have put into the slot; `nil` for a plain layer.
  package var stack: AdapterStack? { adapters as? AdapterStack }

  /// The host's parameters without anything merged into them: what a new adapter begins from, and
  /// what files are compared with.
  package var untouched: HostParameters { stack?.untouched(self) ?? parameters }
}

/// What a host's slot holds: the layers of any number of adapters, and what else of the host they
/// train or replace: the module in full, rows of its weight, its bias.
public final class AdapterStack: HostAdapters {
  /// The host's path in the model.
  public let path: String
  /// The model's selection.
  public let selection: AdapterSelection
  /// The layers by their adapter's place in the selection.
  private var layersByPlace: [(any TunerLayer)?] = []
  /// Fully trained copies of the host's parameters, by the adapter's place.
  private var copiesByPlace: [(place: Int, parameters: HostParameters)] = []
  /// Rows of the weight that adapters train, by place.
  private var tokensByPlace: [(place: Int, rows: TokenRows)] = []
  /// The bias that an adapter trains.
  private(set) var trainedBias: TrainedBias?
  /// Names of the merged adapters.
  public var merged: [String] { mergedPlaces.map { selection.name(at: $0) } }
  private(set) var mergedPlaces: [Int] = []
  /// The host's parameters before anything was merged, while something is.
  private var original: HostParameters?

  init(path: String, selection: AdapterSelection) {
    self.path = path
    self.selection = selection
  }

  // MARK: What there is

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

  /// The rows that an adapter trains.
  func tokens(_ adapter: String) -> TokenRows? {
    selection.place(of: adapter).flatMap { tokens(at: $0) }
  }

  func layer(at place: Int) -> (any TunerLayer)? {
    place < layersByPlace.count ? layersByPlace[place] : nil
  }

  func copy(at place: Int) -> HostParameters? {
    copiesByPlace.isEmpty ? nil : copiesByPlace.first { $0.place == place }?.parameters
  }

  func tokens(at place: Int) -> TokenRows? {
    tokensByPlace.isEmpty ? nil : tokensByPlace.first { $0.place == place }?.rows
  }

  /// Whether any adapter trains rows of the weight.
  var hasTokens: Bool { !tokensByPlace.isEmpty }

  /// Whether an adapter changes the host.
  func hasContent(at place: Int) -> Bool {
    place >= 0 && (layer(at: place) != nil || tokens(at: place) != nil || hasOwnBase(at: place))
  }

  /// Whether what an adapter changes, it changes on parameters of its own.
  func hasOwnBase(at place: Int) -> Bool {
    copy(at: place) != nil || trainedBias?.place == place
  }

  /// Whether nothing is in the slot.
  public var isEmpty: Bool {
    copiesByPlace.isEmpty && tokensByPlace.isEmpty && trainedBias == nil
      && layersByPlace.allSatisfy { $0 == nil }
  }

  // MARK: Filling

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

  func add(_ rows: TokenRows, adapter: String) {
    let place = selection.takePlace(adapter)
    tokensByPlace.removeAll { $0.place == place }
    tokensByPlace.append((place, rows))
  }

  /// Lets an adapter train the host's bias.
  func trainBias(_ adapter: String, host: any AdapterHost) {
    guard let bias = untouched(host).bias else { return }
    trainedBias = TrainedBias(selection.takePlace(adapter), bias)
  }

  /// Gives the host's bias its values from before.
  func restoreBias() {
    guard let bias = trainedBias else { return }
    bias.trained.assign(bias.untrained.value)
    bias.trained.isTrainable = false
    trainedBias = nil
  }

  func remove(_ adapter: String) {
    guard let place = selection.place(of: adapter) else { return }
    if place < layersByPlace.count { layersByPlace[place] = nil }
    copiesByPlace.removeAll { $0.place == place }
    tokensByPlace.removeAll { $0.place == place }
    if trainedBias?.place == place { restoreBias() }
  }

  /// Leaves what adapters trained in full in the base: a copy, a bias.
  func keep(_ adapters: [String], host: any AdapterHost) {
    if let copy = adapters.lazy.compactMap({ self.copy($0) }).first {
      host.parameters = copy
      copy.info.forEach { $0.parameter?.isTrainable = false }
    }
    if let bias = trainedBias, adapters.contains(selection.name(at: bias.place)) {
      bias.trained.isTrainable = false
      trainedBias = nil
    }
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

  /// The host's parameters without anything merged into them.
  fileprivate func untouched(_ host: any AdapterHost) -> HostParameters {
    original ?? host.parameters
  }

  // MARK: Forward

  /// The output of the host with the active adapters.
  public func forward(
    _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    if selection.isDisabled {
      // As in peft, a trained bias is the base's own and stays.
      return host.base(input, withBias(untouched(host), for: selection.activePlaces))
    }
    if let adapters = context.sequenceAdapters {
      return forwardMixed(adapters, input, host: host, context)
    }
    return forward(selection.activePlaces, input, host: host, context)
  }

  /// The host's parameters with the bias that is right where the given adapters are in use.
  private func withBias(_ parameters: HostParameters, for active: [Int]) -> HostParameters {
    guard let trainedBias, !active.contains(trainedBias.place),
      parameters.bias?.id == trainedBias.trained.id
    else { return parameters }
    var result = parameters
    result.bias = trainedBias.untrained
    return result
  }

  /// The parameters that the given adapters see below their changes, nothing merged.
  func parameters(below active: [Int], host: any AdapterHost) -> HostParameters {
    if let copy = active.lazy.compactMap({ self.copy(at: $0) }).first { return copy }
    return withBias(untouched(host), for: active)
  }

  private func forward(
    _ active: [Int], _ input: HostInput, host: any AdapterHost, _ context: ForwardContext
  ) -> Tensor {
    let untouched = parameters(below: active, host: host)
    // What is merged is not in a copy that an active adapter trains.
    let isMerged = original != nil && !active.contains { copy(at: $0) != nil }
    let own = isMerged ? active.filter { !mergedPlaces.contains($0) } : active
    let layers = own.compactMap { layer(at: $0) }
    let rows = tokensByPlace.isEmpty ? [] : own.compactMap { tokens(at: $0) }
    if layers.count == 1, rows.isEmpty, !isMerged,
      let output = layers[0].output(call(input, nil, host, untouched, context))
    {
      return output
    }
    let standIns = layers.compactMap(\.standIn)
    var sum = baseSum(input, isMerged ? host.parameters : untouched, standIns, host)
    // Taken before trained rows and layers change the sum: a layer's change is against the untouched
    // base, and must not depend on the order.
    let base =
      layers.contains(where: \.needsBaseOutput)
      ? (isMerged || !standIns.isEmpty ? host.base(input, untouched) : sum) : nil
    for own in rows { own.replace(in: &sum, input, bias: untouched.bias, host: host) }
    for layer in layers {
      layer.contribute(
        call(input, layer.needsBaseOutput ? base : nil, host, untouched, context), to: &sum)
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
    _ input: HostInput, _ base: Tensor?, _ host: any AdapterHost, _ parameters: HostParameters,
    _ context: ForwardContext
  ) -> LayerCall {
    LayerCall(input: input, base: base, host: host, parameters: parameters, context: context)
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
      + tokensByPlace.filter { !$0.rows.isShared }.map { place, rows in
        ParameterInfo(
          "token_adapter.trainable_tokens_delta.\(selection.name(at: place))", rows.rows)
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
    if hasTokens { result = printedTokens(around: result) }
    var rest = layers
    while let first = rest.first {
      let kind = first.layer.printingKind
      let same = rest.filter { $0.layer.printingKind == kind }
      rest.removeAll { $0.layer.printingKind == kind }
      result = first.layer.printed(around: result, layers: same)
    }
    return result
  }

  /// The host with a wrapper for its trained rows, as peft prints it.
  private func printedTokens(around base: PrintedModule) -> PrintedModule {
    let shapes = tokensByPlace.map { (selection.name(at: $0.place), $0.rows.rows.shape) }
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
              ("trainable_tokens_delta", .tensors("ParameterDict", "Parameter", shapes)),
              ("trainable_tokens_original", .tensors("BufferDict", "Buffer", shapes)),
            ])
        ),
      ])
  }
}
