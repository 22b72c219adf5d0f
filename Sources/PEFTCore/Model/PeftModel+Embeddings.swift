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

/// A base weight in an adapter's file.
struct StoredEmbedding {
  let key: String
  let place: Int
  let value: Tensor
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
      let stack = host.adapters as? AdapterStack
      let isWrapped = stack?.layers.isEmpty == false
      if isTarget, !isWrapped { continue }
      if stack?.copy(record.name) != nil { continue }
      let middle =
        isWrapped
        ? ".base_layer" : stack?.hasTokens == true ? ".token_adapter.base_layer" : ""
      result.append(
        ("\(Self.filePrefix)\(path)\(middle).weight", host.parameters.matrix.dequantized()))
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
        Self.embeddingNames.contains(lastName(path)) && expression?.matches(path) == true
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

  /// The base weights that a file holds beside an adapter.
  func storedEmbeddings(
    _ file: any TensorFile, _ known: Set<String>, _ form: AdapterKeyForm
  ) throws(PEFTError) -> [StoredEmbedding] {
    var result: [StoredEmbedding] = []
    for place in embeddingPlaces {
      let (path, host) = hosts[place]
      for middle in ["", ".base_layer", ".token_adapter.base_layer"] {
        let key = Self.key("\(Self.filePrefix)\(path)\(middle).weight", as: form)
        guard !known.contains(key), let entry = file[key] else { continue }
        let matrix = host.parameters.matrix
        guard entry.shape == [matrix.rows, matrix.columns] else {
          throw PEFTError(
            .shapeMismatch,
            "'\(key)' has shape \(entry.shape), the model needs \([matrix.rows, matrix.columns])",
            at: file.path,
            remedy: "The adapter was made for a base whose vocabulary was resized.")
        }
        result.append(StoredEmbedding(key: key, place: place, value: try file.tensor(key)))
      }
    }
    return result
  }

  /// Puts a stored base weight below an adapter, where it is not what the base has anyway.
  func use(_ embedding: StoredEmbedding, for adapter: String) {
    let (path, host) = hosts[embedding.place]
    let own = host.parameters.matrix
    let isSame = own.rowBlocks.allSatisfy { rows in
      own.dequantized(rows: rows).scalars == embedding.value.rowRange(rows).scalars
    }
    if isSame { return }
    stack(of: host, path: path).replaceBase(
      by: DenseMatrix(embedding.value), adapter: adapter, host: host)
  }
}
