import NN
import PEFTSupport

/// Which layers share the weight of the input embedding, and what of an adapter they share.
struct WeightTying {
  /// Index of the embedding's host.
  var embedding = 0
  /// Indices of the hosts that are tied to it.
  var places: [Int] = []
  /// Whether they get the adapter layer of the embedding.
  var targets = false
  /// Whether they get its fully trained copy.
  var saves = false
}

extension PeftModel {
  /// The names that transformers gives to the two ends of a language model.
  static let embeddingNames = ["embed_tokens", "lm_head"]

  /// Whether a path is that of one of them.
  static func isEmbedding(_ path: String) -> Bool {
    embeddingNames.contains(TargetMatcher.lastComponent(path))
  }

  /// Index of the host that looks up the model's input.
  var inputEmbedding: Int? {
    if let path = info.inputEmbedding { return places[path] }
    let embeddings = hosts.indices.filter { hosts[$0].host is Embedding }
    return embeddings.first { TargetMatcher.ends(hosts[$0].path, with: "embed_tokens") }
      ?? embeddings.first
  }

  /// Indices of the hosts that shared the input embedding's weight when the model was wrapped.
  var tiedPlaces: [Int] { selection.tiedPaths.compactMap { places[$0] } }

  /// Completes a config whose adapter is to treat tied layers as one, and says what is odd about
  /// one that touches such layers.
  func tie(_ config: inout any TunerConfig, _ plan: inout TargetPlan) -> WeightTying {
    var tying = WeightTying()
    let saves = config.modulesToSave.contains { Self.isEmbedding($0) }
    var targets = false
    switch config.targets.modules {
    case .list(let names):
      targets = names.contains { Self.isEmbedding($0) }
    case .regex(let pattern):
      let expression = try? NamePattern(pattern, key: "target_modules")
      targets = Self.embeddingNames.contains { expression?.matches($0) == true }
    default: break
    }
    guard config.ensuresWeightTying else {
      if saves || targets, !selection.tiedPaths.isEmpty {
        plan.warnings.append(
          "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter, but "
            + "`ensure_weight_tying` is not set to True. This can lead to complications, for "
            + "example when merging the adapter or converting your model to formats other than "
            + "safetensors. Check the discussion here: "
            + "https://github.com/huggingface/peft/issues/2777")
      }
      return tying
    }
    guard let embedding = inputEmbedding, !selection.tiedPaths.isEmpty else {
      plan.warnings.append(
        "You have requested `ensure_weight_tying`, but no tied modules were found in the model")
      return tying
    }
    tying.embedding = embedding
    tying.places = tiedPlaces
    let path = hosts[embedding].path
    /// The list without names of tied layers, and with the embedding.
    func completed(_ names: [String]) -> [String] {
      let kept = names.filter { name in
        !selection.tiedPaths.contains { TargetMatcher.contains($0, name) }
      }
      return kept.contains(path) ? kept : kept + [path]
    }
    if saves {
      tying.saves = true
      config.modulesToSave = completed(config.modulesToSave)
    } else if targets {
      tying.targets = true
      switch config.targets.modules {
      case .list(let names): config.targets.modules = .list(completed(names))
      case .regex(let pattern):
        config.targets.modules = .regex("(?:\(pattern)|^\(path.replacing(".", with: "\\."))$)")
      default: break
      }
    } else {
      plan.warnings.append(
        "You have requested `ensure_weight_tying`, but no tied modules are added in either "
          + "`modules_to_save` or `target_modules`")
    }
    return tying
  }

  /// Finds the hosts of trained rows.
  func matchTokens(_ config: any TunerConfig, _ plan: inout TargetPlan) throws(PEFTError) {
    guard let tokens = config.trainableTokens else { return }
    var found: [(place: Int, name: String, indices: [Int])] = []
    switch tokens {
    case .inputEmbedding(let indices):
      guard let place = inputEmbedding else {
        throw PEFTError(
          .noMatchingModule,
          "Target modules {'embed_tokens'} not found in the base model. Please check the target "
            + "modules and try again.", remedy: "'trainable_token_indices' can name a module.")
      }
      found = [(place, hosts[place].path, indices)]
    case .modules(let entries):
      for entry in entries {
        let matching = hosts.indices.filter {
          TargetMatcher.ends(hosts[$0].path, with: entry.module)
        }
        guard !matching.isEmpty else {
          throw PEFTError(
            .noMatchingModule,
            "Target modules {'\(entry.module)'} not found in the base model. Please check the "
              + "target modules and try again.")
        }
        found += matching.map { ($0, entry.module, entry.indices) }
      }
    }
    for (place, name, indices) in found { try checkTokens(place, name, indices, plan) }
    let embedding = found.first { $0.place == inputEmbedding }
    let tied = found.filter { tiedPlaces.contains($0.place) }
    let mismatched = tied.filter { $0.indices != embedding?.indices }
    if embedding != nil, !mismatched.isEmpty, config.ensuresWeightTying {
      let layers = found.map { "\($0.name): \($0.indices)" }.joined(separator: ", ")
      throw PEFTError(
        .invalidConfiguration,
        "Cannot ensure weight tying when different token indices are specified for tied layers. "
          + "Conflicting layers: \(layers). Please use the same indices for all tied layers or set "
          + "ensure_weight_tying=False.")
    }
    let sharesRows = embedding != nil && mismatched.isEmpty
    for (place, _, indices) in found where !indices.isEmpty {
      if sharesRows, tiedPlaces.contains(place) { continue }
      plan.tokens.append((place, indices, nil))
    }
    if sharesRows, let embedding, !embedding.indices.isEmpty {
      plan.tokens += tiedPlaces.map { ($0, embedding.indices, embedding.place) }
    }
  }

  private func checkTokens(
    _ place: Int, _ name: String, _ indices: [Int], _ plan: TargetPlan
  ) throws(PEFTError) {
    let (path, host) = hosts[place]
    guard host is Embedding || host is Linear else {
      throw PEFTError(
        .unsupported, "'trainable_token_indices': \(host.typeName) has no rows for tokens",
        at: path, remedy: "Name embeddings and linear heads.")
    }
    if plan.saved.contains(place) {
      throw PEFTError(
        .invalidConfiguration,
        "The embedding layer is already marked to be trained fully, either specify "
          + "`modules_to_save=[..., \"\(name)\", ...]` or `trainable_tokens={'\(name)': x}` but "
          + "not both.", at: path)
    }
    let rows = host.parameters.matrix.rows
    if let index = indices.first(where: { $0 < 0 || $0 >= rows }) {
      throw PEFTError(
        .invalidConfiguration,
        "index \(index) is out of bounds for dimension 0 with size \(rows)", at: path,
        remedy: "Check 'trainable_token_indices'.")
    }
    if Set(indices).count != indices.count {
      throw PEFTError(
        .invalidConfiguration, "'trainable_token_indices': a token stands twice in \(indices)",
        at: path, remedy: "List every token once.")
    }
  }
}
