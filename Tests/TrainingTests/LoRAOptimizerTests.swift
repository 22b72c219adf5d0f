import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

/// LoRA+ and LoRA-FA against peft's own optimisers over ten batches
/// (Tests/Goldens/optimisers/lora.json, generator/optimisers.py).
struct LoRAOptimizerTests {
  static func rows(_ kind: String) -> [JSONValue] {
    let golden = try? FileSystem.readJSON(TestData.golden("optimisers/lora.json"))
    return golden?[kind]?.array ?? []
  }

  private func numbers(_ row: JSONValue, _ key: String) throws -> [Double] {
    try #require(row[key]?.array).compactMap(\.double)
  }

  @Test func allRowsAreThere() {
    #expect(Self.rows("loraplus").count >= 8 && Self.rows("lorafa").count >= 16)
  }

  @Test(arguments: Self.rows("loraplus").indices)
  func groupsAndLossesOfLoRAPlusEqualPeft(_ index: Int) throws {
    let row = Self.rows("loraplus")[index]
    let settings = try #require(row["settings"])
    let run = try GoldenRun(
      try #require(row["model"]?.string), adapter: try #require(row["adapter"]?.string))
    var arguments = TrainingArguments(outputFolder: "")
    arguments.learningRate = settings["lr"]!.double!
    arguments.loraPlus = LoRAPlus(ratio: settings["loraplus_lr_ratio"]!.double!)
    if let decay = settings["loraplus_weight_decay"]?.double {
      arguments.loraPlus?.weightDecay = decay
    }
    if let rate = settings["loraplus_lr_embedding"]?.double {
      arguments.loraPlus?.embeddingRate = rate
    }
    let optimizer = try arguments.makeOptimizer(for: run.model)
    let expected = try #require(row["groups"]?.array).filter { $0["keys"]?.array?.isEmpty == false }
    try #require(optimizer.groups.count == expected.count)
    for (group, wanted) in zip(optimizer.groups, expected) {
      let keys = wanted["keys"]!.array!.compactMap(\.string)
      #expect(Set(group.parameters.map(\.key)) == Set(keys))
      #expect(group.parameters.count == keys.count)
      #expect(group.settings.learningRate == wanted["lr"]?.double)
      #expect(group.settings.weightDecay == wanted["weight_decay"]?.double)
    }
    try run.expect(try numbers(row, "losses"), norms: try numbers(row, "grad_norms"), optimizer)
  }

  /// In float32; where the machine has bf16, peft rounds the projection to it.
  @Test(arguments: Self.rows("lorafa").indices)
  func lossesOfLoRAFAEqualPeft(_ index: Int) throws {
    let row = Self.rows("lorafa")[index]
    let settings = try #require(row["settings"])
    let run = try GoldenRun(
      try #require(row["model"]?.string), adapter: try #require(row["adapter"]?.string))
    var arguments = TrainingArguments(outputFolder: "")
    arguments.optimizer = .loraFA
    arguments.learningRate = settings["lr"]!.double!
    arguments.weightDecay = settings["weight_decay"]?.double ?? 0
    let frozen = try run.model.tensors(of: "default").filter { $0.key.contains("lora_A") }
    let before = frozen.map(\.parameter.value.scalars)
    let optimizer = try arguments.makeOptimizer(for: run.model)
    #expect(run.model.parameterCounts.trainable == row["trainable_parameters"]?.int)
    try run.expect(try numbers(row, "losses"), norms: try numbers(row, "grad_norms"), optimizer)
    #expect(frozen.map(\.parameter.value.scalars) == before)
  }

  @Test func rulesDivideByRoleAndPattern() throws {
    let run = try GoldenRun("bert", adapter: "bert/adapter_a")
    var arguments = TrainingArguments(outputFolder: "")
    arguments.learningRate = 1e-3
    arguments.parameterGroups = [
      ParameterGroupRule(pattern: #"layer\.2\..*lora_B"#, learningRate: 5e-3),
      ParameterGroupRule(role: .outputFactor, weightDecay: 0.2, beta1: 0.8),
      ParameterGroupRule(role: .bias, epsilon: 1e-4),
      ParameterGroupRule(role: .savedModule, learningRate: 0),
    ]
    let groups = try arguments.makeOptimizer(for: run.model).groups
    try #require(groups.count == 5)
    #expect(groups[0].parameters.count == 6 && groups[0].settings.learningRate == 5e-3)
    // Two layers of six, and the pooler.
    #expect(groups[1].parameters.count == 13)
    #expect(
      groups[1].settings == OptimizerSettings(learningRate: 1e-3, weightDecay: 0.2, beta1: 0.8))
    #expect(groups[2].parameters.map(\.key) == ["base_model.model.classifier.bias"])
    #expect(groups[2].settings.epsilon == 1e-4)
    #expect(groups[3].parameters.map(\.key) == ["base_model.model.classifier.weight"])
    #expect(groups[4].parameters.allSatisfy { $0.key.hasSuffix("lora_A.weight") })
    #expect(groups[4].settings == OptimizerSettings(learningRate: 1e-3))
  }

  /// Which tensors decay: those of `Trainer.get_decay_parameter_names` in transformers 5 for the
  /// same model with peft.
  @Test func biasesAndNormsDoNotDecay() throws {
    let run = try GoldenRun("bert", adapter: "bert/adapter_a")
    var arguments = TrainingArguments(outputFolder: "")
    #expect(try arguments.makeOptimizer(for: run.model).groups.count == 1)
    arguments.weightDecay = 0.1
    let groups = try arguments.makeOptimizer(for: run.model).groups
    try #require(groups.count == 2)
    #expect(groups[0].settings.weightDecay == 0.1 && groups[1].settings.weightDecay == 0)
    #expect(groups[1].parameters.map(\.key) == ["base_model.model.classifier.bias"])
    #expect(groups[0].parameters.count == run.model.trainableTensors.count - 1)
    // Rules say themselves what decays.
    arguments.parameterGroups = [ParameterGroupRule(role: .outputFactor, learningRate: 1)]
    let ruled = try arguments.makeOptimizer(for: run.model).groups
    #expect(ruled.count == 2 && ruled.allSatisfy { $0.settings.weightDecay == 0.1 })
  }

  /// Names against transformers' patterns `bias`, `layernorm`, `rmsnorm`, `(?:^|\.)norm(?:$|\.)` and
  /// `_norm(?:$|\.)`, without regard to case, and its rule about the type LayerNorm.
  @Test(arguments: [
    ("model.norm", "weight", "LlamaRMSNorm", true),
    ("layers.0.input_layernorm", "weight", "LlamaRMSNorm", true),
    ("encoder.LayerNorm", "weight", "LayerNorm", true), ("ln_1", "weight", "LayerNorm", true),
    ("self_attn.q_norm", "weight", "RMS", true), ("norm", "weight", "RMS", true),
    ("self_attn.q_proj", "lora_B.bias", "Linear", true),
    ("self_attn.q_proj", "lora_magnitude_vector", "Linear", false),
    ("self_attn.q_proj", "lora_A.weight", "Linear", false),
    ("norms.normal", "weight", "Linear", false), ("score", "weight", "Linear", false),
  ])
  func namesOfWhatDoesNotDecay(
    _ path: String, _ suffix: String, _ type: String, _ isExempt: Bool
  ) {
    let tensor = TrainedTensor(
      tensor: AdapterTensor(key: "k", parameter: Parameter(Tensor(shape: [1], scalars: [0]))),
      path: path, suffix: suffix, moduleType: type)
    #expect(tensor.isExemptFromDecay == isExempt)
  }

  @Test func rulesThatFitNothingAreErrors() throws {
    let run = try GoldenRun("llama", adapter: "llama/adapter_a")
    var arguments = TrainingArguments(outputFolder: "")
    arguments.parameterGroups = [ParameterGroupRule(role: .bias)]
    var text = failure { _ = try arguments.makeOptimizer(for: run.model) }
    #expect(text.contains("'parameter_groups[0]' fits no trained tensor"), "\(text)")
    #expect(text.contains("Trained roles: lora_A, lora_B."), "\(text)")
    arguments.parameterGroups = [ParameterGroupRule(pattern: "(")]
    text = failure { _ = try arguments.makeOptimizer(for: run.model) }
    #expect(text.contains("'(' is not a valid regular expression"), "\(text)")
    // A failed attempt freezes nothing.
    arguments.optimizer = .loraFA
    let before = run.model.parameterCounts.trainable
    #expect(throws: PEFTError.self) { _ = try arguments.makeOptimizer(for: run.model) }
    #expect(run.model.parameterCounts.trainable == before)
  }

  @Test func settingsAreRead() throws {
    func read(_ members: [(String, JSONValue)]) throws(PEFTError) -> TrainingArguments {
      let all = [("model", JSONValue.string("m")), ("output_dir", "o")] + members
      return try RunConfiguration(JSONObject(all), registry: standardRegistry).arguments
    }
    let plain = try read([])
    #expect(plain.optimizer == .adamW && plain.optimizerSettings.epsilon == 1e-8)
    #expect(try read([("optim", "adamw_torch")]).optimizer == .adamW)
    let frozen = try read([("optim", "lorafa")])
    #expect(frozen.optimizer == .loraFA && frozen.optimizerSettings.epsilon == 1e-6)
    #expect(
      try read([("loraplus_lr_ratio", 16), ("loraplus_weight_decay", 0.1)]).loraPlus
        == LoRAPlus(ratio: 16, weightDecay: 0.1, embeddingRate: 1e-6))
    let rule: JSONValue = ["role": "lora_B", "learning_rate": 0.01]
    let grouped = try read([("parameter_groups", .array([rule]))])
    #expect(
      grouped.parameterGroups == [ParameterGroupRule(role: .outputFactor, learningRate: 0.01)])
    // What is written is read again as the same.
    let again = try TrainingArguments(reading: grouped.object)
    #expect(again == grouped)

    let errors: [([(String, JSONValue)], String)] = [
      ([("optim", "sgd")], "'optim'"),
      ([("loraplus_weight_decay", 0.1)], "'loraplus_weight_decay' has no effect"),
      ([("loraplus_lr_ratio", 0)], "'loraplus_lr_ratio' is 0.0, it must be above 0"),
      (
        [("loraplus_lr_ratio", 2), ("weight_decay", 0.1)],
        "Set 'loraplus_weight_decay' instead"
      ),
      ([("loraplus_lr_ratio", 2), ("optim", "lorafa")], "'optim: lorafa' freezes"),
      (
        [("loraplus_lr_ratio", 2), ("parameter_groups", .array([rule]))],
        "'loraplus_lr_ratio' and 'parameter_groups'"
      ),
      ([("parameter_groups", "x")], "'parameter_groups' is a string"),
      ([("parameter_groups", .array([["lr": 1]]))], "'parameter_groups[0]': unknown key 'lr'"),
      ([("parameter_groups", .array([["learning_rate": 1]]))], "neither 'role' nor 'pattern'"),
    ]
    for (members, expected) in errors {
      let text = failure { _ = try read(members) }
      #expect(text.contains(expected), "\(text)")
    }
  }

