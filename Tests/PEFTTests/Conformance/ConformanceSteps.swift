import Models
import PEFT
import Testing

@testable import PEFTCore

extension ConformanceRun {
  /// Makes one call and compares its outcome.
  func perform(_ call: String, _ step: JSONValue, _ index: Int, _ place: String) throws {
    let value = step["value"]
    switch call {
    case "model", "tree": try use(step)
    case "wrap", "add":
      if call == "wrap" { peft = wrap() }
      let config = try config(step["config"])
      try peft.add(name(step), any: config, seed: 0)
      expectWarnings(peft.warnings, step, place)
    case "inject":
      peft = peft ?? wrap()
      isInjected = true
      let keys = step["keys"].map { names($0) }
      _ = try InjectedAdapters(in: base, modelType: info.modelType, registry: .standard).inject(
        try config(step["config"]), as: name(step), stateKeys: keys)
      peft = wrap()
    case "delete":
      try peft.delete(name(step))
      expectWarnings(peft.warnings, step, place)
    case "activate":
      try peft.setActive(names(step["adapters"]), isInference: step["inference_mode"] == true)
      expectWarnings(peft.warnings, step, place)
    case "combine":
      let kind = try Combination.Kind(name: step["combination_type"]?.string ?? "svd")
      let weights = (step["weights"]?.array ?? []).compactMap(\.double)
      try peft.combine(
        names(step["adapters"]), weights: weights, into: name(step),
        Combination(
          kind, density: step["density"]?.double, svdRank: step["svd_rank"]?.int,
          compatibility: .peft))
    case "add_other_method":
      let members = JSONObject([("peft_type", step["peft_type"] ?? .null)])
      try peft.add(name(step), any: try TunerRegistry.standard.config(members), seed: 0)
    case "set_scale", "scale_layer", "unscale_layer":
      try scale(call, step["arguments"]?.array ?? [])
      try lookAtScalings(step, place)
    case "set_requires_grad":
      let wanted = step["adapters"]?.string.map { [$0] } ?? names(step["adapters"])
      try peft.setTrainable(wanted, step["requires_grad"] == true)
    case "set":
      let prefix = "\(step["state"]?.string ?? "")."
      let table = try TensorTable(
        try data.weights.names.filter { $0.hasPrefix(prefix) }.map {
          (String($0.dropFirst(prefix.count)), try data.weights.tensor($0))
        })
      let report = try peft.setState(
        table, of: name(step), form: isInjected ? .injected : .file)
      #expect(report.missing.isEmpty && report.unexpected.isEmpty, "\(place): \(report)")
      snapshot = try peft.state(of: name(step), embeddings: .never)
    case "set_state": try setState(step, place)
    case "forward": try compute(step, index, place)
    case "generate": try generate(step, place)
    case "forward_disabled":
      expectWarnings(peft.biasWarnings, step, place)
      try peft.withAdaptersDisabled { try compute(step, index, place) }
    case "loss": try classify(step, place)
    case "compare": compare(step, place)
    case "differs":
      let active = try withoutGradients { try output() }
      let plain = try peft.withAdaptersDisabled { try withoutGradients { try output() } }
      let error = zip(active.scalars, plain.scalars).map { abs($0 - $1) }.max() ?? 0
      #expect((error > 1e-4) == (value == true), "\(place)")
    case "disable": peft.disable()
    case "enable": peft.enable()
    case "merge":
      let names = step["adapters"]?.isNull == false ? names(step["adapters"]) : nil
      try peft.merge(names, safe: step["safe"] == true)
      expectWarnings(peft.warnings, step, place)
    case "unmerge":
      peft.unmerge()
      expectWarnings(peft.warnings, step, place)
    case "unload": peft.unload()
    case "merge_and_unload":
      if let adapters = step["adapters"], !adapters.isNull { try peft.setActive(names(adapters)) }
      try peft.mergeAndUnload(safe: step["safe"] == true)
      expectWarnings(peft.warnings, step, place)
    case "save", "load", "load_more", "load_goldens", "edit", "remove", "hotswap", "save_initial":
      try performOnFiles(call, step, place)
    default: try look(call, step, place)
    }
  }

