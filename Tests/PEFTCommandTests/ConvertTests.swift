import PEFT
import TestSupport
import Testing

@testable import PEFTCommand

/// `peft train` with DoRA, EDoRA and LoRA-XS, and `peft convert`, as processes on the tiny golden
/// models.
@Suite(.serialized)
struct ConvertTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    var lines = ""
    for number in 0..<12 {
      lines += "{\"input_ids\": [\(number), 5, \(number + 20)], \"label\": \(number % 2)}\n"
    }
    try FileSystem.write(folder.file("train.jsonl"), lines)
  }

  private func run(
    _ method: String, _ settings: String, steps: Int = 4
  ) throws -> Tool.Outcome {
    try FileSystem.write(
      folder.file("run.yaml"),
      """
      model: \(golden("bert/model"))
      task_type: SEQ_CLS
      labels: [even, odd, c, d, e]
      train_file: \(folder.file("train.jsonl"))
      output_dir: \(folder.file(method))
      max_steps: \(steps)
      per_device_train_batch_size: 4
      learning_rate: 1e-2
      method: \(method)
      \(method): \(settings)
      """)
    return try Tool.run(["train", "--config", folder.file("run.yaml")])
  }

  private func train(_ method: String, _ settings: String, steps: Int = 4) throws {
    let outcome = try run(method, settings, steps: steps)
    try #require(outcome.status == 0, "\(outcome.errors)")
  }

  private func convert(_ from: String, _ arguments: String...) throws -> Tool.Outcome {
    try Tool.run(
      ["convert", "--model", golden("bert/model"), "--adapter", folder.file(from)] + arguments)
  }

  /// LoRA+ has no meaning where no B is trained.
  @Test func methodsWithoutAFastFactorRefuseLoRAPlus() throws {
    let outcome = try run("lora-xs", "{r: 2, target_modules: [query]}\nloraplus_lr_ratio: 16")
    #expect(outcome.status == 1)
    #expect(outcome.errors.contains("'loraplus_lr_ratio' is about the rate of LoRA's B"))
  }

  @Test func trainsEveryMethod() throws {
    for (method, settings, keys, shown) in [
      (
        "dora", "{r: 2, target_modules: [query]}", ["lora_magnitude_vector"],
        ["method", "LORA", "use_dora", "lora_magnitude_vector"]
      ),
      (
        "edora",
        "{r: 2, target_modules: [query], init_sigma: 1.0e-3, reconstruct_config: {svd: {n_iter: 10}}}",
        ["lora_magnitude_vector", "query_lora_latent_mapping"],
        ["EDORA", "init_sigma", "n_iter", "query_lora_latent_mapping"]
      ),
      (
        "lora-xs", "{r: 2, target_modules: [query]}", ["query_lora_latent_mapping"],
        ["LORA_XS", "reconstruct_config"]
      ),
    ] {
      try train(method, settings)
      let adapter = try AdapterFolder(folder.file(method))
      #expect(adapter.config["peft_type"] == "LORA")
      #expect(adapter.config["use_dora"] == .bool(method != "lora-xs"))
      for key in keys {
        #expect(adapter.tensors.names.contains { $0.contains(key) }, "\(method): \(key)")
      }
      // Evaluation finds the method from the files.
      try Tool.succeed([
        "eval", "--model", golden("bert/model"), "--adapter", folder.file(method), "--data",
        folder.file("train.jsonl"),
      ])
      let text = try Tool.succeed(["inspect", folder.file(method)]).output
      for word in shown { #expect(text.contains(word), "\(method): \(word) in \(text)") }
    }
    let recipe = try FileSystem.readJSON(folder.file("edora/reconstr_config.json"))
    #expect(recipe["svd"]?["n_iter"] == 10 && recipe["init_sigma"] == 0.001)
  }

  @Test func settingsOfMethodsAreChecked() throws {
    for (method, settings, text) in [
      ("dora", "{use_dora: false}", "'use_dora' is false, but the method dora"),
      ("edora", "{reconstruct_confg: {}}", "reconstruct_config"),
      ("edora", "{reconstruct_config: {reconstr_mode: joint}}", "'reconstr_mode'"),
      ("dorra", "{}", "dora"),
    ] {
      let outcome = try run(method, settings)
      #expect(outcome.status == 1 && outcome.errors.contains(text), "\(outcome.errors)")
    }
  }

  /// A compact adapter that was trained on weights in bfloat16 knows these, not the file's.
  @Test func compactAdaptersNeedTheirPrecision() throws {
    var options = ModelOptions()
    options.precision = .bfloat16
    let model = golden("llama/model")
    let peft = PeftModel(try ModelLoader.load(model, options: options))
    let config = EDoRAConfig(
      rank: 4, targets: TargetSelection(.list(["q_proj", "v_proj"])), taskType: .causalLM,
      sigma: 0.3, isCompact: true)
    try peft.add("default", config, seed: 3)
    try peft.save(folder.file("half"))
    let common = ["--model", model, "--adapter", folder.file("half")]
    for command in [["merge"], ["convert", "--to", "dora"]] {
      let output = ["--output", folder.file("half-\(command[0])")]
      let refused = try Tool.run(command + common + output)
      #expect(refused.status == 1 && refused.errors.contains("--precision"), "\(refused.errors)")
      #expect(!FileSystem.exists(output[1]))
      try Tool.succeed(command + common + output + ["--precision", "bfloat16"])
    }
    // Merged weights in the model's own type, which give the same with and without bfloat16's rounding.
    let written = try SafetensorsFile(folder.file("half-merge/model.safetensors"))
    #expect(Set(written.entries.map(\.type)) == [.float32])
    try peft.merge()
    let name = "model.layers.1.self_attn.q_proj"
    let merged = try #require(
      peft.base.namedModules().first { $0.path == name }?.module as? Linear)
    #expect(
      try written.tensor("\(name).weight").scalars == merged.parameters.storedWeight.scalars)
  }

  @Test func convertsFolders() throws {
    try train("edora", "{r: 4, target_modules: [query, value, attention.output.dense]}", steps: 6)
    var outcome = try convert("edora", "--to", "dora", "--output", folder.file("dora"))
    #expect(outcome.status == 0, "\(outcome.errors)")
    #expect(outcome.output.contains("change of the weights: the same"))
    // The merged models are the same, the head included.
    for name in ["edora", "dora"] {
      try Tool.succeed([
        "merge", "--model", golden("bert/model"), "--adapter", folder.file(name), "--output",
        folder.file("merged-\(name)"),
      ])
    }
    let (one, other) = (
      try SafetensorsFile(folder.file("merged-edora/model.safetensors")),
      try SafetensorsFile(folder.file("merged-dora/model.safetensors"))
    )
    #expect(one.names == other.names && one.names.contains("classifier.weight"))
    for name in one.names {
      #expect(relativeError(try one.tensor(name), try other.tensor(name)) < 1e-6, "\(name)")
    }
    // Labels go along.
    #expect(FileSystem.exists(folder.file("dora/\(LabelSet.fileName)")))

    outcome = try convert(
      "edora", "--to", "edora", "--compact", "--output", folder.file("compact"))
    #expect(outcome.status == 0, "\(outcome.errors)")
    let sizes = try ["edora", "compact"].map { name in
      try SafetensorsFile(folder.file("\(name)/adapter_model.safetensors")).entries
        .filter { !$0.name.contains("classifier") }.reduce(0) { $0 + $1.count }
    }
    // Three layers of three modules, 32 wide: R, m, and a mark of 4 + 2·4.
    #expect(sizes[1] == 9 * (16 + 32 + 12) && sizes[0] == 9 * (16 + 32 + 2 * 4 * 32))
    try Tool.succeed([
      "eval", "--model", golden("bert/model"), "--adapter", folder.file("compact"), "--data",
      folder.file("train.jsonl"),
    ])

    outcome = try convert("dora", "--to", "lora", "--rank", "8", "--output", folder.file("lora"))
    #expect(outcome.status == 0 && outcome.output.contains("relative difference"))
    outcome = try convert("dora", "--to", "lora", "--output", folder.file("lora"))
    #expect(outcome.status == 1 && outcome.errors.contains("exists and is not empty"))
    // A rank that is the adapter's changes nothing, whatever ranks single layers have.
    try Tool.succeed([
      "convert", "--model", golden("llama/model"), "--adapter", golden("llama/adapter_b"), "--to",
      "dora", "--rank", "3", "--output", folder.file("ranks"),
    ])
    outcome = try convert("dora", "--to", "qora", "--output", folder.file("x"))
    #expect(outcome.status != 0)
  }
}
