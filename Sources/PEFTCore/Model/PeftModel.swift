import NN
import PEFTSupport
import Tensors

/// A base model with adapters.
///
/// The base is frozen. Any number of named adapters, of any registered method, live on it side
/// by side; those that are active add their changes to its layers. Files are peft's: see
/// ``save(_:adapter:card:extraFiles:)`` and ``load(_:as:strict:)``.
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
  var records: [AdapterRecord] {
    get { selection.records }
    set { selection.records = newValue }
  }
  /// Every layer that can be adapted, with its path, in model order.
  let hosts: [(path: String, host: any AdapterHost)]
  let modules: [(path: String, module: any Module)]
  /// Hosts that are adapted along with the one around them, and their names in it.
  let enclosing: [Int: (owner: Int, name: String)]

  /// Wraps a model and freezes its parameters.
  ///
  /// When its layers carry adapters already, from another wrapper or from ``InjectedAdapters``,
  /// this one manages the same adapters, and nothing is frozen.
  public init(_ base: any Module, info: BaseModelInfo, registry: TunerRegistry) {
    self.base = base
    self.info = info
    self.registry = registry
    modules = base.namedModules()
    hosts = modules.compactMap { path, module in
      (module as? any AdapterHost).map { (path, $0) }
    }
    var enclosing: [Int: (owner: Int, name: String)] = [:]
    for (owner, entry) in hosts.enumerated() {
      for (name, inner) in entry.host.innerHosts {
        guard let place = hosts.firstIndex(where: { $0.host === inner }) else { continue }
        enclosing[place] = (owner, name)
      }
    }
    self.enclosing = enclosing
    let present = hosts.lazy.compactMap { ($0.host.adapters as? AdapterStack)?.selection }.first
    selection = present ?? AdapterSelection()
    guard present == nil else { return }
    for (_, info) in base.namedParameters() { info.parameter?.isTrainable = false }
  }

  /// The path that patterns are matched against at a host: its own, or that of the one around it.
  func targetPath(_ place: Int) -> String {
    hosts[enclosing[place]?.owner ?? place].path
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
  public func config(_ adapter: String) throws(PEFTError) -> any TunerConfig {
    try record(adapter).config
  }

  /// The task of an adapter, or `nil` when its config names none.
  public func taskType(_ adapter: String) throws(PEFTError) -> TaskType? {
    let config = try record(adapter).config
    guard let name = config.taskType else { return nil }
    return try registry.taskType(name)
  }

  func record(_ adapter: String) throws(PEFTError) -> AdapterRecord {
    guard let record = records.first(where: { $0.name == adapter }) else {
      throw PEFTError(
        .invalidAdapter, "Adapter \(adapter) not found.",
        remedy: "There are: \(adapterNames.joined(separator: ", ")).")
    }
    return record
  }

  /// The path under which the files of an adapter have a layer: peft wraps a layer that is adapted,
  /// and what is inside of it becomes part of its `base_layer`.
  func filePath(_ place: Int, among sites: [Int]) -> String {
    guard let (owner, name) = enclosing[place], sites.contains(owner) else {
      return hosts[place].path
    }
    return "\(hosts[owner].path).base_layer.\(name)"
  }

  func stack(of host: any AdapterHost, path: String) -> AdapterStack {
    if let stack = host.adapters as? AdapterStack { return stack }
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

  /// Creates a description.
  public init(modelType: String, nameOrPath: String? = nil, outputHeads: [String] = []) {
    self.modelType = modelType
    self.nameOrPath = nameOrPath
    self.outputHeads = outputHeads
  }
}

/// One adapter of a model.
struct AdapterRecord {
  var name: String
  var config: any TunerConfig
  let tuner: any Tuner.Type
  /// Indices into the model's hosts where it has layers.
  let sites: [Int]
  /// Indices into the model's hosts that it trains in full.
  let saved: [Int]
}
