import Models
import NN
import PEFTCore
import PEFTSupport

/// A model built for a task, with what its task needs.
struct TaskModel {
  let loaded: LoadedModel
  let model: PeftModel
  let objective: any Objective

  /// Builds the model of a task.
  ///
  /// - Parameters:
  ///   - folder: The model's folder.
  ///   - task: The task.
  ///   - labelCount: Number of labels; for classifiers.
  ///   - context: What the loss depends on besides.
  ///   - options: Precision, overrides, random weights.
  ///   - registry: The methods.
  /// - Throws: ``PEFTError`` when the model cannot be built, or has no head for the task.
  init(
    _ folder: String, task: TaskType, labelCount: Int, context: TaskContext = TaskContext(),
    options: ModelOptions, registry: TunerRegistry
  ) throws(PEFTError) {
    let training = try task.training()
    loaded = try training.loadModel(folder, labelCount: labelCount, options: options)
    do { objective = try training.makeObjective(loaded.model, context) } catch {
      throw error.located(at: folder)
    }
    model = PeftModel(
      loaded.model,
      info: BaseModelInfo(
        modelType: loaded.model.configuration.modelType, nameOrPath: folder,
        outputHeads: loaded.outputHeads),
      registry: registry)
  }
}

extension LoadedModel {
  /// The first parameter that was drawn at random and stays so, as no module trained in full holds
  /// it, with its module's path within the base.
  func firstRandomParameter(
    besides saved: [String]
  ) throws(PEFTError) -> (name: String, module: String)? {
    let base = try ModelLoader.basePrefix(model.configuration) + "."
    for name in newParameters {
      let module = name.split(separator: ".").dropLast().joined(separator: ".")
      if saved.contains(where: { module == $0 || module.hasPrefix($0 + ".") }) { continue }
      return (name, module.hasPrefix(base) ? String(module.dropFirst(base.count)) : module)
    }
    return nil
  }
}

extension AdapterFolder {
  /// The task that the adapter was trained for, if its config names one.
  func task(_ registry: TunerRegistry) throws(PEFTError) -> TaskType? {
    guard let name = config["task_type"]?.string else { return nil }
    do { return try registry.taskType(name) } catch { throw error.located(at: configPath) }
  }

  /// The number of classes of the head that the adapter holds, if it holds one.
  package var classCount: Int? {
    tensors.entries.first { entry in
      let parts = entry.name.split(separator: ".").suffix(2)
      return entry.shape.count == 2 && parts.last == "weight"
        && ["classifier", "score"].contains(parts.first ?? "")
    }?.shape[0]
  }

  /// What the numbers of its classifier are, if a training run recorded it.
  package func problemType() throws(PEFTError) -> ProblemType? {
    try AdaptedModel.data(path).problemType
  }

  /// The files that a training run leaves beside an adapter and that say what its outputs mean: the
  /// labels and the settings. Another form of the adapter needs them too.
  package func trainingFiles() throws(PEFTError) -> [(name: String, text: String)] {
    var files: [(name: String, text: String)] = []
    for name in [LabelSet.fileName, RunRecord.fileName] {
      let file = FileSystem.join(path, name)
      guard FileSystem.exists(file) else { continue }
      files.append((name, String(decoding: try FileSystem.read(file), as: UTF8.self)))
    }
    return files
  }

  /// The members of config.json that the adapter's training run replaced (`model_config`), but for
  /// those about dropout, which matter to training alone.
  func modelOverrides() throws(PEFTError) -> JSONObject {
    let recorded = try RunRecord(ifIn: path)?.settings["model_config"]?.object ?? JSONObject()
    return recorded.filter { key, _ in !key.contains("dropout") }
  }

  /// What adapters that work on one model replace of its config.json.
  ///
  /// - Parameters:
  ///   - adapters: The adapters.
  ///   - configuration: The model's config.json; what it says anyway counts as not replaced.
  /// - Throws: ``PEFTError`` naming two adapters that were trained with different members.
  package static func modelOverrides(
    of adapters: [AdapterFolder], on configuration: ModelConfiguration? = nil
  ) throws(PEFTError) -> JSONObject {
    var first: (folder: AdapterFolder, members: JSONObject)?
    for folder in adapters {
      let members = try folder.modelOverrides().filter { key, value in
        !value.isSame(as: configuration?.object[key])
      }
      guard let (other, theirs) = first else {
        first = (folder, members)
        continue
      }
      let keys = theirs.keys + members.keys
      guard let key = keys.first(where: { !(members[$0] ?? .null).isSame(as: theirs[$0]) }) else {
        continue
      }
      func text(_ value: JSONValue?) -> String { value.map { $0.text(.spaced) } ?? "config.json's" }
      throw PEFTError(
        .invalidAdapter,
        "the model's '\(key)' was \(text(members[key])) when this adapter was trained, "
          + "\(text(theirs[key])) for '\(other.path)' ('model_config' in \(RunRecord.fileName))",
        at: folder.path, remedy: "Use only adapters together that were trained on the same model.")
    }
    return first?.members ?? JSONObject()
  }

  /// The names of the labels, if they were saved beside the adapter.
  package func labels() throws(PEFTError) -> LabelSet? {
    let file = FileSystem.join(path, LabelSet.fileName)
    return FileSystem.exists(file) ? try LabelSet(file: file) : nil
  }
}

extension JSONValue {
  /// Whether two members of a config mean the same: 1 is 1.0, and null is absent.
  fileprivate func isSame(as other: JSONValue?) -> Bool {
    if let number = double, let other = other?.double { return number == other }
    return self == other ?? .null
  }
}

extension ModelConfiguration {
  /// The names of the labels in config.json's `id2label`, if there are any.
  func labels() throws(PEFTError) -> LabelSet? {
    guard let mapping = self["id2label"]?.object, !mapping.members.isEmpty else { return nil }
    do { return try LabelSet(mapping: mapping) } catch {
      throw error.located(at: "\(path), 'id2label'")
    }
  }
}

extension LabelSet {
  /// Hugging Face's names for classes without one: LABEL_0, LABEL_1, ….
  static func unnamed(_ count: Int) throws(PEFTError) -> LabelSet {
    try LabelSet((0..<count).map { "LABEL_\($0)" })
  }
}
