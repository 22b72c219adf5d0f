import NN
import PEFTSupport

extension PeftModel {
  /// Decides what an adapter goes to, and completes its config as peft does: default targets,
  /// `all-linear` as a list, long lists shortened, tied layers.
  ///
  /// - Parameter origin: Keys of a state, or another adapter, may decide in the config's place which
  ///   layers are adapted.
  func plan(
    _ config: inout any TunerConfig, _ tuner: any Tuner.Type, _ origin: AdapterOrigin
  ) throws(PEFTError) -> TargetPlan {
    var plan = TargetPlan()
    plan.warnings = config.remarks
    let tying = tie(&config, &plan)
    var selection = config.targets
    if selection.modules == nil {
      selection.modules = tuner.defaultTargets(modelType: info.modelType)
      if selection.modules == nil, config.targetParameters.isEmpty {
        throw PEFTError(
          .invalidConfiguration,
          "Please specify `target_modules` or `target_parameters`in `peft_config`",
          remedy: "There is no default for the model type '\(info.modelType)'.")
      }
    }
    if selection.modules == .allLinear {
      let heads = info.outputHeads + config.modulesToSave
      selection.modules = .list(TargetMatcher.expandAllLinear(in: base, outputHeads: heads))
    }
    let names = modules.dropFirst().map(\.path)
    if selection.modules != .regex("") {
      try MinimalTargets.shorten(&selection, modules: names)
    }
    config.targets.modules = selection.modules
    let counts = try match(config, tuner, tying, &plan)
    try matchParameters(config, &plan)
    switch origin.layers {
    case .targeted: try check(config, counts, &plan)
    case .named(let keys): try restrict(&plan, to: keys)
    case .like(let sites): plan.sites = sites
    }
    addInnerSites(&plan)
    try matchSaved(config, tying, origin.fileKeys, &plan)
    try matchTokens(config, &plan)
    plan.warnings += config.remarks(matching: plan.sites.map(\.path))
    return plan
  }

  private func match(
    _ config: any TunerConfig, _ tuner: any Tuner.Type, _ tying: WeightTying,
    _ plan: inout TargetPlan
  ) throws(PEFTError) -> (excluded: Int, unmatched: Int) {
    let matcher = try TargetMatcher(config.targets, savedModules: config.modulesToSave)
    let unreachable = tuner.unreachableModules(modelType: info.modelType)
    var counts = (excluded: 0, unmatched: 0)
    var tied: [TargetPlan.Site] = []
    for (path, module) in modules.dropFirst() {
      if tying.targets, let place = tying.places.first(where: { hosts[$0].path == path }) {
        tied.append(
          TargetPlan.Site(place: place, path: path, prefix: path, tiedTo: tying.embedding))
        continue
      }
      switch matcher.outcome(path) {
      case .matched:
        let last = TargetMatcher.lastComponent(path)
        if unreachable.contains(last) {
          throw PEFTError(
            .unsupported,
            "[PEFT:PeftType.\(tuner.peftType)] Module '\(last)' is incompatible with Mamba-based "
              + "models (model_type='\(info.modelType)'). Incompatible modules: "
              + "\(PythonText.set(unreachable)). Please remove it from `target_modules` to avoid "
              + "compatibility issues.", at: path)
        }
        guard let place = places[path] else {
          throw PEFTError(
            .unsupported,
            "Target module \(module.printed.text) is not supported. Only layers with weights can "
              + "be adapted.", at: path, remedy: "Name the layers inside of it instead.")
        }
        plan.sites.append(TargetPlan.Site(place: place, path: path, prefix: path))
      case .excluded: counts.excluded += 1
      case .other: counts.unmatched += 1
      }
    }
    plan.sites += tied
    return counts
  }

  /// Replaces the sites that the config names by those for which a state has tensors.
  private func restrict(_ plan: inout TargetPlan, to keys: [String]) throws(PEFTError) {
    let all = try sites(namedBy: keys)
    let planned = plan.sites
    // What is inside of a layer that is adapted comes with it.
    let named = all.filter { place in
      enclosing[place].map { !all.contains($0.owner) } ?? true
    }
    plan.additionalInConfig = planned.filter { !named.contains($0.place) }.map(\.path)
    plan.sites = named.map { place in
      if let site = planned.first(where: { $0.place == place }) { return site }
      let path = hosts[place].path
      plan.additionalInState.append(path)
      return TargetPlan.Site(place: place, path: path, prefix: path)
    }
  }

