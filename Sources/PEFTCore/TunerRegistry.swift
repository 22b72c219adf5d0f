import PEFTSupport

/// The tuners and task types that a program knows. A value: copy it, extend it, pass it on.
///
/// ```swift
/// var registry = TunerRegistry()
/// registry.register(LoRATuner.self)
/// try registry.prepend(MyDispatcher(), to: LoRATuner.self)
/// ```
public struct TunerRegistry: Sendable {
  struct Entry: Sendable {
    let tuner: any Tuner.Type
    var custom: [any Dispatcher] = []
    var dispatchers: [any Dispatcher] { custom + tuner.dispatchers }
  }

  private var entries: [Entry] = []
  /// The task types.
  public var taskTypes = TaskTypeRegistry()

  /// Creates a registry that knows peft's task types and no tuner.
  public init() {}

  /// Adds a tuner; one registered later is asked first. Registering a type again moves it there.
  public mutating func register<T: Tuner>(_ tuner: T.Type) {
    entries.removeAll { $0.tuner == tuner }
    entries.insert(Entry(tuner: tuner), at: 0)
  }

  /// Puts a dispatcher before those of a registered tuner.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` when the tuner is not registered.
  public mutating func prepend<T: Tuner>(
    _ dispatcher: any Dispatcher, to tuner: T.Type
  ) throws(PEFTError) {
    guard let place = entries.firstIndex(where: { $0.tuner == tuner }) else {
      throw PEFTError(
        .invalidConfiguration, "the tuner \(T.peftType) is not registered",
        remedy: "Call register(\(T.self).self) first.")
    }
    entries[place].custom.insert(dispatcher, at: 0)
  }

  /// Adds or replaces a task type.
  public mutating func register(_ taskType: TaskType) {
    taskTypes.register(taskType)
  }

  /// The task type of a name.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`, listing the known ones.
  public func taskType(_ name: String) throws(PEFTError) -> TaskType {
    try taskTypes.type(named: name)
  }

  /// The types of the registered methods; several methods may share one.
  public var peftTypes: [String] { entries.map { $0.tuner.peftType } }
  /// The names of the registered methods in a run's settings.
  public var methodNames: [String] { entries.map { $0.tuner.methodName } }

  /// The names that files of an adapter may have, of whatever method, without its card.
  package var fileNames: Set<String> {
    settingsFiles.union([
      AdapterFolder.weightsName, AdapterFolder.torchWeightsName, AdapterFolder.referencesName,
    ])
  }

  /// The names of all files that hold settings of a registered method.
  var settingsFiles: Set<String> {
    entries.reduce(into: []) { $0.formUnion($1.tuner.settingsFiles) }
  }

  /// Settings with the members that make them a config of a method.
  ///
  /// - Parameters:
  ///   - settings: Members of a config, which need not say the method.
  ///   - name: The method's name in a run's settings.
  /// - Throws: ``PEFTError`` `invalidConfiguration` for an unknown name, and for settings that say
  ///   another method.
  public func members(
    _ settings: JSONObject, ofMethod name: String
  ) throws(PEFTError) -> JSONObject {
    guard let tuner = entries.first(where: { $0.tuner.methodName == name })?.tuner else {
      throw PEFTError(
        .invalidConfiguration, "'\(name)' is not a method",
        remedy: Spelling.suggestion(for: name, among: methodNames))
    }
    var result = settings
    for (key, value) in tuner.identifyingMembers.members {
      if let given = settings[key], given != value {
        throw PEFTError(
          .invalidConfiguration,
          "'\(key)' is \(given.text()), but the method \(name) is the one with \(value.text())",
          remedy: "Remove the key, or name the other method.")
      }
      result[key] = value
    }
    return result
  }

  /// The config of a file's members, as the tuner that accepts it reads it.
  ///
  /// - Throws: ``PEFTError`` when no tuner accepts it, or a key is wrong.
  public func config(_ object: JSONObject) throws(PEFTError) -> any TunerConfig {
    try entry(for: object).tuner.makeConfig(object)
  }

  /// The first tuner that can combine adapters with the given configs.
  func combiner(of configs: [JSONObject]) -> (any CombinableTuner.Type)? {
    entries.lazy.compactMap { $0.tuner as? any CombinableTuner.Type }
      .first { $0.combines(configs) }
  }

  /// The config of an adapter folder, as the tuner reads it that knows the folder as its own.
  ///
  /// - Throws: ``PEFTError`` when no tuner accepts it, or a key is wrong.
  public func config(of folder: AdapterFolder) throws(PEFTError) -> any TunerConfig {
    if let (tuner, members) = try owner(of: folder) { return try tuner.makeConfig(members) }
    return try config(folder.config)
  }

  /// The members of an adapter folder's config, put together by the tuner that knows the folder as
  /// its own; those of `adapter_config.json` where none does.
  ///
  /// - Throws: ``PEFTError`` when a file of the folder cannot be read.
  public func members(of folder: AdapterFolder) throws(PEFTError) -> JSONObject {
    try owner(of: folder)?.members ?? folder.config
  }

  /// The name of an adapter folder's method in a run's settings.
  ///
  /// - Throws: ``PEFTError`` when no tuner accepts its config.
  public func methodName(of folder: AdapterFolder) throws(PEFTError) -> String {
    if let (tuner, _) = try owner(of: folder) { return tuner.methodName }
    return try methodName(of: folder.config)
  }

  /// The name of the method that a config's members are for.
  ///
  /// - Throws: ``PEFTError`` when no tuner accepts them.
  public func methodName(of object: JSONObject) throws(PEFTError) -> String {
    try entry(for: object).tuner.methodName
  }

  private func owner(
    of folder: AdapterFolder
  ) throws(PEFTError) -> (tuner: any Tuner.Type, members: JSONObject)? {
    for entry in entries {
      if let members = try entry.tuner.config(of: folder) { return (entry.tuner, members) }
    }
    return nil
  }

  func entry(for object: JSONObject) throws(PEFTError) -> Entry {
    guard let type = object["peft_type"]?.string else {
      throw PEFTError(
        .invalidConfiguration, "the key 'peft_type' is missing",
        remedy: "This is not the config of an adapter.")
    }
    if let entry = entries.first(where: { $0.tuner.accepts(object) }) { return entry }
    throw PEFTError(
      .unsupported,
      "no registered tuner handles peft_type '\(type)'"
        + (peftTypes.contains(type) ? " with these settings" : ""),
      remedy: "Registered: \(methodNames.sorted().joined(separator: ", ")).")
  }
}

extension Tuner {
  static func makeConfig(_ object: JSONObject) throws(PEFTError) -> any TunerConfig {
    try Config(object)
  }
}
