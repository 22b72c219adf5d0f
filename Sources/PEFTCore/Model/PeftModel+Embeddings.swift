import NN
import PEFTSupport
import Tensors

/// Whether an adapter's file holds the base's embeddings beside it (peft, `save_embedding_layers`).
public enum EmbeddingSaving: Sendable {
  /// Where an embedding is a target by exactly transformers' name for it, as in peft.
  case automatic
  /// Always.
  case always
  /// Never.
  case never
}

extension PeftModel {
  /// The base's embeddings that go into an adapter's file.
  func embeddingTensors(
    of record: AdapterRecord, saving: EmbeddingSaving
  ) -> [(key: String, value: Tensor)] {
    let isTarget = targetsEmbeddings(record.config)
    var saves = saving == .always
    if saving == .automatic, isTarget, record.config.trainableTokens == nil {
      warnings.append(
        "Setting `save_embedding_layers` to `True` as embedding layers found in `target_modules`.")
      saves = true
    }
    guard saves else { return [] }
    if info.modelType.isEmpty {
      warnings.append(
        "Could not identify embedding layer(s) because the model is not a 🤗 transformers model.")
      return []
    }
    var result: [(String, Tensor)] = []
    for place in embeddingPlaces {
      let (path, host) = hosts[place]
      let stack = host.stack
      let isWrapped = stack?.layers.isEmpty == false
      if isTarget, !isWrapped { continue }
      if stack?.copy(record.name) != nil { continue }
      let place =
        isWrapped
        ? FileKey.inside(path)
        : stack?.hasTokens == true ? FileKey.inside("\(path).token_adapter") : path
      result.append((FileKey.key("\(place).weight"), host.untouched.matrix.dequantized()))
    }
    return result
  }

  /// Whether a config names an embedding as peft looks for it: exactly, or by an expression.
  private func targetsEmbeddings(_ config: any TunerConfig) -> Bool {
    switch config.targets.modules {
    case .list(let names): return names.contains { Self.embeddingNames.contains($0) }
    case .regex(let pattern):
      let expression = try? NamePattern(pattern, key: "target_modules")
      return modules.contains { path, _ in
        Self.isEmbedding(path) && expression?.matches(path) == true
      }
    default: return false
    }
  }

  /// The two ends of the model.
  private var embeddingPlaces: [Int] {
    guard let input = inputEmbedding else { return [] }
    let rows = hosts[input].host.inputFeatures
    let heads = info.outputHeads.compactMap { places[$0] }.filter {
      hosts[$0].host.outputFeatures == rows
    }
    return [input] + heads
  }
}
