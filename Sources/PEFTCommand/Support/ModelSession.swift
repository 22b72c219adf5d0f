import PEFT

/// A model with the adapters that a command line names.
struct ModelSession {
  let loaded: LoadedModel
  let peft: PeftModel
  /// The task that the model was built for.
  let task: TaskType

  /// Whether a model's weights are read, or only its shape is.
  enum Content {
    case weights(WeightPrecision)
    case shapes
  }

  /// Loads a model and adapters, and activates some.
  ///
  /// - Parameters:
  ///   - model: The model's folder.
  ///   - adapters: The adapters.
  ///   - active: Names; `nil` leaves the first adapter active.
  ///   - task: peft's name; `nil` finds it out from the adapters, then from config.json.
  ///   - content: What to read.
  ///   - registry: The methods that adapters may use.
  /// - Throws: ``PEFTError``: whatever is wrong with a folder, or a name that is no adapter's.
  init(
    model: String, adapters: [AdapterReference] = [], active: [String]? = nil,
    task: String? = nil, content: Content = .weights(.float32),
    registry: TunerRegistry = .standard
  ) throws(PEFTError) {
    let plain = try ModelConfiguration(folder: model)
    let named = try Self.named(adapters)
    var folders: [AdapterFolder] = []
    for (_, folder) in named { folders.append(try AdapterFolder(folder)) }
    // What the training runs replaced of config.json belongs to their adapters.
    let overrides = try AdapterFolder.modelOverrides(of: folders, on: plain)
    let configuration = try ModelConfiguration(folder: model, overrides: overrides)
    let choice = try TaskChoice(
      configuration, adapters: folders, name: task, registry: registry)
    self.task = choice.task
    switch content {
    case .weights(let precision):
      var options = ModelOptions()
      options.precision = precision
      options.overrides = overrides
      // The adapter may hold a head with another number of labels than the model's.
      options.replacesHead = folders.contains { $0.classCount != nil }
      loaded = try ModelLoader.load(model, head: choice.head, options: options)
    case .shapes:
      loaded = try ModelLoader.describe(model, head: choice.head, overrides: overrides)
    }
    peft = PeftModel(loaded, registry: registry)
    for (name, folder) in named { try peft.load(folder, as: name) }
    if let active {
      for name in active where !peft.adapterNames.contains(name) {
        throw Self.unknown(name, peft.adapterNames)
      }
      do { try peft.setActive(active) } catch { throw error.located(at: "--adapter") }
    }
  }

  /// Each adapter with its name: the given one, else "default" for the first and the folder's for
  /// others.
  static func named(
    _ adapters: [AdapterReference]
  ) throws(PEFTError) -> [(name: String, folder: String)] {
    var result: [(name: String, folder: String)] = []
    for (index, adapter) in adapters.enumerated() {
      let folderName = adapter.folder.split(separator: "/").last.map(String.init) ?? ""
      let fallback = index == 0 ? "default" : folderName.replacing(".", with: "_")
      let name = adapter.name ?? fallback
      if let other = result.first(where: { $0.name == name }) {
        throw PEFTError(
          .invalidAdapter, "'\(other.folder)' and '\(adapter.folder)' are both named '\(name)'",
          at: "--adapter", remedy: "Give one of them a name: --adapter \(adapter.folder)=NAME.")
      }
      result.append((name, adapter.folder))
    }
    return result
  }

  private static func unknown(_ name: String, _ known: [String]) -> PEFTError {
    PEFTError(
      .invalidAdapter, "there is no adapter named '\(name)'", at: "--active",
      remedy: known.isEmpty
        ? "Load one with --adapter DIR=\(name)."
        : Spelling.suggestion(for: name, among: known))
  }

  /// Parameters that were drawn at random since no file holds them, active adapters included.
  var randomParameters: [String] {
    var covered: Set<String> = []
    for name in peft.activeAdapters {
      for tensor in (try? peft.tensors(of: name)) ?? [] { covered.insert(tensor.key) }
    }
    return loaded.newParameters.filter { !covered.contains(FileKey.key($0)) }
  }

  /// Says on standard error when a part of the model is random, or a part of its files unused.
  func warnAboutParameters() {
    let names = randomParameters
    if !names.isEmpty {
      Terminal.writeError(
        "warning: \(loaded.folder) has no \(names.joined(separator: ", ")); initialised at random\n"
      )
    }
    if let notice = loaded.unusedNotice { Terminal.writeError("warning: \(notice)\n") }
  }
}
