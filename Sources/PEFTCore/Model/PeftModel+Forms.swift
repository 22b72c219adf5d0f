import PEFTSupport
import Tensors

/// In which form an adapter is saved.
public enum AdapterForm: Sendable {
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
  public func plainTensors(of adapter: String) throws(PEFTError) -> [SafetensorsItem] {
    try items(of: adapter) { (layer) throws(PEFTError) in try layer.plainTensors() }
  }

  /// What the changes of an adapter are measured from, under the keys of its files.
  func referenceItems(of adapter: String) throws(PEFTError) -> [SafetensorsItem] {
    let record = try record(adapter)
    return record.sites.flatMap { place in
      let (path, host) = hosts[place]
      let layer = (host.adapters as? AdapterStack)?.layer(adapter)
      return (layer?.referenceTensors ?? []).map {
        SafetensorsItem("base_model.model.\(path).\($0.suffix)", $0.value)
      }
    }
  }

  private func items(
    of adapter: String,
    _ values: (any TunerLayer) throws(PEFTError) -> [(suffix: String, value: Tensor)]
  ) throws(PEFTError) -> [SafetensorsItem] {
    // Everything that is not a layer's, heads and the like, is saved as it is.
    let record = try record(adapter)
    var replaced: [String: [(suffix: String, value: Tensor)]] = [:]
    var own: [String: String] = [:]
    for place in record.sites {
      let (path, host) = hosts[place]
      guard let layer = (host.adapters as? AdapterStack)?.layer(adapter) else { continue }
      do { replaced[path] = try values(layer) } catch { throw error.located(at: path) }
      for parameter in layer.parameters {
        own["base_model.model.\(path).\(parameter.suffix)"] = path
      }
    }
    var result: [SafetensorsItem] = []
    for tensor in try tensors(of: adapter) {
      guard let path = own[tensor.key] else {
        result.append(SafetensorsItem(tensor.key, tensor.parameter.value))
        continue
      }
      for (suffix, value) in replaced.removeValue(forKey: path) ?? [] {
        result.append(SafetensorsItem("base_model.model.\(path).\(suffix)", value))
      }
    }
    return result
  }
}
