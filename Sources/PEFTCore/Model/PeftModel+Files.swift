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
  /// - Returns: What was loaded.
  /// - Throws: ``PEFTError``: a missing or malformed file, a config that does not fit the model,
  ///   tensors that are missing, unused or of another shape.
  @discardableResult
  public func load(
    _ path: String, as name: String = "default", strict: Bool = true, isTrainable: Bool = true
  ) throws(PEFTError) -> LoadReport {
    let folder = try AdapterFolder(path)
    let target: TargetReport
    do {
      var config = try registry.config(folder.config)
      config.isInference = !isTrainable
      target = try add(name, any: config, seed: 0, stored: Set(folder.tensors.names))
    } catch {
      throw error.located(at: folder.configPath)
    }
    do throws(PEFTError) {
      var report = try loadTensors(folder.tensors, into: name, strict: strict)
      report.warnings = target.warnings + report.warnings
      warnings = report.warnings
      return report
    } catch {
      try delete(name)
      if records.isEmpty, replication != nil { undoReplication() }
      throw error
    }
  }

  /// Overwrites the values of an adapter with tensors under peft's keys.
  ///
  /// - Throws: ``PEFTError`` as ``load(_:as:strict:)``, and `invalidState` while the adapter is
  ///   merged, as the merged weights would not follow; no value is changed when it throws.
  @discardableResult
  public func loadTensors(
    _ file: SafetensorsFile, into name: String, strict: Bool = true
  ) throws(PEFTError) -> LoadReport {
    if mergedAdapters.contains(name) {
      throw PEFTError(
        .invalidState, "the adapter '\(name)' is merged", remedy: "Unmerge it first.")
    }
    var report = LoadReport()
    var values: [(AdapterTensor, Tensor)] = []
    var known: Set<String> = []
    for tensor in try tensors(of: name) {
      let other = tensor.otherKey.flatMap { file[$0] == nil ? nil : $0 }
      let key = file[tensor.key] == nil ? other ?? tensor.key : tensor.key
      known.insert(key)
      guard let entry = file[key] else {
        report.missing.append(key)
        continue
      }
      guard entry.shape == tensor.shape else {
        throw PEFTError(
          .shapeMismatch,
          "'\(key)' has shape \(entry.shape), the model needs \(tensor.shape)",
          at: file.path, remedy: "The adapter was made for another base model or rank.")
      }
      report.matched.append(key)
      values.append((tensor, try file.tensor(key)))
    }
    let embeddings = try storedEmbeddings(file, known)
    known.formUnion(embeddings.map(\.key))
    report.matched += embeddings.map(\.key)
    known.formUnion(superfluousBiases(of: name))
    report.unexpected = file.names.filter { !known.contains($0) }
    if strict, let problem = Self.problem(report) {
      throw PEFTError(
        report.missing.isEmpty ? .unexpectedTensor : .missingTensor, problem, at: file.path,
        remedy: "The adapter was made for another base model or task, or the file is incomplete.")
    }
    for (tensor, value) in values { tensor.assign(value) }
    for embedding in embeddings { use(embedding, for: name) }
    return report
  }

  /// Writes an adapter as a peft folder: config, weights and model card.
  ///
  /// The folder is complete or absent: files are written beside it and moved into place.
  ///
  /// - Parameters:
  ///   - path: The folder.
  ///   - adapter: The adapter; the only active one by default.
  ///   - card: Text of `README.md` after the front matter.
  ///   - extraFiles: Further files, by name, as a training run adds them.
  /// - Throws: ``PEFTError`` when the adapter is unknown, when several are active and none is
  ///   named, or when the folder cannot be written.
  public func save(
    _ path: String, adapter: String? = nil, card: String? = nil,
    extraFiles: [(name: String, text: String)] = []
  ) throws {
    try FileSystem.writeDirectory(path) { folder in
      try self.write(into: folder, adapter: adapter, card: card)
      for file in extraFiles {
        try FileSystem.write(FileSystem.join(folder, file.name), file.text)
      }
    }
  }

  /// Writes the three files of an adapter into a folder that exists.
  public func write(
    into folder: String, adapter: String? = nil, card: String? = nil,
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
    var config = record.config.object
    config["inference_mode"] = true
    warnings = []
    var items = try tensors(of: name).map { SafetensorsItem($0.key, $0.value) }
    items += embeddingTensors(of: record, saving: embeddings).map { SafetensorsItem($0, $1) }
    try SafetensorsWriter.write(items, to: FileSystem.join(folder, AdapterFolder.weightsName))
    try FileSystem.write(
      FileSystem.join(folder, AdapterFolder.configName),
      JSONValue.object(config).text(.indented, sortedKeys: true))
    let text = ModelCard(config: record.config, body: card).text
    try FileSystem.write(FileSystem.join(folder, "README.md"), text)
  }

  /// Keys that peft writes beside a head's bias when all biases are trained, and that nothing reads.
  private func superfluousBiases(of name: String) -> [String] {
    guard let record = try? record(name), record.config.bias == .all else { return [] }
    return record.savedPaths.flatMap { path in
      ["modules_to_save", "original_module"].map { "base_model.model.\(path).\($0).bias" }
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
