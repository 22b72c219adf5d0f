import PEFTCore
import PEFTSupport
import Tensors

/// Settings for some of the trained tensors: what they differ in from the run's.
public struct ParameterGroupRule: Sendable, Equatable {
  /// `role`: tensors of this kind.
  public var role: ParameterRole?
  /// `pattern`: tensors with a match of this regular expression in their key, without
  /// "base_model.model.".
  public var pattern: String?
  /// `learning_rate`.
  public var learningRate: Double?
  /// `weight_decay`.
  public var weightDecay: Double?
  /// `adam_beta1`.
  public var beta1: Double?
  /// `adam_beta2`.
  public var beta2: Double?
  /// `adam_epsilon`.
  public var epsilon: Double?

  /// Creates a rule; with a role and a pattern, both must hold.
  public init(
    role: ParameterRole? = nil, pattern: String? = nil, learningRate: Double? = nil,
    weightDecay: Double? = nil, beta1: Double? = nil, beta2: Double? = nil, epsilon: Double? = nil
  ) {
    self.role = role
    self.pattern = pattern
    self.learningRate = learningRate
    self.weightDecay = weightDecay
    self.beta1 = beta1
    self.beta2 = beta2
    self.epsilon = epsilon
  }

  /// The settings with what the rule replaces.
  func applied(to settings: OptimizerSettings) -> OptimizerSettings {
    OptimizerSettings(
      learningRate: learningRate ?? settings.learningRate,
      weightDecay: weightDecay ?? settings.weightDecay, beta1: beta1 ?? settings.beta1,
      beta2: beta2 ?? settings.beta2, epsilon: epsilon ?? settings.epsilon)
  }

  /// The members of a configuration file.
  var json: JSONValue {
    let numbers: [(String, Double?)] = [
      ("learning_rate", learningRate), ("weight_decay", weightDecay), ("adam_beta1", beta1),
      ("adam_beta2", beta2), ("adam_epsilon", epsilon),
    ]
    var members: [(String, JSONValue)] = []
    if let role { members.append(("role", .string(role.rawValue))) }
    if let pattern { members.append(("pattern", .string(pattern))) }
    for case (let key, let number?) in numbers { members.append((key, .double(number))) }
    return .object(JSONObject(members))
  }
}

/// Divides trained tensors into groups.
public enum ParameterGrouping {
  /// Groups by rules: a tensor belongs to the first rule that it fits, and to the last group when
  /// it fits none.
  ///
  /// - Parameters:
  ///   - tensors: What is trained.
  ///   - model: The model that they belong to.
  ///   - rules: The rules, in order.
  ///   - settings: What a rule leaves open, and the last group's settings.
  /// - Throws: ``PEFTError`` `invalidConfiguration`: a rule that fits nothing, or a pattern that is
  ///   no regular expression.
  public static func groups(
    _ tensors: [AdapterTensor], of model: PeftModel, rules: [ParameterGroupRule],
    settings: OptimizerSettings
  ) throws(PEFTError) -> [ParameterGroup] {
    guard !rules.isEmpty else { return [ParameterGroup(tensors, settings)] }
    var patterns: [Regex<AnyRegexOutput>?] = []
    for (place, rule) in rules.enumerated() {
      do { patterns.append(try rule.pattern.map { try Regex($0) }) } catch {
        throw PEFTError(
          .invalidConfiguration,
          "'parameter_groups[\(place)].pattern': '\(rule.pattern ?? "")' is not a valid regular "
            + "expression")
      }
    }
    var groups = rules.map { ParameterGroup([], $0.applied(to: settings)) }
    var rest = ParameterGroup([], settings)
    for entry in TrainedTensor.find(tensors, in: model) {
      let name = "\(entry.path).\(entry.suffix)"
      let place = rules.indices.first { place in
        let rule = rules[place]
        if let role = rule.role, role != entry.role { return false }
        guard let pattern = patterns[place] else { return true }
        return ((try? pattern.firstMatch(in: name)) ?? nil) != nil
      }
      if let place {
        groups[place].parameters.append(entry.tensor)
      } else {
        rest.parameters.append(entry.tensor)
      }
    }
    if let empty = groups.firstIndex(where: { $0.parameters.isEmpty }) {
      throw PEFTError(
        .invalidConfiguration,
        "'parameter_groups[\(empty)]' fits no trained tensor that an earlier group has not taken",
        remedy: "Trained roles: \(roles(tensors, model)).")
    }
    return groups + (rest.parameters.isEmpty ? [] : [rest])
  }

  /// The two groups that the trainer of transformers makes: what decays, and biases and norms, which
  /// do not (`Trainer.get_decay_parameter_names`), without an empty one.
  ///
  /// - Parameters:
  ///   - tensors: What is trained.
  ///   - model: The model that they belong to.
  ///   - settings: The settings, with the decay of the first group.
  static func withoutDecayOfVectors(
    _ tensors: [AdapterTensor], of model: PeftModel, settings: OptimizerSettings
  ) -> [ParameterGroup] {
    guard settings.weightDecay > 0 else { return [ParameterGroup(tensors, settings)] }
    var fixed = settings
    fixed.weightDecay = 0
    var groups = [ParameterGroup([], settings), ParameterGroup([], fixed)]
    for entry in TrainedTensor.find(tensors, in: model) {
      groups[entry.isExemptFromDecay ? 1 : 0].parameters.append(entry.tensor)
    }
    return groups.filter { !$0.parameters.isEmpty }
  }

