import PEFTSupport
import Tensors

/// An adapter as plain values: the config and the tensors under the keys of peft's files.
///
/// It needs no model: it comes from a model or from a folder, and goes to either.
public struct AdapterValues: Sendable {
  /// What to call it in messages: the adapter's name or the folder.
  public var name: String
  /// The members of the config.
  public var config: JSONObject
  /// The tensors by key, in model order or the file's.
  public var tensors: [(key: String, value: Tensor)]
  /// Scalings by the module path of keys, where they are not those of the config.
  public var scalings: [String: Double]

  /// Creates a state.
  public init(
    name: String, config: JSONObject, tensors: [(key: String, value: Tensor)],
    scalings: [String: Double] = [:]
  ) {
    self.name = name
    self.config = config
    self.tensors = tensors
    self.scalings = scalings
  }

  /// Reads a folder.
  ///
  /// - Parameters:
  ///   - folder: The folder.
  ///   - registry: Knows the method. Settings that it does not support are an error, so that none gets
  ///     lost silently.
  /// - Throws: ``PEFTError``: no tuner knows the folder, or a tensor does not hold floats.
  public init(folder: AdapterFolder, registry: TunerRegistry) throws(PEFTError) {
    let config: any TunerConfig
    do { config = try registry.config(of: folder) } catch {
      throw error.located(at: folder.configPath)
    }
    var tensors: [(key: String, value: Tensor)] = []
    for name in folder.tensors.names.sorted() {
      tensors.append((name, try folder.tensors.tensor(name)))
    }
    self.init(name: folder.path, config: config.object, tensors: tensors)
  }

  /// The tensor of a key.
  public subscript(key: String) -> Tensor? { tensors.first { $0.key == key }?.value }

  /// Writes a folder as peft writes it: config, weights in float32 and model card.
  ///
  /// The folder is complete or absent.
  ///
  /// - Parameters:
  ///   - path: The folder.
  ///   - registry: Knows the method, whose config is written.
  ///   - isTransformersModel: Whether the base is a model of transformers, which the card says.
  ///   - card: Text of `README.md` after the front matter.
  ///   - extraFiles: Further files, by name, as a training run adds them.
  /// - Throws: ``PEFTError`` when the config is not one of a registered method or a file cannot be written.
  public func save(
    _ path: String, registry: TunerRegistry, isTransformersModel: Bool = true,
    card: String? = nil, extraFiles: [(name: String, text: String)] = []
  ) throws {
    let typed = try registry.config(config)
    let table = try table
    try FileSystem.writeDirectory(path) { folder in
      try AdapterFolder.write(
        table, config: typed, isTransformersModel: isTransformersModel, card: card, into: folder)
      for file in extraFiles {
        try FileSystem.write(FileSystem.join(folder, file.name), file.text)
      }
    }
  }

  var table: TensorTable {
    get throws(PEFTError) {
      try TensorTable(
        tensors.map { ($0.key, $0.value) }, path: "the values of '\(name)'")
    }
  }
}

extension PeftModel {
  /// The values of an adapter in its plain form, its present scalings included.
  ///
  /// - Throws: ``PEFTError`` when there is no such adapter, or it has no plain form.
  public func values(of adapter: String) throws(PEFTError) -> AdapterValues {
    let record = try record(adapter)
    var scalings: [String: Double] = [:]
    for layer in try adaptedLayers(of: adapter) {
      if let scaled = layer.layer as? any ScaledLayer, scaled.scaling != scaled.configuredScaling {
        scalings[layer.filePath] = scaled.scaling
      }
    }
    // What the values refer to, as PiSSA's do, is not in them.
    let state = try plainState(of: adapter)
    return AdapterValues(
      name: adapter, config: record.config.plain().object,
      tensors: try state.names.map { (name) throws(PEFTError) in (name, try state.tensor(name)) },
      scalings: scalings)
  }

  /// Adds a new adapter with given values.
  ///
  /// When it throws, the model is as it was before.
  ///
  /// - Parameters:
  ///   - name: Unique on this model.
  ///   - state: The settings and values. Tensors that are absent keep their initial values only if
  ///     they are not of an adapted layer, or if `allowingFresh`.
  ///   - allowingFresh: Whether parameters of adapted layers may keep their initial values.
  /// - Throws: ``PEFTError`` as ``add(_:_:seed:calibration:)``, and for tensors that are missing, unused or of
  ///   another shape.
  @discardableResult
  public func add(
    _ name: String, _ state: AdapterValues, allowingFresh: Bool = false
  ) throws(PEFTError) -> TargetReport {
    let origin = AdapterOrigin(existed: true, isLoading: !allowingFresh)
    return try add(name, any: try registry.config(state.config), from: origin) {
      () throws(PEFTError) in
      let loaded = try loadTensors(try state.table, into: name, strict: false)
      try check(loaded, of: try record(name), allowingFresh: allowingFresh)
    }.target
  }

  private func check(
    _ loaded: LoadReport, of record: AdapterRecord, allowingFresh: Bool
  ) throws(PEFTError) {
    let adapted = record.layout.map { FileKey.key("\($0.prefix).") }
    let missing = loaded.missing.first { key in adapted.contains { key.hasPrefix($0) } }
    if let missing, !allowingFresh {
      throw PEFTError(
        .missingTensor, "the new adapter '\(record.name)' has no values for '\(missing)'",
        remedy: "Its target modules match more modules than the adapters that it comes from.")
    }
    if let key = loaded.unexpected.min() {
      throw PEFTError(
        .unexpectedTensor, "the new adapter '\(record.name)' has no place for '\(key)'",
        remedy: "The adapters were made for another base model.")
    }
  }
}
