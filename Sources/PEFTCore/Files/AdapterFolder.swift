import PEFTSupport
import Tensors

/// The content of a peft adapter folder, before it is put on a model.
public struct AdapterFolder {
  /// The folder.
  public let path: String
  /// The members of `adapter_config.json`.
  public let config: JSONObject
  /// The tensors of `adapter_model.safetensors`, or of `adapter_model.bin`.
  public let tensors: any TensorFile
  /// The tensors of `initial_adapter.safetensors`, where there is one.
  public let references: SafetensorsFile?

  /// The name of the config file.
  public static let configName = "adapter_config.json"
  /// The name of the weights file.
  public static let weightsName = "adapter_model.safetensors"
  /// The name of the weights file that older versions of peft wrote.
  public static let torchWeightsName = "adapter_model.bin"
  /// The name of the file with the values that the adapter's changes are measured from, which PiSSA
  /// and the like have; peft passes over it.
  public static let referencesName = "initial_adapter.safetensors"
  private static let cardName = "README.md"

  /// Opens a folder.
  ///
  /// - Throws: ``PEFTError`` when the folder or one of its files is missing or malformed.
  public init(_ path: String) throws(PEFTError) {
    self.path = path
    guard FileSystem.isDirectory(path) else {
      throw PEFTError(
        .fileNotFound, "no such adapter folder", at: path, remedy: "Check the path.")
    }
    let configPath = FileSystem.join(path, Self.configName)
    guard FileSystem.exists(configPath) else {
      throw PEFTError(
        .fileNotFound, "Can't find '\(Self.configName)' at '\(path)'",
        remedy: "An adapter folder holds \(Self.configName) and \(Self.weightsName).")
    }
    guard let object = try FileSystem.readJSON(configPath).object else {
      throw PEFTError(
        .malformedFile, "is not a JSON object", at: configPath,
        remedy: "It has to hold the adapter's settings, { … }.")
    }
    config = object
    let weights = FileSystem.join(path, Self.weightsName)
    let torchWeights = FileSystem.join(path, Self.torchWeightsName)
    if FileSystem.exists(weights) {
      tensors = try SafetensorsFile(weights)
    } else if FileSystem.exists(torchWeights) {
      tensors = try TorchFile(torchWeights)
    } else {
      throw PEFTError(
        .fileNotFound, "has no \(Self.weightsName)", at: path,
        remedy: "An adapter folder holds \(Self.configName) and \(Self.weightsName).")
    }
    let referencesPath = FileSystem.join(path, Self.referencesName)
    references =
      FileSystem.exists(referencesPath) ? try SafetensorsFile(referencesPath) : nil
  }

  /// The path of the config file.
  public var configPath: String { FileSystem.join(path, Self.configName) }

  /// Writes the files of an adapter into a folder that exists; a card that is there keeps its text.
  static func write(
    _ tensors: TensorTable, config: any TunerConfig, isTransformersModel: Bool,
    as type: ElementType = .float32, exact: Set<String> = [], card: String?, into folder: String
  ) throws(PEFTError) {
    try tensors.write(to: FileSystem.join(folder, weightsName), as: type, exact: exact)
    for (file, members) in config.files {
      var members = members
      if file == configName { members["inference_mode"] = true }
      try FileSystem.write(
        FileSystem.join(folder, file),
        JSONValue.object(members).text(.indented, sortedKeys: true))
    }
    let card = ModelCard(
      config: config, isTransformersModel: isTransformersModel, body: card,
      existing: try Self.card(of: folder))
    try FileSystem.write(FileSystem.join(folder, cardName), card.text)
  }

  /// Copies the card, if there is one, of a folder whose files are replaced by those of another: what
  /// its author wrote stays.
  package static func copyCard(from old: String, to new: String) throws(PEFTError) {
    if let card = try card(of: old) { try FileSystem.write(FileSystem.join(new, cardName), card) }
  }

  private static func card(of folder: String) throws(PEFTError) -> String? {
    let path = FileSystem.join(folder, cardName)
    guard FileSystem.exists(path) else { return nil }
    return String(decoding: try FileSystem.read(path), as: UTF8.self)
  }
}

/// What came of loading adapter weights.
public struct LoadReport: Sendable {
  /// Keys that found their place.
  public internal(set) var matched: [String] = []
  /// Keys that the adapter has and the file lacks.
  public internal(set) var missing: [String] = []
  /// Keys that the file has and the adapter lacks.
  public internal(set) var unexpected: [String] = []
  /// What peft warns of, in its words.
  public internal(set) var warnings: [String] = []
  /// Keys whose shapes differ, where that was allowed; their tensors were not loaded.
  public internal(set) var mismatched: [(key: String, found: [Int], expected: [Int])] = []

  /// The report in one line.
  public var summary: String {
    "\(matched.count) tensors loaded, \(missing.count) missing, \(unexpected.count) unused"
  }
}