  /// Adds the layers that are adapted along with the one around them.
  private func addInnerSites(_ plan: inout TargetPlan) {
    let owners = Set(plan.sites.map(\.place))
    for (place, outer) in enclosing.sorted(by: { $0.key < $1.key })
    where owners.contains(outer.owner) {
      plan.sites.removeAll { $0.place == place }
      let path = hosts[outer.owner].path
      plan.sites.append(
        TargetPlan.Site(
          place: place, path: path, prefix: "\(FileKey.inside(path)).\(outer.name)"))
    }
  }

  private func matchParameters(
    _ config: any TunerConfig, _ plan: inout TargetPlan
  ) throws(PEFTError) {
    let wanted = Set(config.targetParameters)
    if wanted.isEmpty { return }
    func isWanted(_ name: String) -> Bool {
      wanted.contains { TargetMatcher.ends(name, with: $0) }
    }
    for (path, module) in modules {
      // The parameter that is declared last is wrapped last, and so is outermost.
      var own: [TargetPlan.Site] = []
      for (name, _) in module.weightHosts where isWanted(path.isEmpty ? name : "\(path).\(name)") {
        if path.isEmpty {
          throw PEFTError(
            .unsupported,
            "Targeting an nn.Parameter on the top-level module is not supported (parameter "
              + "'\(name)').", remedy: "Put the parameter into a module of the model.")
        }
        let full = "\(path).\(name)"
        own.append(
          TargetPlan.Site(place: places[full]!, path: full, prefix: path, parameter: name))
      }
      if let host = module as? any AdapterHost, let place = places[path], !path.isEmpty {
        for parameter in host.untouched.info where isWanted("\(path).\(parameter.name)") {
          let full = "\(path).\(parameter.name)"
          if plan.sites.contains(where: { $0.place == place }) {
            throw PEFTError(
              .invalidConfiguration,
              "Trying to wrap an `nn.Parameter` of layer '\(path)' of type \(module.typeName), "
                + "which is not a valid target. Make sure that this layer is not also targeted "
                + "with `target_modules`. For some models, PEFT will do this automatically, try "
                + "setting `target_modules=[]` to prevent it.", at: path)
          }
          guard parameter.shape.count == 2 || parameter.shape.count == 3 else {
            throw PEFTError(
              .unsupported,
              "lora.ParamWrapper was initialized with \(parameter.shape.count) dimensional "
                + "Parameter, but only 2d and 3d are supported.", at: full)
          }
          own.append(
            TargetPlan.Site(
              place: place, path: full, prefix: path, parameter: parameter.name))
        }
      }
      for (depth, index) in own.indices.reversed().enumerated() {
        for _ in 0..<depth { own[index].prefix = FileKey.inside(own[index].prefix) }
      }
      plan.sites += own
    }
  }

