import PEFTCore
import PEFTSupport

extension TrainingArguments {
  /// Reads the optimiser, its settings and the parameter groups.
  mutating func readOptimization(_ reader: inout SettingsReader) throws(PEFTError) {
    let decay = try reader.number("weight_decay", "0 or more") { $0 >= 0 }
    weightDecay = decay ?? weightDecay
    beta1 = try reader.number("adam_beta1", "from 0 to below 1") { (0..<1).contains($0) } ?? beta1
    beta2 = try reader.number("adam_beta2", "from 0 to below 1") { (0..<1).contains($0) } ?? beta2
    let epsilon = try reader.number("adam_epsilon", "0 or more") { $0 >= 0 }
    maxGradientNorm =
      try reader.number("max_grad_norm", "0 (off) or more") { $0 >= 0 } ?? maxGradientNorm
    // Hugging Face's name for the AdamW of torch.
    if reader.value("optim")?.string == "adamw_torch" {
      optimizer = .adamW
    } else {
      optimizer = try reader.choice("optim", OptimizerKind.self) ?? optimizer
    }
    self.epsilon = epsilon ?? optimizerSettings.epsilon
    try readLoRAPlus(&reader, hasDecay: (decay ?? 0) > 0)
    try readGroups(&reader)
    if loraPlus != nil, optimizer == .loraFA {
      throw PEFTError(
        .invalidConfiguration,
        "'loraplus_lr_ratio' sets the rate of B beside that of A, which 'optim: lorafa' freezes",
        remedy: "Remove one of them.")
    }
    if loraPlus != nil, !parameterGroups.isEmpty {
      throw PEFTError(
        .invalidConfiguration, "'loraplus_lr_ratio' and 'parameter_groups' both make groups",
        remedy: "Remove one of them.")
    }
  }

  private mutating func readLoRAPlus(
    _ reader: inout SettingsReader, hasDecay: Bool
  ) throws(PEFTError) {
    let ratio = try reader.number("loraplus_lr_ratio", "above 0") { $0 > 0 }
    let decay = try reader.number("loraplus_weight_decay", "0 or more") { $0 >= 0 }
    let rate = try reader.number("loraplus_lr_embedding", "0 or more") { $0 >= 0 }
    guard let ratio else {
      for (key, value) in [("loraplus_weight_decay", decay), ("loraplus_lr_embedding", rate)]
      where value != nil {
        throw PEFTError(
          .invalidConfiguration, "'\(key)' has no effect without 'loraplus_lr_ratio'",
          remedy: "Set that too, or remove the key.")
      }
      return
    }
    if hasDecay {
      throw PEFTError(
        .invalidConfiguration, "'weight_decay' has no effect with 'loraplus_lr_ratio'",
        remedy: "Set 'loraplus_weight_decay' instead.")
    }
    loraPlus = LoRAPlus(ratio: ratio)
    if let decay { loraPlus?.weightDecay = decay }
    if let rate { loraPlus?.embeddingRate = rate }
  }

  private mutating func readGroups(_ reader: inout SettingsReader) throws(PEFTError) {
    guard let value = reader.value("parameter_groups") else { return }
    guard let elements = value.array else {
      throw ConfigReader.mismatch("parameter_groups", "a list of mappings", value)
    }
    for (place, element) in elements.enumerated() {
      let key = "parameter_groups[\(place)]"
      guard let object = element.object else {
        throw ConfigReader.mismatch(key, "a mapping", element)
      }
      do throws(PEFTError) { parameterGroups.append(try ParameterGroupRule(object)) } catch {
        throw error.located(at: "'\(key)'")
      }
    }
  }
}

extension ParameterGroupRule {
  private static let keys = [
    "role", "pattern", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
  ]

  /// Reads an element of `parameter_groups`.
  init(_ object: JSONObject) throws(PEFTError) {
    var reader = SettingsReader(object)
    self.init(
      role: try reader.choice("role", ParameterRole.self), pattern: try reader.string("pattern"),
      learningRate: try reader.number("learning_rate", "0 or more") { $0 >= 0 },
      weightDecay: try reader.number("weight_decay", "0 or more") { $0 >= 0 },
      beta1: try reader.number("adam_beta1", "from 0 to below 1") { (0..<1).contains($0) },
      beta2: try reader.number("adam_beta2", "from 0 to below 1") { (0..<1).contains($0) },
      epsilon: try reader.number("adam_epsilon", "0 or more") { $0 >= 0 })
    try reader.refuseUnknown(known: Self.keys, hints: [:])
    if role == nil, pattern == nil {
      throw PEFTError(
        .invalidConfiguration, "neither 'role' nor 'pattern' says which tensors are meant")
    }
  }
}
