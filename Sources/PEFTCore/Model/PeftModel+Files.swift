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
  ///   - initial: The folder of the adapter's initial values, as peft's guide has them saved for
  ///     PiSSA and the like; those beside the adapter unless given.
  /// - Returns: What was loaded.
  /// - Throws: ``PEFTError``: a missing or malformed file, a config that does not fit the model,
  ///   tensors that are missing, unused or of another shape.
  @discardableResult
  public func load(
    _ path: String, as name: String = "default", strict: Bool = true, initial: String? = nil
  ) throws(PEFTError) -> LoadReport {
    let folder = try AdapterFolder(path)
    let references =
      try initial.map { (path) throws(PEFTError) in try AdapterFolder(path).tensors }
      ?? folder.references
    do {
      _ = try add(
        name, try registry.config(folder.config), seed: 0, calibration: nil,
        loading: try references?.all() ?? [:])
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
    var values: [(Parameter, Tensor)] = []
    var known: Set<String> = []
    for tensor in try tensors(of: name) {
      known.insert(tensor.key)
      guard let entry = file[tensor.key] else {
        report.missing.append(tensor.key)
        continue
      }
      guard entry.shape == tensor.parameter.shape else {
        throw PEFTError(
          .shapeMismatch,
          "'\(tensor.key)' has shape \(entry.shape), the model needs \(tensor.parameter.shape)",
          at: file.path, remedy: "The adapter was made for another base model or rank.")
      }
      report.matched.append(tensor.key)
      values.append((tensor.parameter, try file.tensor(tensor.key)))
    }
    report.unexpected = file.names.filter { !known.contains($0) }
    if strict, let problem = Self.problem(report) {
      throw PEFTError(
        report.missing.isEmpty ? .unexpectedTensor : .missingTensor, problem, at: file.path,
        remedy: "The adapter was made for another base model or task, or the file is incomplete.")
    }
    for (parameter, value) in values { parameter.assign(value) }
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
  ///   - card: Text of `README.md` after the front matter.
  ///   - extraFiles: Further files, by name, as a training run adds them.
  /// - Throws: ``PEFTError`` when the adapter is unknown, when several are active and none is
  ///   named, or when the folder cannot be written.
  public func save(
    _ path: String, adapter: String? = nil, form: AdapterForm = .automatic, card: String? = nil,
    extraFiles: [(name: String, text: String)] = []
  ) throws {
    try FileSystem.writeDirectory(path) { folder in
      try self.write(into: folder, adapter: adapter, form: form, card: card)
      for file in extraFiles {
        try FileSystem.write(FileSystem.join(folder, file.name), file.text)
      }
    }
  }

  /// Writes the three files of an adapter into a folder that exists.
  public func write(
    into folder: String, adapter: String? = nil, form: AdapterForm = .automatic,
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
    let isPlain = form == .plain || form == .automatic && !record.config.isSelfContained
    var config = isPlain ? record.config.plain().object : record.config.object
    config["inference_mode"] = true
    let items =
      isPlain
      ? try plainTensors(of: name)
      : try tensors(of: name).map { SafetensorsItem($0.key, $0.parameter.value) }
    let references = isPlain ? [] : try referenceItems(of: name)
    if !references.isEmpty {
      try SafetensorsWriter.write(
        references, to: FileSystem.join(folder, AdapterFolder.referencesName))
    }
    try SafetensorsWriter.write(items, to: FileSystem.join(folder, AdapterFolder.weightsName))
    try FileSystem.write(
      FileSystem.join(folder, AdapterFolder.configName),
      JSONValue.object(config).text(.indented, sortedKeys: true))
    let text = ModelCard(config: record.config, body: card).text
    try FileSystem.write(FileSystem.join(folder, "README.md"), text)
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
