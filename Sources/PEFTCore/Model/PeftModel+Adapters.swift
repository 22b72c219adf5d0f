import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// Adds a new adapter; the first one becomes active.
  ///
  /// When it throws, the model is as it was before.
  ///
  /// - Parameters:
  ///   - name: Unique on this model; no dots.
  ///   - config: The settings; their type decides the method.
  ///   - seed: Seed of the initial values.
  ///   - calibration: Batches, for initial values that depend on data.
  /// - Returns: What was matched.
  /// - Throws: ``PEFTError``: the name is taken, no module matches, the config does not fit a
  ///   layer, or the method is not registered.
  @discardableResult
  public func add(
    _ name: String = "default", _ config: some TunerConfig, seed: UInt64 = 0,
    calibration: Calibration? = nil
  ) throws(PEFTError) -> TargetReport {
    try add(name, any: config, seed: seed, calibration: calibration)
  }

  /// Adds a new adapter from a config of any type; see ``add(_:_:seed:calibration:)``.
  @discardableResult
  public func add(
    _ name: String, any config: any TunerConfig, seed: UInt64, calibration: Calibration? = nil
  ) throws(PEFTError) -> TargetReport {
    try add(
      name, any: config, seed: seed, stateKeys: nil, isLoading: false, calibration: calibration)
  }

  /// The same, with sites that the keys of a state name rather than the config, and without
  /// initial values when others are to be loaded.
  ///
  /// An adapter from files begins with no data, and its references are theirs.
  func add(
    _ name: String, any config: any TunerConfig, seed: UInt64, stateKeys: [String]?,
    isLoading: Bool, calibration: Calibration? = nil, from origin: AdapterOrigin? = nil
  ) throws(PEFTError) -> TargetReport {
    try checkNewName(name)
    try config.validate()
    try config.targets.validate()
    let entry = try registry.entry(for: config.object)
    var config = config
    try checkModulesToSave(config)
    if let task = config.taskType {
      for module in try registry.taskType(task).savedModules
      where !config.modulesToSave.contains(module) {
        config.modulesToSave.append(module)
      }
    }
    if config.baseModel == nil { config.baseModel = info.nameOrPath }
    var (matched, saved) = try match(&config, entry.tuner, allowsNone: stateKeys != nil)
    var report = TargetReport()
    if let stateKeys {
      let named = try self.sites(namedBy: stateKeys)
      report.additionalInConfig = matched.filter { !named.contains($0) }.map { hosts[$0].path }
      report.additionalInState = named.filter { !matched.contains($0) }.map { hosts[$0].path }
      matched = named
    }
    let plan = try prepared(
      AdapterPlan(
        adapter: name, config: config, sites: matched.map(planSite), seed: seed,
        calibration: calibration, isLoading: isLoading || origin != nil,
        initialValues: try initialValues(at: matched, in: origin?.references)), entry.tuner)
    config = plan.config
    let planned = Dictionary(uniqueKeysWithValues: plan.sites.map { ($0.path, $0) })
    let sites = matched.filter { planned[hosts[$0].path] != nil }
    // Nothing is put on the model before everything could be made.
    var made: [(place: Int, layer: any TunerLayer)] = []
    for place in sites {
      let (path, host) = hosts[place]
      let site = AdapterSite(
        host: host, path: path, target: targetPath(place), adapter: name, config: config,
        seed: seed, parameters: planned[path]!.parameters,
        initialValues: plan.initialValues[path] ?? [:], isLoading: isLoading)
      made.append((place, try Self.makeLayer(site, entry)))
    }
    if !isLoading {
      Parameter.shareBlock(made.flatMap { $0.layer.parameters.map(\.parameter) })
    }
    for (place, layer) in made {
      stack(of: hosts[place].host, path: hosts[place].path).add(layer, adapter: name)
    }
    for place in saved {
      let (path, host) = hosts[place]
      stack(of: host, path: path).add(host.parameters.trainableCopy(), adapter: name)
    }
    records.append(
      AdapterRecord(name: name, config: config, tuner: entry.tuner, sites: sites, saved: saved))
    if records.count == 1 { selection.active = [name] }
    updateTrainability(of: [name])
    report.matched = sites.map { hosts[$0].path }
    report.saved = saved.map { hosts[$0].path }
    return report
  }

  /// The modules that an adapter changes, and those that it replaces.
  public func targetReport(of name: String) throws(PEFTError) -> TargetReport {
    let record = try record(name)
    return TargetReport(
      matched: record.sites.map { hosts[$0].path }, saved: record.saved.map { hosts[$0].path })
  }

  /// Removes an adapter; when it was the only active one, the first of the others becomes active.
  ///
  /// - Throws: ``PEFTError`` when the name is unknown or the adapter is merged.
  public func delete(_ name: String) throws(PEFTError) {
    guard records.contains(where: { $0.name == name }) else {
      throw PEFTError(.invalidAdapter, "Adapter \(name) does not exist")
    }
    if mergedAdapters.contains(name) {
      throw PEFTError(
        .invalidState, "Cannot delete adapter(s) ['\(name)'] while they are merged.",
        remedy: "Please unmerge them first.")
    }
    for (_, host) in hosts {
      guard let stack = host.adapters as? AdapterStack else { continue }
      stack.remove(name)
      if stack.isEmpty { host.adapters = nil }
    }
    let wasOnlyActive = selection.active == [name]
    records.removeAll { $0.name == name }
    selection.remove(name)
    if wasOnlyActive { selection.active = records.first.map { [$0.name] } ?? [] }
    updateTrainability(of: Set(selection.active))
  }

  /// Makes the given adapters the active ones, and their parameters the trainable ones.
  ///
  /// Merged adapters are unmerged first. No names at all leaves the plain base.
  ///
  /// - Throws: ``PEFTError`` when a name is unknown or repeated, or two of them train the same
  ///   module in full.
  public func setActive(_ names: [String]) throws(PEFTError) {
    var owners: [Int: String] = [:]
    for (place, name) in names.enumerated() {
      if names[..<place].contains(name) {
        throw PEFTError(.invalidAdapter, "the adapter '\(name)' is named twice")
      }
      for place in try record(name).saved {
        if let other = owners[place] {
          throw PEFTError(
            .invalidAdapter,
            "the adapters '\(other)' and '\(name)' both replace the module "
              + "'\(hosts[place].path)'; only one of them can be active",
            remedy: "Activate one at a time.")
        }
        owners[place] = name
      }
    }
    if !mergedAdapters.isEmpty { unmerge() }
    // Only what changes is visited: there may be hundreds of other adapters.
    let concerned = Set(selection.active).union(names).union(selection.adjusted)
    selection.active = names
    updateTrainability(of: concerned)
  }

  /// Switches all adapters off; the model then computes what the base computes.
  public func disable() { selection.isDisabled = true }

  /// Switches the active adapters on again.
  public func enable() { selection.isDisabled = false }

  /// Runs `body` with all adapters off and restores the state before.
  public func withAdaptersDisabled<Result>(_ body: () throws -> Result) rethrows -> Result {
    let before = selection.isDisabled
    selection.isDisabled = true
    defer { selection.isDisabled = before }
    return try body()
  }

  // MARK: Pieces

  func checkNewName(_ name: String) throws(PEFTError) {
    if records.contains(where: { $0.name == name }) {
      throw PEFTError(.invalidAdapter, "Adapter with name '\(name)' already exists.")
    }
    if name.isEmpty || name.contains(".") || name.contains("/") || name == "__base__" {
      throw PEFTError(
        .invalidAdapter, "'\(name)' cannot be the name of an adapter",
        remedy: "Use a name that is not empty, without '.' and '/', and not '__base__'.")
    }
  }

  /// Refuses names that no module has, unless the task merely allows for them.
  private func checkModulesToSave(_ config: any TunerConfig) throws(PEFTError) {
    let optional = try config.taskType.map { (name) throws(PEFTError) in
      try registry.taskType(name).savedModules
    }
    for name in config.modulesToSave
    where optional?.contains(name) != true
      && !hosts.contains(where: { TargetMatcher.contains($0.path, name) })
    {
      throw PEFTError(
        .noMatchingModule, "'modules_to_save': no module of the base model is named '\(name)'",
        remedy: "Please check the names and try again.")
    }
  }

  private func match(
    _ config: inout any TunerConfig, _ tuner: any Tuner.Type, allowsNone: Bool
  ) throws(PEFTError) -> (sites: [Int], saved: [Int]) {
    var selection = config.targets
    if selection.modules == nil {
      guard let targets = tuner.defaultTargets(modelType: info.modelType) else {
        throw PEFTError(
          .invalidConfiguration,
          "Please specify `target_modules` in the adapter's config: there is no default for the "
            + "model type '\(info.modelType)'")
      }
      selection.modules = targets
    }
    if selection.modules == .allLinear {
      let heads = info.outputHeads + config.modulesToSave
      selection.modules = .list(TargetMatcher.expandAllLinear(in: base, outputHeads: heads))
    }
    config.targets.modules = selection.modules
    let matcher = try TargetMatcher(selection, savedModules: config.modulesToSave)
    var sites: [Int] = []
    var excluded = 0
    let places = Dictionary(
      uniqueKeysWithValues: hosts.enumerated().map { ($0.element.path, $0.offset) })
    for (path, module) in modules {
      switch matcher.outcome(path) {
      case .matched:
        guard let place = places[path] else {
          throw PEFTError(
            .unsupported,
            "Target module \(module.typeName) is not supported. Only layers with weights can be "
              + "adapted",
            at: path, remedy: "Name the layers inside of it instead.")
        }
        sites.append(place)
      case .excluded: excluded += 1
      case .other: break
      }
    }
    let saved = hosts.indices.filter { place in
      config.modulesToSave.contains { TargetMatcher.contains(hosts[place].path, $0) }
    }
    if sites.isEmpty, !allowsNone { throw Self.noMatch(selection, excluded: excluded) }
    return (withInnerSites(sites), saved)
  }

  /// With the hosts that are adapted along with the ones around them.
  func withInnerSites(_ sites: [Int]) -> [Int] {
    sites
      + enclosing.sorted { $0.key < $1.key }
      .filter { sites.contains($0.value.owner) && !sites.contains($0.key) }.map(\.key)
  }

  private func planSite(_ place: Int) -> AdapterPlan.Site {
    let (path, host) = hosts[place]
    return AdapterPlan.Site(
      path: path, target: targetPath(place), host: host, parameters: untouched(host))
  }

  /// A host's parameters without anything merged into them.
  func untouched(_ host: any AdapterHost) -> HostParameters {
    (host.adapters as? AdapterStack)?.original ?? host.parameters
  }

  /// Lets the tuner prepare an adapter, with the other adapters off.
  private func prepared(
    _ plan: AdapterPlan, _ tuner: any Tuner.Type
  ) throws(PEFTError) -> AdapterPlan {
    var plan = plan
    let before = selection.isDisabled
    selection.isDisabled = true
    defer { selection.isDisabled = before }
    try tuner.prepare(&plan)
    return plan
  }

  private static func noMatch(_ selection: TargetSelection, excluded: Int) -> PEFTError {
    let targets: String
    switch selection.modules {
    case .list(let names): targets = "\(names.sorted())"
    case .regex(let pattern): targets = pattern
    case .allLinear, nil: targets = "all-linear"
    }
    if excluded > 0, selection.excluded != nil {
      return PEFTError(
        .noMatchingModule,
        "No modules were targeted for adaptation. This might be caused by a combination of "
          + "mismatched target modules (\(targets)) and excluded modules.",
        remedy: "Please check 'target_modules' and 'exclude_modules'.")
    }
    var message = "Target modules \(targets) not found in the base model."
    if let layers = selection.layers {
      message += " Note: You specified 'layers_to_transform': \(layers)."
      if !selection.layersPattern.isEmpty {
        message += " You also specified 'layers_pattern': \(selection.layersPattern)."
      }
    }
    return PEFTError(
      .noMatchingModule, message, remedy: "Please check the target modules and try again.")
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
      .unsupported, "Target module \(site.host.typeName) is not supported", at: site.path,
      remedy: "Currently, only the following modules are supported: \(supported).")
  }

  private func updateTrainability(of names: Set<String>) {
    selection.adjusted.subtract(names)
    for record in records where names.contains(record.name) {
      let active = selection.active.contains(record.name)
      forEachParameter(of: record) { parameter, isTrained in
        parameter.isTrainable = active && isTrained
      }
    }
  }
}
