import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// Reads an adapter from a peft folder and adds it.
  ///
  /// Refuses by default when a tensor is missing or unused, since an adapter that is half loaded
  /// silently computes something else. When it throws, the model is as it was before.
  ///
  /// - Parameters:
  ///   - path: The folder.
  ///   - name: The adapter's name.
  ///   - strict: Whether missing and unused tensors are errors.
  ///   - isTrainable: Whether the adapter is to be trained further; else it is only used.
  ///   - initial: The folder of the adapter's initial values, as peft's guide has them saved for
  ///     PiSSA and the like; those beside the adapter unless given.
  /// - Returns: What was loaded.
  /// - Throws: ``PEFTError``: a missing or malformed file, a config that does not fit the model,
  ///   tensors that are missing, unused or of another shape.
  @discardableResult
  public func load(
    _ path: String, as name: String = "default", strict: Bool = true, isTrainable: Bool = true,
    initial: String? = nil
  ) throws(PEFTError) -> LoadReport {
    let references = try initial.map { (path) throws(PEFTError) in try AdapterFolder(path).tensors }
    return try load(
      AdapterFolder(path), as: name, strict: strict, isTrainable: isTrainable, initial: references)
  }

  /// Adds the adapter of an opened folder; see
  /// ``load(_:as:strict:isTrainable:initial:)-(String,_,_,_,_)``.
  @discardableResult
  public func load(
    _ folder: AdapterFolder, as name: String = "default", strict: Bool = true,
    isTrainable: Bool = true, initial: (any TensorFile)? = nil
  ) throws(PEFTError) -> LoadReport {
    var config: any TunerConfig
    do { config = try registry.config(of: folder) } catch {
      throw error.located(at: folder.configPath)
    }
    config.isInference = !isTrainable
    let origin = AdapterOrigin(
      fileKeys: Set(folder.tensors.names), references: initial ?? folder.references,
      existed: true, isLoading: strict)
    let added = try add(name, any: config, from: origin, path: folder.configPath) {
      () throws(PEFTError) in
      try loadTensors(folder.tensors, into: name, strict: strict)
    }
    var report = added.filled
    report.warnings = added.target.warnings + report.warnings
    warnings = report.warnings
    return report
  }

  /// Overwrites the values of an adapter with tensors under peft's keys.
  ///
  /// - Throws: ``PEFTError`` as ``load(_:as:strict:isTrainable:initial:)-(String,_,_,_,_)``, and
  ///   `invalidState` while the adapter is merged, as the merged weights would not follow; no value is changed when it
  ///   throws.
  @discardableResult
  public func loadTensors(
    _ file: any TensorFile, into name: String, strict: Bool = true
  ) throws(PEFTError) -> LoadReport {
    try loadTensors(file, into: name, strict: strict, form: .file, ignoringMismatchedSizes: false)
  }

  func loadTensors(
    _ file: any TensorFile, into name: String, strict: Bool, form: AdapterKeyForm,
    ignoringMismatchedSizes: Bool
  ) throws(PEFTError) -> LoadReport {
    if mergedAdapters.contains(name) {
      throw PEFTError(
        .invalidState, "the adapter '\(name)' is merged", remedy: "Unmerge it first.")
    }
    var reading = TensorReading(file)
    reading.form = form
    reading.ignoresMismatchedSizes = ignoringMismatchedSizes
    for tensor in try tensors(of: name) { try reading.take(tensor) }
    try reading.finish(on: self, superfluous: try superfluousBiases(of: name))
    let report = reading.report
    if strict, let problem = Self.problem(report) {
      throw PEFTError(
        report.missing.isEmpty ? .unexpectedTensor : .missingTensor, problem, at: file.path,
        remedy: "The adapter was made for another base model or task, or the file is incomplete.")
    }
    try reading.assign(
      to: adaptedLayers(of: name).map { ($0.path, $0.layer, $0.parameters) })
    return report
  }

  /// Writes an adapter as a peft folder: config, weights and model card.
  ///
  /// The folder is complete or absent: files are written beside it and moved into place.
  ///
  /// - Parameters:
  ///   - path: The folder.
  ///   - adapter: The adapter; the only active one by default.
  ///   - form: The trained form or the plain one.
  ///   - type: What the tensors are written in: F32, F16 or BF16; those stay F32 that another
  ///     precision would spoil.
  ///   - card: Text of `README.md` after the front matter.
  ///   - embeddings: Whether the base's embeddings are saved too.
  ///   - extraFiles: Further files, by name, as a training run adds them.
  /// - Throws: ``PEFTError`` when the adapter is unknown, when several are active and none is
  ///   named, or when the folder cannot be written.
  public func save(
    _ path: String, adapter: String? = nil, form: SavedForm = .automatic,
    as type: ElementType = .float32, card: String? = nil,
    embeddings: EmbeddingSaving = .automatic,
    extraFiles: [(name: String, text: String)] = []
  ) throws {
    try FileSystem.writeDirectory(path) { folder in
      try AdapterFolder.copyCard(from: path, to: folder)
      try self.write(
        into: folder, adapter: adapter, form: form, as: type, card: card, embeddings: embeddings)
      for file in extraFiles {
        try FileSystem.write(FileSystem.join(folder, file.name), file.text)
      }
    }
  }

  /// Writes the files of an adapter into a folder that exists, and removes those of an adapter before
  /// it that would be taken for this one's.
  ///
  /// - Throws: ``PEFTError`` as ``save(_:adapter:form:as:card:embeddings:extraFiles:)``; files that were
  ///   written before stay.
  public func write(
    into folder: String, adapter: String? = nil, form: SavedForm = .automatic,
    as type: ElementType = .float32, card: String? = nil,
    embeddings: EmbeddingSaving = .automatic
  ) throws(PEFTError) {
    if adapter == nil, selection.active.count > 1 {
      throw PEFTError(
        .invalidAdapter,
        "several adapters are active: \(selection.active.joined(separator: ", "))",
        remedy: "Name the one to save.")
    }
    let name = adapter ?? selection.active.first ?? "default"
    let record = try record(name)
    let isPlain = form == .plain || form == .automatic && !record.config.isSelfContained
    warnings = []
    let state =
      isPlain
      ? try plainState(of: name, embeddings: embeddings)
      : try state(of: name, embeddings: embeddings)
    let referencesPath = FileSystem.join(folder, AdapterFolder.referencesName)
    let references = isPlain ? nil : try referenceState(of: name)
    if let references {
      try references.write(to: referencesPath, as: type)
    } else if FileSystem.exists(referencesPath) {
      // Of an adapter that was here before.
      FileSystem.removeTree(referencesPath)
    }
    let config = isPlain ? record.config.plain() : record.config
    // Nor do settings of another method stay that would make another one of this adapter.
    for file in registry.settingsFiles.subtracting(config.files.map(\.name)) {
      FileSystem.removeTree(FileSystem.join(folder, file))
    }
    try AdapterFolder.write(
      state, config: config, isTransformersModel: !info.modelType.isEmpty, as: type,
      exact: Set(try tensors(of: name).filter(\.isExact).map(\.key)), card: card, into: folder)
  }

  /// Writes several adapters the way peft does: the one named `default` into the folder itself,
  /// every other into a folder of its name in it.
  ///
  /// What else is in an existing folder stays.
  ///
  /// - Parameters:
  ///   - path: The folder.
  ///   - adapters: Their names; all by default.
  ///   - form: The trained form or the plain one.
  ///   - type: What the tensors are written in.
  /// - Throws: ``PEFTError`` `invalidAdapter` for unknown names, before anything is written, or
  ///   when a file cannot be written.
  public func saveAll(
    _ path: String, adapters: [String]? = nil, form: SavedForm = .automatic,
    as type: ElementType = .float32
  ) throws {
    let names = adapters ?? adapterNames
    if names.contains(where: { !adapterNames.contains($0) }) {
      throw PEFTError(
        .invalidAdapter,
        "You passed an invalid `selected_adapters` arguments, current supported adapter names are "
          + "\(PythonText.list(adapterNames)) - got \(PythonText.list(names)).",
        remedy: "Name some of these, or none for all.")
    }
    let isNew = !FileSystem.exists(path)
    func write(into folder: String) throws {
      for name in names {
        if name == "default" {
          try self.write(into: folder, adapter: name, form: form, as: type)
        } else {
          try self.save(
            FileSystem.join(folder, name), adapter: name, form: form, as: type)
        }
      }
    }
    if isNew {
      try FileSystem.writeDirectory(path, write)
    } else {
      try FileSystem.createDirectory(path)
      try write(into: path)
    }
  }

  /// Keys that peft writes beside a head's bias when all biases are trained, and that nothing reads.
  private func superfluousBiases(of name: String) throws(PEFTError) -> [String] {
    let record = try record(name)
    guard record.config.bias == .all else { return [] }
    return record.savedPaths.flatMap { path in
      ["modules_to_save", "original_module"].map { FileKey.key("\(path).\($0).bias") }
    }
  }

  private static func problem(_ report: LoadReport) -> String? {
    func list(_ keys: [String]) -> String {
      let shown = keys.prefix(3).map { "'\($0)'" }.joined(separator: ", ")
      return keys.count > 3 ? "\(shown) and \(keys.count - 3) more" : shown
    }
    var parts: [String] = []
    if !report.missing.isEmpty { parts.append("missing: \(list(report.missing))") }
    if !report.unexpected.isEmpty { parts.append("unused: \(list(report.unexpected))") }
    return parts.isEmpty
      ? nil : "the adapter's tensors do not fit the model; \(parts.joined(separator: "; "))"
  }
}
