import PEFTSupport

/// The settings of one adapter, as `adapter_config.json` holds them.
///
/// Keys that a config does not know are kept in ``unknownKeys`` and written back. A key that is
/// known but not supported, and not at its default, is an error that names it.
public protocol TunerConfig: Sendable {
  /// What the adapter is for; `nil` when it is for no task in particular.
  var taskType: String? { get set }
  /// The base model's name or path.
  var baseModel: String? { get set }
  /// Which modules are adapted.
  var targets: TargetSelection { get set }
  /// Modules that are trained and saved in full.
  var modulesToSave: [String] { get set }
  /// Members of the file that the config has no property for.
  var unknownKeys: JSONObject { get set }

  /// Reads the members of a config file.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` or `unsupported`, naming the key.
  init(_ object: JSONObject) throws(PEFTError)

  /// The members of the config file, `peft_type` and unknown keys included.
  var object: JSONObject { get }

  /// The files that hold the settings beside the weights, `adapter_config.json` among them; the
  /// default has that one alone, with the members of ``object``.
  var files: [(name: String, members: JSONObject)] { get }

  /// Checks values that were set in code as those of a file are; the default accepts all.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`, naming the key.
  func validate() throws(PEFTError)

  /// Whether a new adapter begins from data, so that ``PeftModel/add(_:_:seed:calibration:)`` needs
  /// batches; the default is no.
  var needsCalibration: Bool { get }

  /// Whether peft can put the adapter on a model from its files alone, as saved in the form that
  /// it is trained in. Otherwise it is saved in its plain form; the default is yes.
  var isSelfContained: Bool { get }

  /// The settings of the plain form; see ``TunerLayer/plainTensors()``. The default is unchanged.
  func plain() -> Self
}

extension TunerConfig {
  /// `adapter_config.json`.
  public var files: [(name: String, members: JSONObject)] { [(AdapterFolder.configName, object)] }

  /// Accepts all values.
  public func validate() throws(PEFTError) {}

  /// No.
  public var needsCalibration: Bool { false }

  /// Yes.
  public var isSelfContained: Bool { true }

  /// Unchanged.
  public func plain() -> Self { self }
}