  /// As peft's pseudoinverse: a rank that A does not have is left out, so nothing explodes.
  @Test func aRankDeficientFactorIsProjected() throws {
    let run = try GoldenRun("llama", adapter: "llama/adapter_a")
    for tensor in try run.model.tensors(of: "default") where tensor.key.contains("lora_A") {
      tensor.parameter.assign(.zeros(tensor.parameter.shape))
    }
    let optimizer = try LoRAFA(run.model)
    let batch = try run.batch("0.")
    let loss = try #require(
      try run.objective.loss(
        batch, .init(batch.tokens.layout), count: run.objective.labelCount(batch)))
    optimizer.update(loss.backward())
    #expect(optimizer.parameters.allSatisfy { $0.parameter.value.allFinite })
  }

  @Test func loraFARefusesMagnitudes() throws {
    let settings = TinyRun.choosing(.dora).merging(["optim": "lorafa"]) { $1 }
    let text = failure { _ = try TinyRun().prepare(settings).makeTrainer() }
    #expect(text.contains("a change without magnitude, and the adapter has one"), "\(text)")
  }
}

extension TrainingArguments {
  /// Reads settings as they were written.
  fileprivate init(reading object: JSONObject) throws(PEFTError) {
    var reader = SettingsReader(object)
    try self.init(&reader)
  }
}
