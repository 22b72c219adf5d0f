import NN
import PEFTSupport
import Tensors

/// Writes models as Hugging Face folders.
public enum ModelWriter {
  /// Writes a model that was read from a folder, and perhaps changed, to another folder: its
  /// config.json, weights and the tokenizer's files.
  ///
  /// Each tensor keeps the element type that it has in the old folder; new ones, such as those of a
  /// head, take the most common of these. A tied output head is not written, as transformers has
  /// it, unless its weight is no longer the embedding's: then it is, and the config says so.
  ///
  /// - Parameters:
  ///   - loaded: The model and where it came from.
  ///   - folder: An existing folder; existing files of the same names are replaced.
  ///   - members: Members of config.json to set.
  /// - Throws: ``PEFTError``: the old folder cannot be read or the new one cannot be written.
  public static func write(
    _ loaded: LoadedModel, into folder: String, settingConfig members: JSONObject = JSONObject()
  ) throws(PEFTError) {
    let tied = try tiedPaths(loaded)
    let items = try items(loaded, without: tied.kept)
    try SafetensorsWriter.write(items, to: FileSystem.join(folder, "model.safetensors"))
    var config = loaded.model.configuration.object
    config["architectures"] = [.string(loaded.model.typeName)]
    if !tied.broken.isEmpty { config["tie_word_embeddings"] = false }
    for (key, value) in members.members { config[key] = value }
    try FileSystem.write(
      FileSystem.join(folder, "config.json"),
      JSONValue.object(config).text(.indented, sortedKeys: true) + "\n")
    for name in try FileSystem.list(loaded.folder) where isCompanion(name) {
      let bytes = try FileSystem.read(FileSystem.join(loaded.folder, name))
      try FileSystem.write(FileSystem.join(folder, name)) { (file) throws(PEFTError) in
        try file.write(bytes)
      }
    }
  }

  private static func items(
    _ loaded: LoadedModel, without tied: Set<String>
  ) throws(PEFTError) -> [SafetensorsItem] {
    let types = try StoredTypes(folder: loaded.folder, model: loaded.model.configuration)
    var items: [SafetensorsItem] = []
    func add(_ path: String, _ name: String, _ value: Tensor) {
      let full = path.isEmpty ? name : "\(path).\(name)"
      items.append(SafetensorsItem(full, value, as: types.type(of: full)))
    }
    for (path, module) in loaded.model.namedModules() {
      guard let host = module as? any AdapterHost else {
        precondition(module.ownParameters.isEmpty, "\(module.typeName) has parameters of its own")
        continue
      }
      let parameters = host.parameters
      if !tied.contains(path) { add(path, parameters.names.weight, parameters.storedWeight) }
      if let bias = parameters.bias { add(path, parameters.names.bias, bias.value) }
    }
    return items
  }

  /// The hosts that were built to share an embedding's weight: those that still do, and those whose
  /// weight has become another.
  private static func tiedPaths(
    _ loaded: LoadedModel
  ) throws(PEFTError) -> (kept: Set<String>, broken: Set<String>) {
    // With the members that the model was built from, which may not all be the folder's.
    let built = try ModelLoader.describe(
      loaded.folder, head: loaded.head, overrides: loaded.model.configuration.object
    ).model.namedModules()
    let paths = built.filter { ($0.module as? any AdapterHost)?.parameters.isTied == true }
    let modules = loaded.model.namedModules()
    var result: (kept: Set<String>, broken: Set<String>) = ([], [])
    for (path, _) in paths {
      guard let host = modules.first(where: { $0.path == path })?.module as? Linear else {
        continue
      }
      let sharesWeight = modules.contains { _, module in
        (module as? Embedding).map { equal($0.parameters.matrix, host.parameters.matrix) } ?? false
      }
      if sharesWeight { result.kept.insert(path) } else { result.broken.insert(path) }
    }
    return result
  }

  private static func equal(_ a: any WeightMatrix, _ b: any WeightMatrix) -> Bool {
    guard a.rows == b.rows, a.columns == b.columns else { return false }
    return a.rowBlocks.allSatisfy { rows in
      let (left, right) = (a.dequantized(rows: rows).slice, b.dequantized(rows: rows).slice)
      return left.withSpan { left in
        right.withSpan { right in
          for index in left.indices where left[index] != right[index] { return false }
          return true
        }
      }
    }
  }

  /// Whether a file of a model folder goes with the model wherever it goes.
  private static func isCompanion(_ name: String) -> Bool {
    let names = [
      "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
      "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
      "generation_config.json", "chat_template.json",
    ]
    return names.contains(name) || name.hasSuffix(".jinja")
  }
}

/// The element types of the tensors in a model folder.
private struct StoredTypes {
  private let weights: ModelWeights
  private let prefix: String
  private let common: ElementType

  init(folder: String, model: ModelConfiguration) throws(PEFTError) {
    let weights = try ModelWeights(folder: folder)
    var counts: [ElementType: Int] = [:]
    for name in weights.names {
      guard let entry = weights[name], Self.isWritable(entry.type) else { continue }
      counts[entry.type, default: 0] += entry.count
    }
    common = counts.max { $0.value < $1.value }?.key ?? .float32
    prefix = try ModelLoader.basePrefix(model) + "."
    self.weights = weights
  }

  /// The type for a tensor; its name may have the base's prefix or lack it in the folder.
  func type(of name: String) -> ElementType {
    let short = name.hasPrefix(prefix) ? String(name.dropFirst(prefix.count)) : name
    let names = [name, short, prefix + name]
    for candidate in names + names.compactMap(LegacyNames.old) {
      if let entry = weights[candidate], Self.isWritable(entry.type) { return entry.type }
    }
    return common
  }

  private static func isWritable(_ type: ElementType) -> Bool {
    [.float32, .bfloat16, .float16].contains(type)
  }
}