  /// Compares what can be seen.
  private func look(_ call: String, _ step: JSONValue, _ place: String) throws {
    let value = step["value"] ?? .null
    switch call {
    case "configurations": #expect(peft.adapterNames == names(value), "\(place)")
    case "adapters":
      #expect(peft.adapterNames == names(value["all"]), "\(place)")
      #expect(peft.activeAdapters == names(value["active"]), "\(place)")
    case "targets":
      // peft names the layer of an adapted parameter.
      let layers = Set(base.namedModules().map(\.path))
      let found = try peft.targetReport(of: name(step)).matched.map { path in
        layers.contains(path) ? path : path.split(separator: ".").dropLast().joined(separator: ".")
      }
      #expect(Set(found) == Set(names(value)), "\(place)")
    case "targeted_module_names":
      let found = try peft.adapterNames.map { try peft.targetReport(of: $0).matched }
      #expect(Set(found.flatMap { $0 }) == Set(names(value)), "\(place)")
    case "ranks": try lookAtRanks(value, step, place)
    case "scaling": try lookAtScalings(step, place)
    case "layers":
      for (path, wanted) in value.object?.members ?? [] {
        let path = path.replacing(".base_layer.", with: ".")
        let host = try #require(self.host(path), "\(place): \(path)")
        #expect(peft.printed(path: path).typeName == wanted["printed"]?.string, "\(place): \(path)")
        #expect(host.inputFeatures == wanted["in_features"]?.int, "\(place): \(path)")
        #expect(host.outputFeatures == wanted["out_features"]?.int, "\(place): \(path)")
      }
    case "state_keys":
      let found = try peft.state(of: name(step), form: isInjected ? .injected : .file).names
      #expect(Set(found) == Set(names(value)), "\(place)")
    case "trainable":
      let found = base.namedParameters().filter(\.info.isTrainable).map { Self.common($0.name) }
      #expect(Set(found) == Set(names(value).map(Self.common)), "\(place)")
    case "trainable_count":
      #expect(peft.parameterCounts.trainable == value.int, "\(place)")
    case "gradients":
      let result = try output()
      let zeros = Tensor.zeros([result.count, 1])
      let gradients = meanSquaredError(
        result.reshaped([result.count, 1]), targets: zeros.scalars
      ).backward()
      for (key, wanted) in value.object?.members ?? [] {
        let parameter = base.namedParameters().first { Self.common($0.name) == Self.common(key) }
        let gradient = parameter?.info.parameter.flatMap { gradients[$0] }
        #expect((gradient.map { $0.maximumMagnitude > 0 } ?? false) == (wanted == true), "\(place)")
      }
    case "keys":
      let saving: EmbeddingSaving =
        step["save_embedding_layers"].flatMap(\.bool).map { $0 ? .always : .never } ?? .automatic
      let state = try peft.state(
        of: name(step), form: isInjected ? .injected : .file, embeddings: saving)
      expectShapes(state, value, place)
      expectWarnings(peft.warnings, step, place)
    case "field":
      let found = try peft.config(name(step)).object[step["name"]?.string ?? ""] ?? .null
      #expect(Self.sorted(found) == Self.sorted(value), "\(place): \(found.text())")
    case "number_of_targets":
      #expect(try peft.targetReport(of: "default").matched.count == value.int, "\(place)")
    case "saved_modules": try lookAtSavedModules(value, place)
    case "in_layers":
      for (path, wanted) in value.object?.members ?? [] {
        let found = (host(path)?.adapters as? AdapterStack)?.layers.map(\.adapter) ?? []
        #expect(found == (wanted.array.map { _ in names(wanted) } ?? names(wanted["lora_A"])))
      }
    case "merged":
      for (path, wanted) in value.object?.members ?? [] {
        #expect((host(path)?.adapters as? AdapterStack)?.merged == names(wanted), "\(place)")
      }
    case "unchanged":
      let now = try peft.state(of: peft.adapterNames[0], embeddings: .never)
      let before = try #require(snapshot)
      #expect(now.names == before.names)
      for key in now.names { #expect(try now.tensor(key).scalars == before.tensor(key).scalars) }
    default: try lookAtSettings(call, step, place)
    }
  }

  private func lookAtRanks(_ value: JSONValue, _ step: JSONValue, _ place: String) throws {
    let layers = Dictionary(
      uniqueKeysWithValues: try peft.adaptedLayers(of: name(step)).map { ($0.path, $0.layer) })
    #expect(Set(layers.keys) == Set(value.object?.keys ?? []), "\(place)")
    for (path, wanted) in value.object?.members ?? [] {
      guard let layer = layers[path] as? any LowRankLayer else { continue }
      #expect(layer.a.shape[0] == wanted["r"]?.int, "\(place): \(path)")
      let scaling = wanted["scaling"]?.double ?? .nan
      #expect(abs(layer.scaling - scaling) <= 1e-7 * abs(scaling), "\(place): \(path)")
    }
  }

  // MARK: Scalings, states, texts

  private func scale(_ call: String, _ arguments: [JSONValue]) throws {
    switch call {
    case "set_scale":
      try peft.setScale(arguments[0].string ?? "", arguments[1].double ?? .nan)
    case "scale_layer": try peft.scaleLayers(by: arguments[0].double ?? .nan)
    default: try peft.unscaleLayers(by: arguments.first?.double)
    }
  }

  private func lookAtScalings(_ step: JSONValue, _ place: String) throws {
    for (adapter, wanted) in step["value"]?.object?.members ?? [] {
      let layer =
        try peft.adaptedLayers(of: adapter).first {
          $0.path == step["module"]?.string
        }?.layer as? any ScaledLayer
      let (found, number) = (layer?.scaling ?? .nan, wanted.double ?? .nan)
      #expect(abs(found - number) <= 1e-7 * abs(number), "\(place): \(adapter), \(found)")
    }
  }

  /// Gives an adapter the values that the one before had, under other keys.
  private func setState(_ step: JSONValue, _ place: String) throws {
    let state = try #require(snapshot)
    let table = try TensorTable(
      zip(names(step["keys"]), state.names).map { ($0, try state.tensor($1)) })
    let report =
      isInjected
      ? try InjectedAdapters(in: base, registry: .standard).setState(table)
      : try peft.setState(table, of: name(step))
    #expect(Set(report.unexpected) == Set(names(step["value"]?["unexpected"])), "\(place)")
    // peft counts the base's tensors as missing too.
    let ofBase = base.namedParameters().count - (try peft.tensors(of: name(step)).count)
    #expect(report.missing.count + ofBase == step["value"]?["missing"]?.int, "\(place)")
  }

  private func generate(_ step: JSONValue, _ place: String) throws {
    let model = try #require(base as? any CausalLanguageModel)
    let prompts = (step["prompts"]?.array ?? []).map { list in
      (list.array ?? []).compactMap(\.int).map { Int32($0) }
    }
    let found = try model.generate(
      prompts, GenerationSettings(maxNewTokens: step["new_tokens"]?.int ?? 0),
      adapters: try peft.sequenceAdapters(names(step["rows"]), count: prompts.count))
    let wanted = (step["value"]?.array ?? []).map { list in
      (list.array ?? []).compactMap(\.int).map { Int32($0) }
    }
    #expect(zip(prompts, found).map { $0 + $1 } == wanted, "\(place)")
  }

  private func lookAtSavedModules(_ value: JSONValue, _ place: String) throws {
    var found: [String: [String]] = [:]
    for adapter in peft.adapterNames {
      for path in try peft.targetReport(of: adapter).savedModules {
        found[path, default: []].append(adapter)
      }
    }
    #expect(Set(found.keys) == Set(value.object?.keys ?? []), "\(place)")
    for (path, wanted) in value.object?.members ?? [] {
      #expect(found[path] == names(wanted["adapters"]), "\(place): \(path)")
      let active = peft.activeAdapters.filter { found[path]?.contains($0) == true }
      #expect(active == names(wanted["active"]), "\(place): \(path)")
    }
  }

  private func host(_ path: String) -> (any AdapterHost)? {
    base.namedModules().first { $0.path == path }?.module as? any AdapterHost
  }

  func expectShapes(_ file: any TensorFile, _ value: JSONValue, _ place: String) {
    let wanted = value.object?.members ?? []
    #expect(Set(file.names) == Set(wanted.map(\.key)), "\(place)")
    for (key, shape) in wanted {
      #expect(file[key]?.shape == shape.array?.compactMap(\.int), "\(place): \(key)")
    }
  }

  /// A parameter's name in memory, without the marks of peft's wrappers.
  static func common(_ name: String) -> String {
    var name = name.replacing(".base_layer", with: "").replacing("base_model.model.", with: "")
    if name.contains("lora_magnitude_vector"), name.hasSuffix(".weight") {
      name = String(name.dropLast(".weight".count))
    }
    return name
  }

  /// Whether two settings are the same, numbers in the digits that the goldens have.
  static func isSame(_ found: JSONValue, _ wanted: JSONValue) -> Bool {
    if let found = found.double, let wanted = wanted.double {
      return abs(found - wanted) <= 1e-8 * abs(wanted)
    }
    return sorted(found) == sorted(wanted)
  }

  /// Lists of names are sets in peft.
  static func sorted(_ value: JSONValue) -> JSONValue {
    guard let names = value.array?.compactMap(\.string), names.count == value.array?.count else {
      if let number = value.double { return .double(number) }
      return value
    }
    return names.isEmpty ? .null : .array(names.sorted().map { .string($0) })
  }
}
