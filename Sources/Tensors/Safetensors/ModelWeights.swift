import PEFTSupport

/// The weights of a Hugging Face model folder: one safetensors file or a sharded set.
public struct ModelWeights: Sendable {
  /// The folder.
  public let folder: String
  private let files: [SafetensorsFile]
  private let index: [String: Int]

  /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
  ///
  /// - Throws: ``PEFTError`` when neither is there, a shard is missing or malformed, or the index
  ///   and the shards disagree.
  public init(folder: String) throws(PEFTError) {
    self.folder = folder
    let single = FileSystem.join(folder, "model.safetensors")
    let indexPath = FileSystem.join(folder, "model.safetensors.index.json")
    if FileSystem.exists(single) {
      let file = try SafetensorsFile(single)
      files = [file]
      index = Dictionary(uniqueKeysWithValues: file.names.map { ($0, 0) })
      return
    }
    guard FileSystem.exists(indexPath) else {
      throw PEFTError(
        .fileNotFound, "has neither model.safetensors nor model.safetensors.index.json", at: folder,
        remedy: FileSystem.exists(FileSystem.join(folder, "pytorch_model.bin"))
          ? "Convert pytorch_model.bin to safetensors first." : "Check the path of the model.")
    }
    guard let map = try FileSystem.readJSON(indexPath)["weight_map"]?.object else {
      throw PEFTError(.malformedFile, "has no object 'weight_map'", at: indexPath)
    }
    var files: [SafetensorsFile] = []
    var places: [String: Int] = [:]
    var index: [String: Int] = [:]
    for (name, value) in map.members {
      guard let shard = value.string, !shard.contains("/") else {
        throw PEFTError(.malformedFile, "'\(name)' is not mapped to a file name", at: indexPath)
      }
      if places[shard] == nil {
        places[shard] = files.count
        files.append(try SafetensorsFile(FileSystem.join(folder, shard)))
      }
      index[name] = places[shard]!
      if files[places[shard]!][name] == nil {
        throw PEFTError(
          .missingTensor, "the tensor '\(name)' is missing", at: FileSystem.join(folder, shard))
      }
    }
    self.files = files
    self.index = index
  }

  /// The names of all tensors, sorted.
  public var names: [String] { index.keys.sorted() }

  /// The file that holds a tensor, or `nil`.
  public func file(of name: String) -> SafetensorsFile? { index[name].map { files[$0] } }

  /// The entry of a tensor, or `nil`.
  public subscript(name: String) -> SafetensorsEntry? { file(of: name)?[name] }
}
