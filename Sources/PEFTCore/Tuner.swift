import NN
import PEFTSupport
import Tensors

/// A method of parameter-efficient fine-tuning: its config and how it adapts a layer.
///
/// A tuner is a type without state. It lives in a target of its own that depends on PEFTCore
/// alone, and is used once it is registered with a ``TunerRegistry``.
public protocol Tuner: Sendable {
  /// The settings of the method.
  associatedtype Config: TunerConfig

  /// The method's name, `peft_type` in config files.
  static var peftType: String { get }
  /// The method's name in the settings of a run: `lora`.
  static var methodName: String { get }
  /// The class name that peft prints around the base model.
  static var modelTypeName: String { get }
  /// What makes layers, in order; the first that returns one wins.
  static var dispatchers: [any Dispatcher] { get }

  /// The members that make a config this method's: `peft_type`, and what tells it from others that
  /// have the same, as DoRA's `use_dora` does from LoRA.
  static var identifyingMembers: JSONObject { get }

  /// Whether this tuner handles a config file with the given members.
  ///
  /// The default looks for the ``identifyingMembers``.
  static func accepts(_ config: JSONObject) -> Bool

  /// The members of an adapter folder's config as this tuner's config reads them, or `nil` when the
  /// folder is not of this method.
  ///
  /// The default gives those of `adapter_config.json` where the tuner accepts them. A method whose
  /// files look like another's can look at the tensors and at further files.
  static func config(of folder: AdapterFolder) throws(PEFTError) -> JSONObject?

  /// The names of all files that may hold settings of this method, by default `adapter_config.json`
  /// alone. Those that a saved adapter does not have are removed from its folder.
  static var settingsFiles: Set<String> { get }

  /// The targets for a model type when the config names none.
  static func defaultTargets(modelType: String) -> TargetModules?

  /// Names of modules that the method does not reach in models of a type, since their own code
  /// bypasses the module.
  static func unreachableModules(modelType: String) -> Set<String>

  /// Prepares a new adapter before its layers are made; the model's adapters are off meanwhile.
  ///
  /// The default does nothing.
  ///
  /// - Throws: ``PEFTError`` when what the settings ask for cannot be had, as without data.
  static func prepare(_ plan: inout AdapterPlan) throws(PEFTError)
}

extension Tuner {
  /// `peft_type` in lower case.
  public static var methodName: String { peftType.lowercased() }

  /// `peft_type` alone.
  public static var identifyingMembers: JSONObject {
    JSONObject([("peft_type", .string(peftType))])
  }

  /// Whether the config has the members that identify the method.
  public static func accepts(_ config: JSONObject) -> Bool {
    identifyingMembers.members.allSatisfy { config[$0.key] == $0.value }
  }

  /// The members of `adapter_config.json` where the tuner accepts them.
  public static func config(of folder: AdapterFolder) throws(PEFTError) -> JSONObject? {
    accepts(folder.config) ? folder.config : nil
  }

  /// `adapter_config.json`.
  public static var settingsFiles: Set<String> { [AdapterFolder.configName] }

  /// The targets for a model type when the config names none.
  public static func defaultTargets(modelType: String) -> TargetModules? { nil }

  /// The method reaches all modules.
  public static func unreachableModules(modelType: String) -> Set<String> { [] }

  /// Does nothing.
  public static func prepare(_ plan: inout AdapterPlan) throws(PEFTError) {}
}

/// Makes the adapter layer for a host, if the host is of its kind.
///
/// The chain runs in order and the first match wins: custom dispatchers of the application, then the
/// tuner's own, the default last.
public protocol Dispatcher: Sendable {
  /// What it supports, for the message when none matches.
  var supports: String { get }

  /// A layer for the site, or `nil` when the host is not of this dispatcher's kind.
  ///
  /// - Throws: ``PEFTError`` when the host is of its kind but the config does not fit it.
  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)?
}

/// Where an adapter is put, and with what settings.
public struct AdapterSite {
  /// The layer.
  public let host: any AdapterHost
  /// Its dotted path in the model.
  public let path: String
  /// The path of the module that was targeted: the layer's own, or that of the layer around it,
  /// as for an attention's output projection. Rank patterns and the like are matched against it.
  public let target: String
  /// The adapter's name.
  public let adapter: String
  /// The adapter's settings; of the tuner's own type.
  public let config: any TunerConfig
  /// Seed of the initial values.
  public let seed: UInt64
  /// The host's parameters without anything merged into them.
  public let parameters: HostParameters
  /// Initial values by the suffix of the parameter, where the tuner's preparation or a file fixed
  /// them.
  public var initialValues: [String: Tensor] = [:]
  /// Whether the values are read from a file next, so that costly initial ones would be wasted.
  public var isLoading = false
  /// The parameter of the module that is adapted, for `target_parameters`, whose path ``target`` is;
  /// `nil` adapts the module as a whole.
  public var parameter: String?
  /// The layer of this adapter on the embedding that the host is tied to, when both are to have
  /// the same change.
  public var tied: (any TunerLayer)?

  /// A key for the random initial values of one parameter, which no other has.
  public func randomKey(_ parameter: String) -> DropoutKey {
    DropoutKey(seed: seed, stream: siteID("\(path).\(parameter)"))
  }

  /// Whether initial values that depend on the host's weight are to be computed: not when others
  /// are read next, nor in a model that is only described.
  public var initializesFromWeight: Bool {
    !isLoading && parameters.matrix.hasValues
  }
}