  private static func roles(_ tensors: [AdapterTensor], _ model: PeftModel) -> String {
    let found = Set(TrainedTensor.find(tensors, in: model).map(\.role))
    return ParameterRole.allCases.filter(found.contains).map(\.rawValue).joined(separator: ", ")
  }
}

/// LoRA+ (Hayou et al., arXiv 2402.12354): B learns faster than A.
public struct LoRAPlus: Sendable, Equatable {
  /// `loraplus_lr_ratio`: B's learning rate divided by A's.
  public var ratio: Double
  /// `loraplus_weight_decay`, in place of the run's: of everything but biases and layer norms.
  public var weightDecay: Double
  /// `loraplus_lr_embedding`: the learning rate of adapters of embeddings.
  public var embeddingRate: Double

  /// Creates settings; the defaults are peft's.
  public init(ratio: Double, weightDecay: Double = 0, embeddingRate: Double = 1e-6) {
    self.ratio = ratio
    self.weightDecay = weightDecay
    self.embeddingRate = embeddingRate
  }

  /// Refuses adapters in which there is no B to train faster than A.
  static func check(_ tensors: [AdapterTensor]) throws(PEFTError) {
    if tensors.contains(where: { $0.key.contains("lora_B") || $0.key.contains("lora_embedding_B") })
    {
      return
    }
    throw PEFTError(
      .invalidConfiguration,
      "'loraplus_lr_ratio' is about the rate of LoRA's B, and the adapter trains none",
      remedy: "Remove it.")
  }

  /// The groups that `peft.optimizers.create_loraplus_optimizer` makes, without empty ones: A and
  /// other matrices; adapters of embeddings; B and vectors that decay; those that do not.
  ///
  /// - Parameters:
  ///   - tensors: What is trained.
  ///   - model: The model that they belong to.
  ///   - settings: The rate of A, and the moments' settings.
  public func groups(
    _ tensors: [AdapterTensor], of model: PeftModel, settings: OptimizerSettings
  ) -> [ParameterGroup] {
    var slow = settings
    slow.weightDecay = weightDecay
    var embedding = slow
    embedding.learningRate = embeddingRate
    var fast = slow
    fast.learningRate = settings.learningRate * ratio
    var fixed = fast
    fixed.weightDecay = 0
    var groups = [slow, embedding, fast, fixed].map { ParameterGroup([], $0) }
    for entry in TrainedTensor.find(tensors, in: model) {
      let name = "\(entry.path).\(entry.suffix)"
      let place: Int
      if entry.role == .embeddingFactor {
        place = 1
      } else if name.contains("lora_B") || entry.tensor.parameter.shape.count == 1 {
        // As peft has it: any name with "bias" in it, and nn.LayerNorm, but not RMS norms.
        place = name.contains("bias") || entry.moduleType == "LayerNorm" ? 3 : 2
      } else {
        place = 0
      }
      groups[place].parameters.append(entry.tensor)
    }
    return groups.filter { !$0.parameters.isEmpty }
  }
}

extension TrainingArguments {
  /// Which optimiser changes the weights.
  public enum OptimizerKind: String, Sendable, CaseIterable {
    /// ``AdamW``.
    case adamW = "adamw"
    /// ``LoRAFA``.
    case loraFA = "lorafa"
  }

  /// The settings of tensors that no group has other ones for.
  public var optimizerSettings: OptimizerSettings {
    OptimizerSettings(
      learningRate: learningRate, weightDecay: weightDecay, beta1: beta1, beta2: beta2,
      epsilon: epsilon ?? (optimizer == .loraFA ? LoRAFA.defaultEpsilon : 1e-8))
  }

  /// The optimiser of a model's active adapters.
  ///
  /// Without groups of one's own ``AdamW`` does not decay biases and norms, as in transformers.
  /// Rules and ``LoRAFA`` decay every tensor that they do not say otherwise of.
  /// ``LoRAFA`` freezes parameters of the model.
  ///
  /// - Throws: ``PEFTError``: groups that fit nothing, or an adapter that the optimiser is not for.
  public func makeOptimizer(for model: PeftModel) throws(PEFTError) -> any Optimizer {
    let settings = optimizerSettings
    switch optimizer {
    case .adamW:
      if let loraPlus {
        try LoRAPlus.check(model.trainableTensors)
        return AdamW(loraPlus.groups(model.trainableTensors, of: model, settings: settings))
      }
      if parameterGroups.isEmpty {
        return AdamW(
          ParameterGrouping.withoutDecayOfVectors(
            model.trainableTensors, of: model, settings: settings))
      }
      return AdamW(
        try ParameterGrouping.groups(
          model.trainableTensors, of: model, rules: parameterGroups, settings: settings))
    case .loraFA:
      let rules = parameterGroups
      return try LoRAFA(model) { (tensors) throws(PEFTError) in
        try ParameterGrouping.groups(tensors, of: model, rules: rules, settings: settings)
      }
    }
  }
}
