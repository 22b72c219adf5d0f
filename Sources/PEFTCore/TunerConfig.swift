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
  /// Members of the file that the config has no property for; those of a mapping that it knows may
  /// be among them as `mapping.key`.
  var unknownKeys: JSONObject { get set }

  // The following have defaults: a method need not know them.

  /// Weights that no layer holds and that are adapted, by name or end of a name.
  var targetParameters: [String] { get }
  /// Which biases of the base are trained.
  var bias: BiasTraining { get }
  /// Single rows of embeddings that are trained.
  var trainableTokens: TrainableTokens? { get }
  /// Whether what is done to a tied embedding is done to the layers tied to it.
  var ensuresWeightTying: Bool { get }
  /// Ranges of layers that the model's stack of layers is put together from anew; empty leaves it.
  var layerReplication: [Range<Int>] { get }
  /// Whether the adapter is only to be used, not trained.
  var isInference: Bool { get set }
  /// What is odd about the settings by themselves, in peft's words.
  var remarks: [String] { get }

  /// What is odd about the settings, given the modules that were matched, in peft's words.
  func remarks(matching paths: [String]) -> [String]

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
  /// No parameters.
  public var targetParameters: [String] { [] }
  /// No biases.
  public var bias: BiasTraining { .none }
  /// No tokens.
  public var trainableTokens: TrainableTokens? { nil }
  /// Tied layers are adapted each on its own.
  public var ensuresWeightTying: Bool { false }
  /// The model keeps its layers.
  public var layerReplication: [Range<Int>] { [] }
  /// Adapters are trained unless told otherwise when they are added.
  public var isInference: Bool {
    get { false }
    set {}
  }
  /// No remarks.
  public var remarks: [String] { [] }
  /// No remarks.
  public func remarks(matching paths: [String]) -> [String] { [] }

  /// No.
  public var needsCalibration: Bool { false }

  /// Yes.
  public var isSelfContained: Bool { true }

  /// Unchanged.
  public func plain() -> Self { self }
}
