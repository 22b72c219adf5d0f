import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// The layers of planned sites; nothing is put on the model.
  func makeLayers(
    _ sites: [TargetPlan.Site], _ config: any TunerConfig, _ name: String, _ seed: UInt64,
    _ entry: TunerRegistry.Entry, initialValues: [String: [String: Tensor]] = [:],
    isLoading: Bool
  ) throws(PEFTError) -> [(place: Int, layer: any TunerLayer)] {
    var made: [(place: Int, layer: any TunerLayer)] = []
    made.reserveCapacity(sites.count)
    for planned in sites {
      let (path, host) = hosts[planned.place]
      var site = AdapterSite(
        host: host, path: path, target: planned.path, adapter: name, config: config, seed: seed,
        parameters: host.untouched, initialValues: initialValues[path] ?? [:],
        isLoading: isLoading)
      site.parameter = planned.parameter
      if let other = planned.tiedTo { site.tied = made.first { $0.place == other }?.layer }
      made.append((planned.place, try Self.makeLayer(site, entry)))
    }
    return made
  }

  static func makeLayer(
    _ site: AdapterSite, _ entry: TunerRegistry.Entry
  ) throws(PEFTError) -> any TunerLayer {
    do {
      for dispatcher in entry.dispatchers {
        if let layer = try dispatcher.makeLayer(for: site) { return layer }
      }
    } catch {
      throw error.located(at: site.path)
    }
    let supported = entry.dispatchers.map(\.supports).joined(separator: ", ")
    throw PEFTError(
      .unsupported,
      "Target module \(site.host.printed.text) is not supported. Currently, only the following "
        + "modules are supported: \(supported).", at: site.path)
  }

  /// Puts an adapter on the model.
  func install(
    _ plan: TargetPlan, _ layers: [(place: Int, layer: any TunerLayer)],
    _ config: any TunerConfig, _ tuner: any Tuner.Type, as name: String
  ) {
    _ = selection.takePlace(name)
    func stack(at place: Int) -> AdapterStack {
      self.stack(of: hosts[place].host, path: hosts[place].path)
    }
    for (place, layer) in layers { stack(at: place).add(layer, adapter: name) }
    for place in plan.saved {
      stack(at: place).add(hosts[place].host.untouched.trainableCopy(), adapter: name)
    }
    for (place, other) in plan.savedTies {
      guard let copy = stack(at: other).copy(name) else { continue }
      let own = hosts[place].host.untouched
      stack(at: place).add(
        HostParameters(weight: copy.weight, bias: own.bias, form: own.form, names: own.names),
        adapter: name)
    }
    for (place, indices, other) in plan.tokens {
      if let other, let rows = stack(at: other).tokens(name) {
        stack(at: place).add(TokenRows(sharing: rows), adapter: name)
      } else {
        let base = hosts[place].host.untouched.matrix
        stack(at: place).add(TokenRows(indices, of: base), adapter: name)
      }
    }
    let saved = plan.saved + plan.savedTies.map(\.place)
    let biases = biasPlaces(config.bias, plan)
    for place in biases { stack(at: place).trainBias(name, host: hosts[place].host) }

    var record = AdapterRecord(name: name, config: config, tuner: tuner)
    record.layout = shared(plan.sites, \.layout)
    record.saved = saved
    record.savedPaths = plan.savedPaths
    record.tokens = plan.tokens.map(\.place)
    record.biases = biases
    record.isTrained = !config.isInference
    record.report = shared(
      TargetReport(
        // A layer inside of another one comes under the path that was targeted.
        matched: plan.sites.filter { $0.parameter != nil || $0.path == hosts[$0.place].path }
          .map(\.path),
        saved: saved.sorted().map { hosts[$0].path },
        savedModules: plan.savedPaths, unmatched: unmatched(config, plan), warnings: plan.warnings,
        additionalInConfig: plan.additionalInConfig, additionalInState: plan.additionalInState),
      \.report)
    records.append(record)
    if records.count == 1 { selection.active = [name] }
    updateTrainability(of: [name])
  }

  /// A description in the memory of the last adapter's, where that is the same: there may be
  /// hundreds of adapters of the same layers.
  private func shared<Value: Equatable>(
    _ value: Value, _ part: KeyPath<AdapterRecord, Value>
  ) -> Value {
    guard let other = records.last?[keyPath: part], other == value else { return value }
    return other
  }

  private func biasPlaces(_ kind: BiasTraining, _ plan: TargetPlan) -> [Int] {
    switch kind {
    case .none: return []
    case .adaptedOnly:
      return plan.sites.map(\.place).filter { hosts[$0].host.parameters.bias != nil }.sorted()
    case .all:
      return hosts.indices.filter { place in
        hosts[place].host.parameters.bias != nil && !plan.saved.contains(place)
      }
    }
  }

  func updateTrainability(of names: Set<String>) {
    selection.adjusted.subtract(names)
    for record in records where names.contains(record.name) {
      let active = selection.active.contains(record.name) && record.isTrained
      forEachParameter(of: record) { parameter, isTrained in
        parameter.isTrainable = active && isTrained
      }
    }
  }
}
