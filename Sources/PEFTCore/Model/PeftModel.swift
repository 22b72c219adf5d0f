import NN
import PEFTSupport
import Tensors

/// A base model with adapters.
///
/// The base is frozen. Any number of named adapters, of any registered method, live on it side
/// by side; those that are active add their changes to its layers. Files are peft's: see
/// ``save(_:adapter:form:as:card:embeddings:extraFiles:)`` and
/// ``load(_:as:strict:isTrainable:initial:)-(String,_,_,_,_)``.
///
/// ```swift
/// let peft = PeftModel(model, info: info, registry: .standard)
/// try peft.add("default", LoRAConfig(rank: 8, alpha: 16))
/// ```
public final class PeftModel {
  /// The base model.
  public let base: any Module
  /// What is known of the base besides its modules.
  public let info: BaseModelInfo
  /// The methods that can be used.
  public let registry: TunerRegistry
  /// Which adapters are in use.
  public let selection: AdapterSelection
  /// What the last call that changed the adapters had to warn of, in peft's words where it warns
  /// of the same. Nothing is printed here; a program shows them as it likes.
  public internal(set) var warnings: [String] = []
  var records: [AdapterRecord] {
    get { selection.records }
    set { selection.records = newValue }
  }
  /// Every layer or weight that can be adapted, with its path, in model order.
  private(set) var hosts: [(path: String, host: any AdapterHost)] = []
  private(set) var modules: [(path: String, module: any Module)] = []
  /// Indices into ``hosts`` by path.
  private(set) var places: [String: Int] = [:]
  /// Hosts that are adapted along with the one around them, and their names in it.
  private(set) var enclosing: [Int: (owner: Int, name: String)] = [:]

  /// Wraps a model and freezes its parameters.
  ///
  /// When its layers carry adapters already, from another wrapper or from ``InjectedAdapters``,
  /// this one manages the same adapters, and nothing is frozen.
  public init(_ base: any Module, info: BaseModelInfo, registry: TunerRegistry) {
    self.base = base
    self.info = info
    self.registry = registry
    let modules = base.namedModules()
    let present = modules.lazy.flatMap { module in
      Self.hosts(of: module.module, at: module.path)
    }.compactMap { $0.host.stack?.selection }.first
    selection = present ?? AdapterSelection()
    listModules()
    guard present == nil else { return }
    selection.tiedPaths = hosts.filter { $0.host.parameters.isTied }.map(\.path)
    for (_, info) in base.namedParameters() { info.parameter?.isTrainable = false }
  }

  /// Lists modules and hosts anew, after the model's layers have become others.
  func listModules() {
    modules = base.namedModules()
    hosts = modules.flatMap { Self.hosts(of: $0.module, at: $0.path) }
    places = Dictionary(
      hosts.enumerated().map { ($0.element.path, $0.offset) },
      uniquingKeysWith: { first, _ in first })
    enclosing = [:]
    for (owner, entry) in hosts.enumerated() {
      for (name, inner) in entry.host.innerHosts {
        guard let place = hosts.firstIndex(where: { $0.host === inner }) else { continue }
        enclosing[place] = (owner, name)
      }
    }
  }

  /// The weights of a module that can be adapted, and the module itself.
  private static func hosts(
    of module: any Module, at path: String
  ) -> [(path: String, host: any AdapterHost)] {
    let weights = module.weightHosts.map { name, host in
      (path: path.isEmpty ? name : "\(path).\(name)", host: host as any AdapterHost)
    }
    return weights + ((module as? any AdapterHost).map { [(path: path, host: $0)] } ?? [])
  }

  /// The names of the adapters in the order in which they were added.
  public var adapterNames: [String] { records.map(\.name) }
  /// The names of the active adapters.
  public var activeAdapters: [String] { selection.active }
  /// The names of the merged adapters.
  public internal(set) var mergedAdapters: [String] {
    get { selection.merged }
    set { selection.merged = newValue }
  }

  /// The settings of an adapter.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func config(_ adapter: String) throws(PEFTError) -> any TunerConfig {
    try record(adapter).config
  }

  /// The task of an adapter, or `nil` when its config names none.
  ///
  /// - Throws: ``PEFTError`` when there is no such adapter, or its task is not registered.
  public func taskType(_ adapter: String) throws(PEFTError) -> TaskType? {
    let config = try record(adapter).config
    guard let name = config.taskType else { return nil }
    return try registry.taskType(name)
  }

  func record(_ adapter: String) throws(PEFTError) -> AdapterRecord {
    guard let record = records.first(where: { $0.name == adapter }) else {
      throw PEFTError(
        .invalidAdapter, "Adapter \(adapter) not found.", remedy: namesNote)
    }
    return record
  }

  /// What a message says of the adapters that there are.
  var namesNote: String {
    adapterNames.isEmpty
      ? "There are none." : "There are: \(adapterNames.joined(separator: ", "))."
  }

  func stack(of host: any AdapterHost, path: String) -> AdapterStack {
    if let stack = host.stack { return stack }
    let stack = AdapterStack(path: path, selection: selection)
    host.adapters = stack
    return stack
  }
}

/// What adapters need to know of a base model besides its modules.
public struct BaseModelInfo: Sendable {
  /// config.json's `model_type`, which default targets go by.
  public var modelType: String
  /// The name or path that goes into adapter configs.
  public var nameOrPath: String?
  /// Paths of the heads that `all-linear` leaves out.
  public var outputHeads: [String]
  /// Path of the embedding of the model's input; `nil` finds it by name, then by order.
  public var inputEmbedding: String?

  /// Creates a description; the model type is empty for a model that is not of transformers.
  public init(
    modelType: String, nameOrPath: String? = nil, outputHeads: [String] = [],
    inputEmbedding: String? = nil
  ) {
    self.modelType = modelType
    self.nameOrPath = nameOrPath
    self.outputHeads = outputHeads
    self.inputEmbedding = inputEmbedding
  }
}

/// One adapter of a model.
struct AdapterRecord {
  var name: String
  var config: any TunerConfig
  let tuner: any Tuner.Type
  /// Where it has layers.
  var layout: [TargetPlan.Site] = []
  /// Indices into the model's hosts that it trains in full.
  var saved: [Int] = []
  /// Paths of the modules that were asked for to be trained in full.
  var savedPaths: [String] = []
  /// Indices into the model's hosts of which it trains rows.
  var tokens: [Int] = []
  /// Indices into the model's hosts whose bias it trains.
  var biases: [Int] = []
  /// Whether its parameters are trained while it is active.
  var isTrained = true
  /// What was matched when it was added.
  var report = TargetReport()

  /// Indices into the model's hosts where it has layers.
  var sites: [Int] { layout.map(\.place) }

  /// Every host that it touches, in model order.
  var places: [Int] { Set(sites).union(saved).union(tokens).union(biases).sorted() }

  /// The paths that its tensors have in files, by host.
  var prefixes: [Int: String] {
    Dictionary(layout.map { ($0.place, $0.prefix) }, uniquingKeysWith: { first, _ in first })
  }
}
