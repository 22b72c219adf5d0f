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
  /// - Returns: What was loaded.
  /// - Throws: ``PEFTError``: a missing or malformed file, a config that does not fit the model,
  ///   tensors that are missing, unused or of another shape.
  @discardableResult
  public func load(
    _ path: String, as name: String = "default", strict: Bool = true
  ) throws(PEFTError) -> LoadReport {
    try load(AdapterFolder(path), as: name, strict: strict)
  }

  /// Adds the adapter of an opened folder; see ``load(_:as:strict:)-(String,_,_)``.
  @discardableResult
  public func load(
    _ folder: AdapterFolder, as name: String = "default", strict: Bool = true
  ) throws(PEFTError) -> LoadReport {
    do {
      _ = try add(
        name, any: try registry.config(of: folder), seed: 0, stateKeys: nil, isLoading: strict)
    } catch {
      throw error.located(at: folder.configPath)
    }
    do throws(PEFTError) {
      return try loadTensors(folder.tensors, into: name, strict: strict)
    } catch {
      try delete(name)
      throw error
    }
  }

  /// Overwrites the values of an adapter with tensors under peft's keys.
  ///
  /// - Throws: ``PEFTError`` as ``load(_:as:strict:)-(String,_,_)``, and `invalidState` while the
  ///   adapter is merged, as the merged weights would not follow; no value is changed when it
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
    var report = LoadReport()
    var values: [(Parameter, Tensor)] = []
    var known: Set<String> = []
    for tensor in try tensors(of: name) {
      let keys = ([tensor.key] + tensor.otherKeys).map { Self.key($0, as: form) }
      let key = keys.first { file[$0] != nil } ?? keys[0]
      known.insert(key)
      guard let entry = file[key] else {
        if tensor.isStored { report.missing.append(key) }
        continue
      }
      if ignoringMismatchedSizes, entry.shape != tensor.parameter.shape {
        report.mismatched.append((key, entry.shape, tensor.parameter.shape))
        continue
      }
      values.append((tensor.parameter, try Self.value(key, tensor.parameter, file)))
      report.matched.append(key)
    }
    report.unexpected = file.names.filter { !known.contains($0) }
    if strict, let problem = Self.problem(report) {
      throw PEFTError(
        report.missing.isEmpty ? .unexpectedTensor : .missingTensor, problem, at: file.path,
        remedy: "The adapter was made for another base model or task, or the file is incomplete.")
    }
    let before = values.map { ($0.0, $0.0.value) }
    for (parameter, value) in values { parameter.assign(value) }
    do throws(PEFTError) {
      for place in try record(name).sites {
        let (path, host) = hosts[place]
        do {
          try (host.adapters as? AdapterStack)?.layer(name)?.didLoad(on: host)
        } catch { throw error.located(at: "\(file.path), '\(path)'") }
      }
    } catch {
      for (parameter, value) in before { parameter.assign(value) }
      throw error
    }
    return report
  }

  /// The tensor of a key for a parameter.
  static func value(
    _ key: String, _ parameter: Parameter, _ file: any TensorFile
  ) throws(PEFTError) -> Tensor {
    let shape = try file.entry(key).shape
    guard shape == parameter.shape else {
      throw PEFTError(
        .shapeMismatch, "'\(key)' has shape \(shape), the model needs \(parameter.shape)",
        at: file.path, remedy: "The adapter was made for another base model or rank.")
    }
    return try file.tensor(key)
  }

  /// Writes an adapter as a peft folder: config, weights and model card.
  ///
  /// The folder is complete or absent: files are written beside it and moved into place.
  ///
  /// - Parameters:
  ///   - path: The folder.
  ///   - adapter: The adapter; the only active one by default.
  ///   - type: What the tensors are written in: F32, F16 or BF16.
  ///   - card: Text of `README.md` after the front matter.
  ///   - extraFiles: Further files, by name, as a training run adds them.
  /// - Throws: ``PEFTError`` when the adapter is unknown, when several are active and none is
  ///   named, or when the folder cannot be written.
  public func save(
    _ path: String, adapter: String? = nil, as type: ElementType = .float32,
    card: String? = nil, extraFiles: [(name: String, text: String)] = []
  ) throws {
    let oldCard = FileSystem.join(path, "README.md")
    let old = FileSystem.exists(oldCard) ? try FileSystem.read(oldCard) : nil
    try FileSystem.writeDirectory(path) { folder in
      // The card of the folder that is replaced: its text is its author's.
      if let old {
        try FileSystem.write(
          FileSystem.join(folder, "README.md"), String(decoding: old, as: UTF8.self))
      }
      try self.write(into: folder, adapter: adapter, as: type, card: card)
      for file in extraFiles {
        try FileSystem.write(FileSystem.join(folder, file.name), file.text)
      }
    }
  }

  /// Writes the three files of an adapter into a folder that exists.
  public func write(
    into folder: String, adapter: String? = nil, as type: ElementType = .float32,
    card: String? = nil
  ) throws(PEFTError) {
    if adapter == nil, selection.active.count > 1 {
      throw PEFTError(
        .invalidAdapter,
        "several adapters are active: \(selection.active.joined(separator: ", "))",
        remedy: "Name the one to save.")
    }
    let name = adapter ?? selection.active.first ?? "default"
    let record = try record(name)
    try state(of: name).write(to: FileSystem.join(folder, AdapterFolder.weightsName), as: type)
    for (file, members) in record.config.files {
      var members = members
      if file == AdapterFolder.configName { members["inference_mode"] = true }
      try FileSystem.write(
        FileSystem.join(folder, file),
        JSONValue.object(members).text(.indented, sortedKeys: true))
    }
    let cardPath = FileSystem.join(folder, "README.md")
    let old = FileSystem.exists(cardPath) ? try FileSystem.read(cardPath) : nil
    let card = ModelCard(
      config: record.config, isTransformersModel: !info.modelType.isEmpty, body: card,
      existing: old.map { String(decoding: $0, as: UTF8.self) })
    try FileSystem.write(cardPath, card.text)
  }

  /// Writes several adapters the way peft does: the one named `default` into the folder itself,
  /// every other into a folder of its name in it.
  ///
  /// What else is in an existing folder stays.
  ///
  /// - Parameters:
  ///   - path: The folder.
  ///   - adapters: Their names; all by default.
  ///   - type: What the tensors are written in.
  /// - Throws: ``PEFTError`` `invalidAdapter` for unknown names, before anything is written, or
  ///   when a file cannot be written.
  public func saveAll(
    _ path: String, adapters: [String]? = nil, as type: ElementType = .float32
  ) throws {
    let names = adapters ?? adapterNames
    if names.contains(where: { !adapterNames.contains($0) }) {
      throw PEFTError(
        .invalidAdapter,
        "You passed an invalid `selected_adapters` arguments, current supported adapter names are "
          + "\(adapterNames) - got \(names).")
    }
    let isNew = !FileSystem.exists(path)
    func write(into folder: String) throws {
      for name in names {
        if name == "default" {
          try self.write(into: folder, adapter: name, as: type)
        } else {
          try self.save(FileSystem.join(folder, name), adapter: name, as: type)
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
