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
    var replaced: [Int: [(key: String, tensor: Tensor)]] = [:]
    var own: [String: Int] = [:]
    for site in record.layout {
      let (path, host) = hosts[site.place]
      guard let layer = host.stack?.layer(adapter) else { continue }
      for parameter in layer.parameters { own[parameter.keys(at: site.prefix)[0]] = site.place }
      do {
        replaced[site.place] = try layer.plainTensors().map {
          (Self.key($0.suffix, at: site.prefix), $0.value)
        }
      } catch { throw error.located(at: path) }
    }
    var result: [(key: String, tensor: Tensor)] = []
    for tensor in try tensors(of: adapter) where tensor.isStored {
      if let place = own[tensor.key] {
        result += replaced.removeValue(forKey: place) ?? []
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
    let record = try record(adapter)
    var result: [(key: String, tensor: Tensor)] = []
    for site in record.layout.sorted(by: { $0.place < $1.place }) {
      let layer = hosts[site.place].host.stack?.layer(adapter)
      for (suffix, value) in layer?.referenceTensors ?? [] {
        result.append((Self.key(suffix, at: site.prefix), value))
      }
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

  private static func key(_ suffix: String, at path: String) -> String {
    FileKey.key("\(path).\(suffix)")
  }
}
