import PEFTSupport

/// The weights of a Hugging Face model folder: one file or a sharded set, safetensors or, in older
/// repositories, torch's pickles.
public struct ModelWeights: Sendable {
  /// The folder.
  public let folder: String
  private let files: [any TensorFile]
  private let index: [String: Int]

  /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists; without
  /// them `pytorch_model.bin`, or its shards. A tensor of a shard that the index does not list
  /// belongs to the weights too, as in transformers.
  ///
  /// - Throws: ``PEFTError`` when none is there, a shard is missing or malformed, or the index
  ///   and the shards disagree.
  public init(folder: String) throws(PEFTError) {
    self.folder = folder
    for name in ["model.safetensors", "pytorch_model.bin"] {
      let single = FileSystem.join(folder, name)
      if FileSystem.exists(single) {
        let file = try Self.open(single)
        files = [file]
        index = Dictionary(uniqueKeysWithValues: file.names.map { ($0, 0) })
        return
      }
      let indexPath = FileSystem.join(folder, "\(name).index.json")
      if FileSystem.exists(indexPath) {
        (files, index) = try Self.openShards(indexPath, in: folder)
        return
      }
    }
    throw PEFTError(
      .fileNotFound,
      "has none of model.safetensors, model.safetensors.index.json, pytorch_model.bin and "
        + "pytorch_model.bin.index.json", at: folder, remedy: "Check the path of the model.")
  }

  private static func open(_ path: String) throws(PEFTError) -> any TensorFile {
    path.hasSuffix(".bin") ? try TorchFile(path) : try SafetensorsFile(path)
  }

  private static func openShards(
    _ indexPath: String, in folder: String
  ) throws(PEFTError) -> ([any TensorFile], [String: Int]) {
    guard let map = try FileSystem.readJSON(indexPath)["weight_map"]?.object else {
      throw PEFTError(.malformedFile, "has no object 'weight_map'", at: indexPath)
    }
    var files: [any TensorFile] = []
    var paths: [String] = []
    var places: [String: Int] = [:]
    var index: [String: Int] = [:]
    for (name, value) in map.members {
      guard let shard = value.string, !shard.contains("/") else {
        throw PEFTError(.malformedFile, "'\(name)' is not mapped to a file name", at: indexPath)
      }
      if places[shard] == nil {
        places[shard] = files.count
        paths.append(FileSystem.join(folder, shard))
        files.append(try open(paths.last!))
      }
      index[name] = places[shard]!
      if files[places[shard]!][name] == nil {
        throw PEFTError(
          .missingTensor, "the tensor '\(name)' is missing", at: FileSystem.join(folder, shard))
      }
    }
    // The index decides between tensors of one name; without its word there must be only one.
    let listed = Set(index.keys)
    for (place, file) in files.enumerated() {
      for name in file.names where !listed.contains(name) {
        if let other = index[name] {
          throw PEFTError(
            .malformedFile,
            "the tensor '\(name)' is in \(paths[other]) too, and the index does "
              + "not say which counts", at: paths[place])
        }
        index[name] = place
      }
    }
    return (files, index)
  }

  /// The names of all tensors, sorted.
  public var names: [String] { index.keys.sorted() }

  /// The file that holds a tensor, or `nil`.
  public func file(of name: String) -> (any TensorFile)? { index[name].map { files[$0] } }

  /// The entry of a tensor, or `nil`.
  public subscript(name: String) -> TensorEntry? { file(of: name)?[name] }
}
