import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// Gives an adapter another name; everything else about it stays.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter, or the new name is
  ///   taken or not usable.
  public func rename(_ name: String, to newName: String) throws(PEFTError) {
    _ = try record(name)
    warnings = []
    if name == newName { return }
    try checkNewName(newName)
    selection.rename(name, to: newName)
    for place in records.indices where records[place].name == name {
      records[place].name = newName
    }
  }

  /// Decides whether training changes adapters, whether they are active or not.
  ///
  /// What ``setActive(_:isInference:)`` decides about them later takes precedence.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` for an unknown name; nothing is changed then.
  public func setTrainable(_ names: [String], _ isTrainable: Bool) throws(PEFTError) {
    var wanted: [AdapterRecord] = []
    for name in names { wanted.append(try record(name)) }
    selection.adjusted.formUnion(names)
    for record in wanted {
      forEachParameter(of: record) { parameter, isTrained in
        parameter.isTrainable = isTrainable && isTrained
      }
    }
  }

  /// Exchanges an adapter's weights for those of a folder, while it keeps its name and its place.
  ///
  /// Ranks and alphas may differ, also from layer to layer: each layer takes those of the new
  /// adapter, so nothing is padded. Layers that the new adapter lacks change nothing any more, and
  /// a later exchange may fill them again; a layer of which it has a part is refused. When it throws,
  /// the model is as it was before.
  ///
  /// - Parameters:
  ///   - name: The adapter.
  ///   - path: The folder of the new one.
  /// - Returns: What was loaded; the missing keys are those of layers that became empty.
  /// - Throws: ``PEFTError``: a merged adapter, another method, a setting that the exchange cannot
  ///   carry over (`use_rslora`, `lora_dropout`, `alpha_pattern`, `use_dora`, as in peft, and `bias`,
  ///   `trainable_token_indices`, `layer_replication`),
  ///   tensors for layers that the adapter does not have, or only some of a layer's tensors.
  @discardableResult
  public func hotSwap(_ name: String, from path: String) throws(PEFTError) -> LoadReport {
    try hotSwap(name, from: AdapterFolder(path))
  }

  /// Exchanges an adapter's weights for those of an opened folder; see ``hotSwap(_:from:)-(_,String)``.
  @discardableResult
  public func hotSwap(_ name: String, from folder: AdapterFolder) throws(PEFTError) -> LoadReport {
    let record = try record(name)
    if mergedAdapters.contains(name) {
      throw PEFTError(
        .invalidState,
        "Cannot hot-swap adapter '\(name)' because it is currently merged into the base weights.",
        remedy: "Please unmerge the adapter first.")
    }
    try Self.checkCompatible(
      record.config.object, try registry.members(of: folder), at: folder.configPath)
    var config: any TunerConfig
    do { config = try registry.config(of: folder) } catch {
      throw error.located(at: folder.configPath)
    }
    config.modulesToSave = record.config.modulesToSave
    // The adapter keeps its layers, also those that become empty, and is saved with them.
    config.targets = record.config.targets
    let entry = try registry.entry(for: config.object)
    guard entry.tuner == record.tuner else {
      throw PEFTError(
        .invalidConfiguration,
        "the adapter '\(name)' is of the method \(record.tuner.methodName), the one in the folder of "
          + "\(entry.tuner.methodName)", at: folder.configPath,
        remedy: "Load it as an adapter of its own.")
    }
    // All is made before anything is changed.
    let references = try initialValues(at: record.layout, in: folder.references)
    var made: [(place: Int, stack: AdapterStack, layer: any TunerLayer)] = []
    // Of those, the ones that the folder has tensors for.
    var filled: [(path: String, layer: any TunerLayer, parameters: HostParameters)] = []
    var reading = TensorReading(folder.tensors)
    let layers = try makeLayers(
      record.layout, config, name, 0, entry, initialValues: references, isLoading: true)
    var replaced: Set<Parameter.ID> = []
    for ((place, layer), site) in zip(layers, record.layout) {
      guard let stack = hosts[place].host.stack, let old = stack.layer(name)
      else { continue }
      replaced.formUnion(old.parameters.map(\.parameter.id))
      let wasTrainable = old.parameters.contains { $0.parameter.isTrainable }
      for parameter in layer.parameters where !parameter.isTransposed {
        parameter.parameter.isTrainable = wasTrainable && parameter.isTrained
      }
      let (path, host) = hosts[place]
      if try reading.takeLayer(Self.tensors(of: layer, at: site.prefix), at: path) {
        filled.append((path, layer, host.untouched))
      } else {
        do { try layer.becomeEmpty(on: host.untouched) } catch { throw error.located(at: path) }
      }
      made.append((place, stack, layer))
    }
    // What it has beside its layers keeps its place.
    for tensor in try tensors(of: name) where !replaced.contains(tensor.parameter.id) {
      try reading.take(tensor)
    }
    try reading.finish(on: self)
    let report = reading.report
    if !report.unexpected.isEmpty {
      let names = report.unexpected.map { Self.memoryKey($0, adapter: name) }
      throw PEFTError(
        .unexpectedTensor,
        "Hot swapping the adapter did not succeed, unexpected keys found: "
          + "\(names.joined(separator: ", ")).", at: folder.tensors.path,
        remedy:
          "The adapter '\(name)' has no such layers: load the folder as an adapter of its own.")
    }
    try reading.assign(to: filled)
    for (_, stack, layer) in made { stack.add(layer, adapter: name) }
    for place in records.indices where records[place].name == name {
      records[place].config = config
    }
    return report
  }

  /// peft's key in memory, with the adapter's name before the last part.
  private static func memoryKey(_ key: String, adapter: String) -> String {
    let isParameter = key.hasSuffix(".weight") || key.hasSuffix(".bias")
    guard isParameter, let dot = key.lastIndex(of: ".") else { return "\(key).\(adapter)" }
    return "\(key[..<dot]).\(adapter)\(key[dot...])"
  }

  /// The settings that an exchange has to find equal, with their defaults.
  private static let comparedSettings: [(key: String, standard: JSONValue)] = [
    ("use_rslora", false), ("lora_dropout", 0.0), ("alpha_pattern", [:]), ("use_dora", false),
    // What an adapter has beside its layers stays as it is.
    ("bias", "none"), ("trainable_token_indices", .null), ("layer_replication", .null),
  ]

  private static func checkCompatible(
    _ old: JSONObject, _ new: JSONObject, at path: String
  ) throws(PEFTError) {
    let types = (old["peft_type"]?.string ?? "", new["peft_type"]?.string ?? "")
    if types.0 != types.1 {
      throw PEFTError(
        .invalidConfiguration, "Incompatible PEFT types found: \(types.0) and \(types.1)", at: path,
        remedy: "Load it as an adapter of its own.")
    }
    for (key, standard) in comparedSettings {
      let values = [old, new].map { object -> JSONValue in
        object[key].flatMap { $0.isNull ? nil : $0 } ?? standard
      }
      // 0 and 0.0 are the same setting.
      let areEqual =
        values[0] == values[1]
        || values[0].double != nil && values[0].double == values[1].double
      if !areEqual {
        let texts = values.map(PythonText.value)
        throw PEFTError(
          .invalidConfiguration,
          "Configs are incompatible: for \(key), \(texts[0]) != \(texts[1])", at: path,
          remedy: "Load it as an adapter of its own.")
      }
    }
  }
}
