import PEFTSupport
import Tensors

/// In which form an adapter is saved.
public enum SavedForm: Sendable {
  /// The plain form where peft could not put the trained form on a model from its files alone, as
  /// with values that came from data; the trained form otherwise.
  case automatic
  /// As it is trained. What its changes are measured from is saved beside it, in
  /// ``AdapterFolder/referencesName``.
  case trained
  /// As an adapter that refers to nothing but the untouched base model: PiSSA and the like become
  /// LoRA of twice the rank.
  case plain
}

extension PeftModel {
  /// The tensors of an adapter's plain form, under the keys of its files.
  ///
  /// - Throws: ``PEFTError`` when the adapter is unknown or has no plain form.
  public func plainState(
    of adapter: String, embeddings: EmbeddingSaving = .never
  ) throws(PEFTError) -> TensorTable {
    // What is not a layer's, heads and the like, is saved as it is.
    let record = try record(adapter)
    var replaced: [String: [(key: String, tensor: Tensor)]] = [:]
    var own: [String: String] = [:]
    for layer in try adaptedLayers(of: adapter) {
      for parameter in layer.layer.parameters { own[layer.key(parameter.suffix)] = layer.path }
      do {
        replaced[layer.path] = try layer.layer.plainTensors().map {
          (layer.key($0.suffix), $0.value)
        }
      } catch { throw error.located(at: layer.path) }
    }
    var result: [(key: String, tensor: Tensor)] = []
    for tensor in try tensors(of: adapter) where tensor.isStored {
      if let path = own[tensor.key] {
        result += replaced.removeValue(forKey: path) ?? []
      } else {
        result.append((tensor.key, tensor.value))
      }
    }
    result += embeddingTensors(of: record, saving: embeddings).map { ($0.key, $0.value) }
    return try TensorTable(result, path: "the plain state of '\(adapter)'")
  }

  /// What the changes of an adapter are measured from, under the keys of its files; `nil` where they
  /// are measured from nothing.
  func referenceState(of adapter: String) throws(PEFTError) -> TensorTable? {
    let result = try adaptedLayers(of: adapter).flatMap { layer in
      layer.layer.referenceTensors.map { (key: layer.key($0.suffix), tensor: $0.value) }
    }
    return result.isEmpty
      ? nil : try TensorTable(result, path: "the initial values of '\(adapter)'")
  }

  /// The tensors of a file by the path of the layer and the suffix of the parameter.
  func initialValues(
    at sites: [TargetPlan.Site], in file: (any TensorFile)?
  ) throws(PEFTError) -> [String: [String: Tensor]] {
    guard let file else { return [:] }
    var result: [String: [String: Tensor]] = [:]
    var paths: [String: String] = [:]
    for site in sites { paths[site.prefix] = hosts[site.place].path }
    for key in file.names {
      guard let name = FileKey.name(of: key),
        let found = FileKey.split(name, { paths[$0] })
      else { continue }
      result[found.value, default: [:]][found.rest] = try file.tensor(key)
    }
    return result
  }
}
