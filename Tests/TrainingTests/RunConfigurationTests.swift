import NN
import PEFTCore
import PEFTSupport
import Testing
import TunerDoRA
import TunerEDoRA
import TunerLoRA

@testable import Training

var standardRegistry: TunerRegistry {
  var registry = TunerRegistry()
  registry.register(LoRATuner.self)
  registry.register(DoRATuner.self)
  registry.register(EDoRATuner.self)
  registry.register(LoRAXSTuner.self)
  return registry
}

struct RunConfigurationTests {
  private func parse(_ json: String) throws -> RunConfiguration {
    var object = JSONObject([("model", "m"), ("output_dir", "o")])
    for (key, value) in try JSONValue(parsing: json).object!.members { object[key] = value }
    return try RunConfiguration(object, registry: standardRegistry)
  }

  private func failure(_ json: String) -> String {
    do {
      _ = try parse(json)
      return "no error"
    } catch { return "\(error)" }
  }

  /// The defaults of `TrainingArguments` in transformers, but for the four that its documentation
  /// comment names.
  @Test func defaultsAreHuggingFaces() throws {
    let arguments = try parse("{}").arguments
    var defaults = TrainingArguments(outputFolder: "o")
    defaults.epsilon = defaults.optimizerSettings.epsilon
    #expect(arguments == defaults)
    #expect(arguments.epochs == 3 && arguments.trainBatchSize == 8 && arguments.seed == 42)
    #expect(arguments.learningRate == 5e-5 && arguments.schedule == .linear)
    #expect(arguments.weightDecay == 0 && arguments.maxGradientNorm == 1)
    #expect(arguments.beta1 == 0.9 && arguments.beta2 == 0.999 && arguments.epsilon == 1e-8)
    #expect(arguments.evaluationStrategy == .epoch && arguments.saveStrategy == .epoch)
  }

  @Test func everyKeyIsRead() throws {
    let run = try parse(
      """
      {"model": null, "model_name_or_path": "dir", "task_type": "SEQ_CLS", "precision": "bfloat16",
       "random_weights": true, "model_config": {"hidden_dropout_prob": 0},
       "train_file": "a.csv", "validation_file": "b.csv", "test_file": "c.csv",
       "data_format": "classification", "text_column": "t", "text_pair_column": "p",
       "label_column": "l", "max_length": 64, "labels": ["x", 1], "method": "lora",
       "lora": {"r": 4}, "init_adapter": "start", "num_train_epochs": 1.5, "max_steps": 7,
       "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3,
       "gradient_accumulation_steps": 4, "learning_rate": 1, "lr_scheduler_type": "cosine",
       "warmup_ratio": 0.1, "weight_decay": 0.2, "adam_beta1": 0.5, "adam_beta2": 0.6,
       "adam_epsilon": 1e-6, "max_grad_norm": 0, "seed": 5, "shuffle": "no",
       "eval_strategy": "steps", "eval_steps": 10, "save_strategy": "steps", "save_steps": 20,
       "save_total_limit": 2, "load_best_model_at_end": true,
       "metric_for_best_model": "eval_loss", "resume_from_checkpoint": "there",
       "logging_steps": 3, "gradient_checkpointing": true, "num_threads": 1}
      """)
    #expect(run.model == "dir" && run.taskType == "SEQ_CLS" && run.precision == .bfloat16)
    #expect(run.randomWeights && run.modelConfig["hidden_dropout_prob"] == .int(0))
    #expect(run.initialAdapter == "start" && run.methodSettings["r"] == .int(4))
    let data = run.data
    #expect(data.trainFile == "a.csv" && data.validationFile == "b.csv" && data.testFile == "c.csv")
    #expect(data.format == .classification && data.textColumn == "t")
    #expect(data.textPairColumn == "p" && data.labelColumn == "l" && data.maxLength == 64)
    #expect(data.labels == .list(["x", "1"]))
    var expected = TrainingArguments(outputFolder: "o")
    expected.epochs = 1.5
    expected.maxSteps = 7
    expected.trainBatchSize = 2
    expected.evaluationBatchSize = 3
    expected.accumulationSteps = 4
    expected.learningRate = 1
    expected.schedule = .cosine
    expected.warmup = .ratio(0.1)
    expected.weightDecay = 0.2
    expected.beta1 = 0.5
    expected.beta2 = 0.6
    expected.epsilon = 1e-6
    expected.maxGradientNorm = 0
    expected.seed = 5
    expected.shuffles = false
    expected.evaluationStrategy = .steps
    expected.evaluationSteps = 10
    expected.saveStrategy = .steps
    expected.saveSteps = 20
    expected.saveTotalLimit = 2
    expected.loadsBestAtEnd = true
    expected.bestMetric = "loss"
    expected.resumption = .checkpoint("there")
    expected.loggingSteps = 3
    expected.recomputesBlocks = true
    expected.threads = 1
    #expect(run.arguments == expected)
  }

