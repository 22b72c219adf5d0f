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
    try add(name, any: config, seed: seed, from: AdapterOrigin(), calibration: calibration)
  }

  /// Adds an adapter where another one is: the config alone does not tell which layers a state was put
  /// on, nor which modules a file had in full.
  ///
  /// - Parameters:
  ///   - name: Unique on this model.
  ///   - config: The settings.
  ///   - other: The adapter whose layers and modules it gets.
  ///   - isLoading: Whether all values are given next, so that initial ones need not be computed.
  /// - Throws: ``PEFTError`` as ``add(_:_:seed:calibration:)``; the model is then as it was before.
  package func add(
    _ name: String, any config: any TunerConfig, like other: String, isLoading: Bool
  ) throws(PEFTError) {
    let origin = AdapterOrigin(
      layers: .like(try record(other).layout), fileKeys: Set(try tensors(of: other).map(\.key)),
      existed: true, isLoading: isLoading)
    _ = try add(name, any: config, seed: 0, from: origin)
  }

  /// The same, with values that come from elsewhere.
  func add(
    _ name: String, any config: any TunerConfig, seed: UInt64, from origin: AdapterOrigin,
    calibration: Calibration? = nil
  ) throws(PEFTError) -> TargetReport {
    warnings = []
    try checkNewName(name)
    try config.validate()
    try config.targets.validate()
    let entry = try registry.entry(for: config.object)
    try checkAgainstOthers(config)
    if case .named = origin.layers, !config.targetParameters.isEmpty {
      throw PEFTError(
        .unsupported,
        "Trying to inject a PEFT adapter from a state_dict but the PEFT config uses "
          + "`target_parameters`. This is not supported -- when using `target_parameters`, please "
          + "inject the adapter without the state_dict.")
    }
    var config = config
    if origin.fileKeys == nil { try checkModulesToSave(config) }
    for module in try taskModules(config) where !config.modulesToSave.contains(module) {
      config.modulesToSave.append(module)
    }
    if config.baseModel == nil { config.baseModel = info.nameOrPath }
    let undo = try replicateLayers(config.layerReplication)
    do {
      var plan = try plan(&config, entry.tuner, origin)
      let prepared = try prepare(
        AdapterPlan(
          adapter: name, config: config, sites: plan.sites.map(planned), seed: seed,
          calibration: calibration, isLoading: origin.isLoading || origin.existed,
          initialValues: try initialValues(at: plan.sites, in: origin.references)), entry.tuner)
      config = prepared.config
      plan.keep(prepared.sites.map(\.path), among: hosts.map(\.path))
      // Nothing is put on the model before everything could be made.
      let layers = try makeLayers(
        plan.sites, config, name, seed, entry, initialValues: prepared.initialValues,
        isLoading: origin.isLoading)
      if !origin.isLoading {
        Parameter.shareBlock(
          layers.flatMap { $0.layer.parameters.filter { !$0.isTransposed }.map(\.parameter) })
      }
      plan.warnings += layers.compactMap { $0.layer.remark }
      install(plan, layers, config, entry.tuner, as: name)
      warnings += plan.warnings
    } catch {
      undo()
      throw error
    }
    return records[records.count - 1].report
  }

  /// The modules that an adapter changes, and those that it replaces.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func targetReport(of name: String) throws(PEFTError) -> TargetReport {
    try record(name).report
  }

  /// Removes an adapter; when it was the only active one, the first of the others becomes active.
  ///
  /// - Throws: ``PEFTError`` when the name is unknown or the adapter is merged.
  public func delete(_ name: String) throws(PEFTError) {
    warnings = []
    guard records.contains(where: { $0.name == name }) else {
      throw PEFTError(.invalidAdapter, "Adapter \(name) does not exist", remedy: namesNote)
    }
    if mergedAdapters.contains(name) {
      throw PEFTError(
        .invalidState, "Cannot delete adapter(s) ['\(name)'] while they are merged.",
        remedy: "Please unmerge them first.")
    }
    let wasActive = selection.active
    takeOff(name)
    // What was decided about the others stays unless others are active now.
    guard wasActive.contains(name) else { return }
    if wasActive == [name], let next = records.first?.name {
      selection.active = [next]
      warnings.append(
        "Adapter \(name) was active which is now deleted. Setting active adapter to \(next).")
      // Others keep what ``setTrainable(_:_:)`` made of them.
      updateTrainability(of: [next])
    }
  }

  private func takeOff(_ name: String) {
    for (_, host) in hosts {
      guard let stack = host.stack else { continue }
      stack.remove(name)
      if stack.isEmpty { host.adapters = nil }
    }
    records.removeAll { $0.name == name }
    selection.remove(name)
  }

  /// Adds an adapter and gives it its values; when they do not fit, it is taken off again.
  ///
  /// - Parameters:
  ///   - name: Unique on this model.
  ///   - config: Its settings.
  ///   - origin: Where its values come from.
  ///   - path: The file of the settings, which errors about them name.
  ///   - fill: Gives the values.
  func add<Result>(
    _ name: String, any config: any TunerConfig, from origin: AdapterOrigin, path: String? = nil,
    fill: () throws(PEFTError) -> Result
  ) throws(PEFTError) -> (target: TargetReport, filled: Result) {
    let wasReplicated = isReplicated
    let target: TargetReport
    do {
      target = try add(name, any: config, seed: 0, from: origin)
    } catch {
      throw path.map { error.located(at: $0) } ?? error
    }
    do throws(PEFTError) { return (target, try fill()) } catch {
      takeOff(name)
      if !wasReplicated, isReplicated { undoReplication() }
      throw error
    }
  }

  /// Makes the given adapters the active ones, and their parameters the trainable ones.
  ///
  /// Merged adapters are unmerged first. No names at all leaves the plain base.
  ///
  /// - Parameters:
  ///   - names: The adapters.
  ///   - isInference: Whether nothing is to be trained.
  /// - Throws: ``PEFTError`` when a name is unknown or repeated, or two of them train the same
  ///   module in full, or rows of the same embedding.
  public func setActive(_ names: [String], isInference: Bool = false) throws(PEFTError) {
    warnings = []
    for (place, name) in names.enumerated() {
      if names[..<place].contains(name) {
        throw PEFTError(
          .invalidAdapter, "the adapter '\(name)' is named twice",
          remedy: "Name every adapter once.")
      }
      _ = try record(name)
    }
    try checkSharing(names)
    if !mergedAdapters.isEmpty {
      unmerge()
      warnings = ["Adapter cannot be set when the model is merged. Unmerging the model first."]
    }
    // Only what changes is visited: there may be hundreds of other adapters.
    let concerned = Set(selection.active).union(names).union(selection.adjusted)
    selection.active = names
    for index in records.indices where names.contains(records[index].name) {
      records[index].isTrained = !isInference
    }
    updateTrainability(of: concerned)
  }

  /// Refuses adapters that replace the same module or the same embedding's rows.
  private func checkSharing(_ names: [String]) throws(PEFTError) {
    guard names.count > 1 else { return }
    let concerned = records.filter { names.contains($0.name) }
    var counts: [String: Int] = [:]
    for record in concerned {
      let paths = record.savedPaths + record.tokens.map { hosts[$0].path }
      for path in Set(paths) { counts[path, default: 0] += 1 }
    }
    guard let path = modules.lazy.map(\.path).first(where: { counts[$0, default: 0] > 1 }),
      let count = counts[path]
    else { return }
    throw PEFTError(
      .invalidAdapter,
      "Only one adapter can be set at a time for \(printed(path: path).text), got \(count)",
      remedy: "They replace the same module '\(path)': activate one at a time.")
  }

  /// Switches all adapters off; the model then computes what the base computes, but for biases
  /// that an adapter trains.
  public func disable() {
    warnings = biasWarnings
    selection.isDisabled = true
  }

  /// What is to be known where adapters are switched off: biases of the base that an active adapter
  /// trains stay as they are, as in peft.
  public var biasWarnings: [String] {
    records.filter { selection.active.contains($0.name) && $0.config.bias != .none }.map {
      "Careful, disabling adapter layers with bias configured to be '\($0.config.bias.rawValue)' "
        + "does not produce the same output as the base model would without adaption."
    }
  }

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

  private func planned(_ site: TargetPlan.Site) -> AdapterPlan.Site {
    let (path, host) = hosts[site.place]
    return AdapterPlan.Site(
      path: path, target: site.path, host: host, parameters: host.untouched)
  }

  /// Lets the tuner prepare an adapter, with the other adapters off.
  private func prepare(
    _ plan: AdapterPlan, _ tuner: any Tuner.Type
  ) throws(PEFTError) -> AdapterPlan {
    var plan = plan
    let before = selection.isDisabled
    selection.isDisabled = true
    defer { selection.isDisabled = before }
    try tuner.prepare(&plan)
    return plan
  }

  /// What the adapters of a model have to agree on.
  private func checkAgainstOthers(_ config: any TunerConfig) throws(PEFTError) {
    if config.bias != .none, let other = records.first(where: { $0.config.bias != .none }) {
      throw PEFTError(
        .invalidConfiguration,
        "LoraModel supports only 1 adapter with bias. When using multiple adapters, set bias to "
          + "'none' for all adapters.", remedy: "The adapter '\(other.name)' trains biases already."
      )
    }
    let parameters = config.targetParameters.sorted()
    if parameters.isEmpty { return }
    for record in records {
      let others = record.config.targetParameters.sorted()
      if others.isEmpty || others == parameters { continue }
      throw PEFTError(
        .invalidConfiguration,
        "When using multiple adapters with `target_parameters`, all adapters must target the same "
          + "set of parameters, but got \(PythonText.list(parameters)) for the new adapter and "
          + "\(PythonText.list(others)) for adapter '\(record.name)'.")
    }
  }

  func checkNewName(_ name: String) throws(PEFTError) {
    if records.contains(where: { $0.name == name }) {
      throw PEFTError(
        .invalidAdapter, "Adapter with name '\(name)' already exists.",
        remedy: "Choose another name, or delete that adapter first.")
    }
    if "lora_".contains(name) {
      warnings.append(
        "Adapter name '\(name)' should not be contained in the prefix 'lora_'. This may lead to "
          + "reinitialization of the adapter weights during loading.")
    }
    if name.isEmpty || name.contains(".") || name.contains("/") || name == "__base__" {
      throw PEFTError(
        .invalidAdapter, "'\(name)' cannot be the name of an adapter",
        remedy: "Use a name that is not empty, without '.' and '/', and not '__base__'.")
    }
  }

  /// The modules that the task of a config saves in full.
  func taskModules(_ config: any TunerConfig) throws(PEFTError) -> [String] {
    guard let task = config.taskType else { return [] }
    return try registry.taskType(task).savedModules
  }

  /// Refuses names that no module has, unless the task merely allows for them.
  private func checkModulesToSave(_ config: any TunerConfig) throws(PEFTError) {
    let optional = try taskModules(config)
    for name in config.modulesToSave
    where !optional.contains(name)
      && !hosts.contains(where: { TargetMatcher.contains($0.path, name) })
    {
      throw PEFTError(
        .noMatchingModule, "'modules_to_save': no module of the base model is named '\(name)'",
        remedy: "Please check the names and try again.")
    }
  }
}