  /// Finds the hosts below the modules that are trained in full. Names are whole components;
  /// peft goes by the ends of names and so takes more, and its files then hold more.
  private func matchSaved(
    _ config: any TunerConfig, _ tying: WeightTying, _ stored: Set<String>?,
    _ plan: inout TargetPlan
  ) throws(PEFTError) {
    let names = config.modulesToSave
    if names.isEmpty { return }
    for (path, module) in modules.dropFirst() {
      let isNamed = names.contains { TargetMatcher.ends(path, with: $0) }
      let isInFile =
        stored.map { keys in
          names.contains { path.hasSuffix($0) } && !plan.sites.contains { $0.path == path }
            && ["weight", "bias"].contains { keys.contains(FileKey.key("\(path).\($0)")) }
        } ?? false
      guard isNamed || isInFile else { continue }
      if ["ModuleList", "ModuleDict", "ParameterList", "ParameterDict"].contains(module.typeName) {
        throw PEFTError(
          .unsupported,
          "modules_to_save cannot be applied to modules of type \(module.typeName)", at: path,
          remedy: "Name the modules inside of it.")
      }
      plan.savedPaths.append(path)
    }
    for (place, (path, host)) in hosts.enumerated()
    where plan.savedPaths.contains(where: { path == $0 || path.hasPrefix($0 + ".") }) {
      if let stack = host.stack, !stack.layers.isEmpty {
        throw PEFTError(
          .invalidConfiguration,
          "modules_to_save cannot be applied to modules of type lora.\(host.typeName)", at: path,
          remedy: "The adapter '\(stack.layers[0].adapter)' changes this module.")
      }
      if host is any WeightHost {
        throw PEFTError(
          .unsupported, "a parameter that no layer holds cannot be trained in full", at: path,
          remedy: "Adapt it by 'target_parameters' instead.")
      }
      plan.saved.append(place)
    }
    for site in plan.sites where plan.saved.contains(site.place) {
      throw PEFTError(
        .invalidConfiguration,
        "modules_to_save cannot be applied to modules of type lora.\(hosts[site.place].host.typeName)",
        at: site.path, remedy: "The module is also a target.")
    }
    if tying.saves {
      plan.savedTies = tying.places.map { ($0, tying.embedding) }
      plan.savedPaths += tying.places.map { hosts[$0].path }
    }
  }

  /// peft's outcome where nothing was matched, or only a part.
  private func check(
    _ config: any TunerConfig, _ counts: (excluded: Int, unmatched: Int), _ plan: inout TargetPlan
  ) throws(PEFTError) {
    let selection = config.targets
    let targets = PythonText.targets(selection.modules)
    var isEmpty = false
    switch selection.modules {
    case nil: isEmpty = true
    case .list(let names): isEmpty = names.isEmpty
    case .regex(let pattern): isEmpty = pattern.isEmpty
    case .allLinear: break
    }
    if plan.sites.isEmpty {
      let message: String
      if counts.excluded > 0, counts.unmatched == 0 {
        message =
          "All modules were excluded. This is likely unintended. Check your `target_modules`, "
          + "`exclude_modules` and `modules_to_save` configuration."
      } else if counts.excluded == 0, isEmpty {
        message =
          "No `target_modules` passed but also no `target_parameters` found. Please check the "
          + "values for these arguments."
      } else if counts.excluded == 0 {
        message =
          "Target modules \(targets) not found in the base model. Please check the target modules "
          + "and try again." + selection.layersNote
      } else {
        message =
          "No modules were targeted for adaptation. This might be caused by a combination of "
          + "mismatched target modules and excluded modules. Please check your `target_modules` "
          + "and `exclude_modules` configuration. You may also have only targeted modules that "
          + "are marked to be saved (`modules_to_save`)." + selection.layersNote
      }
      // peft's words, which do not always name the targets.
      let notes = [
        message.contains(targets) ? nil : "'target_modules' is \(targets).", selection.listNote,
      ].compactMap { $0 }
      throw PEFTError(
        .noMatchingModule, message,
        remedy: notes.isEmpty ? nil : notes.joined(separator: " "))
    }
    let parameters = plan.sites.filter { $0.parameter != nil }
    var excludes = false
    switch selection.excluded {
    case .list(let names): excludes = !names.isEmpty
    case .regex(let pattern): excludes = !pattern.isEmpty
    default: break
    }
    if excludes, counts.excluded == 0 {
      plan.warnings.append(
        "You have passed exclude_modules=\(PythonText.targets(selection.excluded)) but no modules "
          + "were excluded. Please check that exclude_modules was set correctly.")
    } else if !isEmpty, parameters.count == plan.sites.count {
      plan.warnings.append("target_modules=\(targets) were set but no module was matched.")
    } else if !config.targetParameters.isEmpty, parameters.isEmpty {
      plan.warnings.append(
        "target_parameters=\(PythonText.list(config.targetParameters)) were set but no parameter "
          + "was matched.")
    }
  }

  /// Entries of the config's lists that matched nothing.
  func unmatched(_ config: any TunerConfig, _ plan: TargetPlan) -> [String] {
    var names = config.targetParameters
    if case .list(let modules) = config.targets.modules { names += modules }
    return names.filter { name in
      !plan.sites.contains { TargetMatcher.ends($0.path, with: name) }
    }
  }
}