  /// What a run saves reads back to the same settings.
  @Test func theSavedFormReadsBack() throws {
    let run = try parse(
      #"{"learning_rate": 0.001, "warmup_ratio": 0.06, "lora": {"r": 2}, "labels": "l.json"}"#)
    let again = try RunConfiguration(run.object, registry: standardRegistry)
    #expect(again.object == run.object)
    #expect(again.arguments == run.arguments && again.data == run.data)
  }

  @Test func unknownKeysGetTheNearestKnownOne() {
    #expect(
      failure(#"{"learnig_rate": 1}"#)
        == "unknown key 'learnig_rate'. Did you mean 'learning_rate'?")
    #expect(failure(#"{"evaluation_strategy": "no"}"#).contains("Did you mean 'eval_strategy'?"))
    #expect(failure(#"{"lora_alpha": 1}"#) == "unknown key 'lora_alpha'. It belongs under 'lora'.")
    #expect(failure(#"{"bf16": true}"#).contains("'precision: bfloat16'"))
  }

  @Test(arguments: [
    (
      #"{"learning_rate": "fast"}"#, "'learning_rate' is a string (\"fast\"), a number was expected"
    ),
    (#"{"learning_rate": -1}"#, "'learning_rate' is -1.0, it must be 0 or more"),
    (#"{"num_train_epochs": 0}"#, "'num_train_epochs' is 0.0, it must be above 0"),
    (#"{"per_device_train_batch_size": 0}"#, "'per_device_train_batch_size' is 0"),
    (#"{"per_device_train_batch_size": 1.5}"#, "'per_device_train_batch_size' is a number (1.5)"),
    (#"{"max_steps": 0}"#, "'max_steps' is 0"),
    (#"{"warmup_ratio": 1.5}"#, "'warmup_ratio' is 1.5, it must be from 0 to 1"),
    (#"{"adam_beta2": 1}"#, "'adam_beta2' is 1.0, it must be from 0 to below 1"),
    (#"{"lr_scheduler_type": "linaer"}"#, "Did you mean 'linear'?"),
    (#"{"precision": "float16"}"#, "one of float32, bfloat16 was expected"),
    (#"{"save_strategy": 3}"#, "'save_strategy' is an integer (3)"),
    (#"{"shuffle": "maybe"}"#, "'shuffle' is a string (\"maybe\"), true or false was expected"),
    (#"{"lora": 8}"#, "'lora' is an integer (8), a mapping was expected"),
    (#"{"method": "lroa"}"#, "'method' is 'lroa', which is not known. Did you mean 'lora'?"),
    (#"{"task_type": "CLS"}"#, "invalid task type: 'CLS'"),
    (#"{"model_name_or_path": "x"}"#, "'model' and 'model_name_or_path' mean the same"),
    (#"{"model": null}"#, "the key 'model' is missing"),
    (#"{"output_dir": null}"#, "the key 'output_dir' is missing"),
    (
      #"{"resume_from_checkpoint": 3}"#,
      "'resume_from_checkpoint' is 3, true or a folder was expected"
    ),
    (#"{"load_best_model_at_end": true, "save_strategy": "no"}"#, "'save_strategy' is no"),
    (
      #"{"load_best_model_at_end": true, "eval_strategy": "steps"}"#,
      "an evaluation for every checkpoint"
    ),
    (#"{"labels": {"a": 0}}"#, "'labels' is an object"),
    (#"{"max_length": 1}"#, "'max_length' is 1, it must be at least 2"),
    (#"{"warmup_steps": 1e30}"#, "'warmup_steps' is 1e+30, it must be from 0 to 2147483647"),
    (
      #"{"per_device_train_batch_size": 9223372036854775807}"#,
      "'per_device_train_batch_size' is 9223372036854775807, it must be at most 2147483647"
    ),
    (#"{"max_steps": 9223372036854775806}"#, "it must be at most 2147483647"),
    (#"{"gradient_accumulation_steps": 2147483648}"#, "it must be at most 2147483647"),
    (
      #"{"seed": 9007199254740993}"#,
      "'seed' is 9007199254740993, it must be at most 9007199254740992"
    ),
  ])
  func errorsNameTheKey(_ json: String, _ expected: String) {
    #expect(failure(json).contains(expected), "\(failure(json))")
  }

  /// The largest settings that are read overflow nothing.
  @Test func theLargestCountsCanBePlanned() throws {
    let arguments = try parse(
      """
      {"per_device_train_batch_size": 2147483647, "gradient_accumulation_steps": 2147483647,
       "max_steps": 2147483647, "warmup_steps": 2147483647, "seed": 9007199254740992}
      """
    ).arguments
    let plan = TrainingPlan(arguments, exampleCount: 3)
    #expect(plan.totalSteps == 2_147_483_647 && plan.warmupSteps == 2_147_483_647)
    #expect(plan.batches(of: plan.totalSteps - 1).map(\.places) == [0..<3])
    #expect(plan.epochs(after: plan.totalSteps) == 2_147_483_647)
    #expect(plan.epochCount == 2_147_483_647)
  }

  @Test func strategiesFollowFromTheirSteps() throws {
    let run = try parse(#"{"eval_steps": 5, "save_steps": 7}"#).arguments
    #expect(run.evaluationStrategy == .steps && run.saveStrategy == .steps)
    // A bare `no` is false to YAML 1.1 readers.
    #expect(try parse(#"{"save_strategy": false}"#).arguments.saveStrategy == .no)
    #expect(try parse(#"{"warmup_steps": 0.1}"#).arguments.warmup == .ratio(0.1))
    #expect(try parse(#"{"warmup_steps": 3, "warmup_ratio": 0.1}"#).arguments.warmup == .steps(3))
    #expect(
      try parse(#"{"lr_scheduler_type": "constant_with_warmup"}"#).arguments.schedule
        == .constantWithWarmup)
    #expect(try parse(#"{"resume_from_checkpoint": true}"#).arguments.resumption == .newest)
  }

  @Test func theAdaptersConfigRefusesUnknownKeys() throws {
    let run = try parse(#"{"lora": {"r": 4, "lora_alhpa": 3}}"#)
    let error = #expect(throws: PEFTError.self) {
      _ = try run.adapterConfig(registry: standardRegistry, task: .causalLM)
    }
    #expect(
      error?.description.contains("unknown key 'lora.lora_alhpa'. Did you mean 'lora_alpha'?")
        == true)
    let zero = #expect(throws: PEFTError.self) {
      _ = try parse(#"{"lora": {"r": 0}}"#).adapterConfig(
        registry: standardRegistry, task: .causalLM)
    }
    #expect(zero?.description.contains("`r` should be a positive integer") == true)
    let config = try parse(#"{"lora": {"r": 4}}"#).adapterConfig(
      registry: standardRegistry, task: .causalLM)
    #expect((config as? LoRAConfig)?.rank == 4)
    #expect(config.taskType == "CAUSAL_LM")
  }

  @Test func dottedPathsSetMembers() throws {
    var object = try JSONValue(parsing: #"{"lora": {"r": 8}, "seed": 1}"#).object!
    try object.set("lora.r", to: 16)
    try object.set("lora.extra.deep", to: true)
    try object.set("seed", to: 2)
    try object.set("model_config.x", to: 0)
    #expect(object["lora"] == ["r": 16, "extra": ["deep": true]])
    #expect(object["seed"] == 2 && object["model_config"] == ["x": 0])
    let error = #expect(throws: PEFTError.self) { try object.set("seed.x", to: 1) }
    #expect(error?.message.contains("'seed' is an integer, not a mapping") == true)
    #expect(throws: PEFTError.self) { try object.set("a..b", to: 1) }
  }
}
