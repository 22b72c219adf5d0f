import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// The layers of a plan; nothing is put on the model.
  func makeLayers(
    _ plan: TargetPlan, _ config: any TunerConfig, _ name: String, _ seed: UInt64,
    _ entry: TunerRegistry.Entry
  ) throws(PEFTError) -> [(place: Int, layer: any TunerLayer)] {
    var made: [(place: Int, layer: any TunerLayer)] = []
    for planned in plan.sites {
      var site = AdapterSite(
        host: hosts[planned.place].host, path: planned.path, adapter: name, config: config,
        seed: seed)
      site.parameter = planned.parameter
      if let other = planned.tiedTo { site.tied = made.first { $0.place == other }?.layer }
      made.append((planned.place, try Self.makeLayer(site, entry)))
    }
    return made
  }

  private static func makeLayer(
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
    func stack(at place: Int) -> AdapterStack {
      self.stack(of: hosts[place].host, path: hosts[place].path)
    }
    for (place, layer) in layers { stack(at: place).add(layer, adapter: name) }
    for place in plan.saved {
      stack(at: place).add(hosts[place].host.parameters.trainableCopy(), adapter: name)
    }
    for (place, other) in plan.savedTies {
      guard let copy = stack(at: other).copy(name) else { continue }
      stack(at: place).add(
        HostParameters(
          weight: copy.weight, bias: hosts[place].host.parameters.bias, isTied: false),
        adapter: name)
    }
    for (place, indices, other) in plan.tokens {
      if let other, let rows = stack(at: other).tokens(name) {
        stack(at: place).add(TokenRows(sharing: rows), adapter: name)
      } else {
        let base = hosts[place].host.parameters.matrix
        stack(at: place).add(TokenRows(indices, of: base), adapter: name)
      }
    }
    let saved = plan.saved + plan.savedTies.map(\.place)
    let biases = biasPlaces(config.bias, plan)
    for place in biases { stack(at: place).trainBias(name, host: hosts[place].host) }

    var record = AdapterRecord(
      name: name, config: config, tuner: tuner, sites: plan.sites.map(\.place), saved: saved)
    for site in plan.sites where site.prefix != hosts[site.place].path {
      record.prefixes[site.place] = site.prefix
    }
    record.savedPaths = plan.savedPaths
    record.tokens = plan.tokens.map(\.place)
    record.biases = biases
    record.isTrained = !config.isInference
    record.report = TargetReport(
      matched: plan.sites.map(\.path), saved: saved.sorted().map { hosts[$0].path },
      savedModules: plan.savedPaths, unmatched: unmatched(config, plan), warnings: plan.warnings)
    records.append(record)
    if records.count == 1 { selection.active = [name] }
    updateTrainability()
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

  func updateTrainability() {
    for record in records {
      let active = selection.active.contains(record.name) && record.isTrained
      forEachParameter(of: record) { parameter, isTrained in
        parameter.isTrainable = active && isTrained
      }
    }
  }

  // MARK: Replicated layers

  /// Puts the model's stack of layers together anew, unless it already is as the config wants it.
  ///
  /// - Returns: Puts the stack back as it was before the call.
  func replicateLayers(_ ranges: [Range<Int>]) throws(PEFTError) -> () -> Void {
    if ranges.isEmpty || replication?.ranges == ranges { return {} }
    if !records.isEmpty || replication != nil {
      throw PEFTError(
        .invalidState,
        "'layer_replication' \(ranges.map { [$0.lowerBound, $0.upperBound] }) differs from that "
          + "of the adapters that the model has", remedy: "Remove the other adapters first.")
    }
    guard
      let stack = modules.lazy.compactMap({ $0.module as? any ReplicatesLayers }).first
    else {
      throw PEFTError(
        .unsupported,
        "Could not locate the layers attribute in the model. Expected Llama, Bert or Falcon "
          + "compatible architectures.")
    }
    if let range = ranges.first(where: { $0.lowerBound < 0 || $0.upperBound > stack.layerCount }) {
      throw PEFTError(
        .invalidConfiguration,
        "'layer_replication': [\(range.lowerBound), \(range.upperBound)] is out of bounds for "
          + "\(stack.layerCount) layers")
    }
    let undo = stack.replicateLayers(ranges.flatMap { Array($0) })
    replication = (ranges, undo)
    listModules()
    return { self.undoReplication() }
  }

  func undoReplication() {
    replication?.undo()
    replication = nil
    listModules()
  }
}
