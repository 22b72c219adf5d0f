import NN
import PEFTCore

/// What a trained tensor is, by its key and the module that it belongs to.
public enum ParameterRole: String, Sendable, CaseIterable {
  /// The factor on the input of a layer.
  case inputFactor = "lora_A"
  /// The factor on the output of a layer.
  case outputFactor = "lora_B"
  /// A factor on an embedding.
  case embeddingFactor = "lora_embedding"
  /// The lengths of a decomposed weight's rows.
  case magnitude = "lora_magnitude_vector"
  /// A bias, of whatever layer.
  case bias
  /// The weight of a norm that is trained in full.
  case norm
  /// The weight of a module that is trained in full: a head, an embedding.
  case savedModule = "saved_module"
  /// What none of the others is.
  case other
}

/// A trained tensor and where it sits.
public struct TrainedTensor {
  /// The parameter with its key.
  public let tensor: AdapterTensor
  /// The path of its module in the base model.
  public let path: String
  /// What the key adds to the path: "lora_A.weight", "weight".
  public let suffix: String
  /// The class name of the module.
  public let moduleType: String

  /// What it is.
  public var role: ParameterRole {
    if suffix == "bias" || suffix.hasSuffix(".bias") { return .bias }
    switch suffix.split(separator: ".").first {
    case "lora_A": return .inputFactor
    case "lora_B": return .outputFactor
    case "lora_embedding_A", "lora_embedding_B": return .embeddingFactor
    case "lora_magnitude_vector": return .magnitude
    case "weight": return moduleType.hasSuffix("Norm") ? .norm : .savedModule
    default: return .other
    }
  }

  /// Whether the trainer of transformers would not decay it: a tensor of a LayerNorm, or one with
  /// "bias" or the name of a norm anywhere in its name.
  var isExemptFromDecay: Bool {
    let name = "\(path).\(suffix)".lowercased()
    if moduleType == "LayerNorm" || ["bias", "layernorm", "rmsnorm"].contains(where: name.contains)
    {
      return true
    }
    return name.split(separator: ".").contains { $0 == "norm" || $0.hasSuffix("_norm") }
  }

  /// Finds the modules of tensors.
  static func find(_ tensors: [AdapterTensor], in model: PeftModel) -> [TrainedTensor] {
    let types = Dictionary(
      uniqueKeysWithValues: model.base.namedModules().map { ($0.path, $0.module.typeName) })
    return tensors.map { tensor in
      let name = FileKey.name(of: tensor.key) ?? tensor.key
      guard let found = FileKey.split(name, { types[$0] }) else {
        return TrainedTensor(tensor: tensor, path: "", suffix: name, moduleType: "")
      }
      return TrainedTensor(
        tensor: tensor, path: found.path, suffix: found.rest, moduleType: found.value)
    }
  }
}
