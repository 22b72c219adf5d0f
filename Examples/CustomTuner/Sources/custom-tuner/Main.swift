import OutputScale
import PEFT

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Registers a tuner from another package, trains it, saves it, loads it again and merges it, and
/// checks at every turn that the outputs are what they must be.
@main
enum Main {
  static func main() {
    do {
      let folder = "\(temporaryFolder)/custom-tuner-\(getpid())"
      defer { FileSystem.removeTree(folder) }
      try run(in: folder)
      print("all checks passed")
    } catch {
      print("error: \(error)")
      exit(1)
    }
  }

  private static var temporaryFolder: String {
    getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
  }

  private static func run(in folder: String) throws {
    try FileSystem.createDirectory(folder)
    try FileSystem.write("\(folder)/config.json", CountingTask.configuration)

    // A registry is a value: this program's knows one method more than the standard one.
    var registry = TunerRegistry.standard
    registry.register(OutputScaleTuner.self)
    try registry.prepend(EmbeddingDispatcher(), to: OutputScaleTuner.self)

    let (model, peft) = try makeModel(folder, registry)
    let config = OutputScaleConfig(
      strength: 2,
      targets: TargetSelection(.list(["k_proj", "v_proj", "up_proj", "embed_tokens"])),
      taskType: .causalLM)
    let report = try peft.add("default", config)
    print(peft.printed.text)
    print(peft.trainableParametersReport)
    // Two layers with 16 + 16 + 64 scales, and 32 of the embedding.
    try check(report.matched.count == 7, "seven modules are adapted")
    try check(peft.parameterCounts.trainable == 2 * 96 + 32, "their scales are trainable")

    let start = logits(model)
    try check(
      difference(start, peft.withAdaptersDisabled { logits(model) }) == 0,
      "a new adapter changes nothing")
    try train(model, peft)
    let trained = logits(model)
    try check(difference(trained, start) > 0.1, "the trained adapter changes the output")

    let adapter = "\(folder)/adapter"
    try peft.save(adapter)
    print(String(decoding: try FileSystem.read("\(adapter)/adapter_config.json"), as: UTF8.self))
    let (freshModel, freshPeft) = try makeModel(folder, registry)
    let loaded = try freshPeft.load(adapter)
    print(loaded.summary)
    try check(difference(logits(freshModel), trained) == 0, "the reloaded adapter gives the same")

    try freshPeft.merge(safe: true)
    let merged = difference(logits(freshModel), trained)
    print("largest difference after merging: \(merged)")
    try check(merged < 1e-4, "the merged model gives the same")
    freshPeft.unmerge()
    try check(difference(logits(freshModel), trained) == 0, "unmerging restores the weights")

    try checkTogetherWithLoRA(freshModel, freshPeft)
    try checkErrors(folder, adapter, registry)
  }

  private static func makeModel(
    _ folder: String, _ registry: TunerRegistry
  ) throws -> (any CausalLanguageModel, PeftModel) {
    var options = ModelOptions()
    options.randomWeights = true
    options.seed = 7
    let loaded = try ModelLoader.load(folder, options: options)
    guard let model = loaded.model as? any CausalLanguageModel else {
      throw CheckFailure(what: "config.json names a language model")
    }
    return (model, PeftModel(loaded, registry: registry))
  }

  private static func train(_ model: any CausalLanguageModel, _ peft: PeftModel) throws {
    let optimizer = AdamW(peft.trainableTensors, settings: OptimizerSettings(learningRate: 0.05))
    var first: Float = 0
    var last: Float = 0
    for step in 0..<60 {
      let loss = try CountingTask.loss(model, CountingTask.batch(step))
      last = loss.item
      if step == 0 { first = last }
      if step % 10 == 0 { print("step \(step): loss \(last)") }
      optimizer.update(loss.backward())
    }
    print("step 60: loss \(last)")
    try check(last < first - 0.5, "training lowers the loss")
  }

  /// A second method on the same layers: changes add up, and the order does not matter.
  private static func checkTogetherWithLoRA(
    _ model: any CausalLanguageModel, _ peft: PeftModel
  ) throws {
    try peft.add(
      "lora",
      LoRAConfig(
        targets: TargetSelection(.list(["v_proj", "o_proj"])), taskType: .causalLM,
        initialization: .random))
    try peft.setActive(["default", "lora"])
    let both = logits(model)
    try peft.setActive(["lora", "default"])
    try check(difference(logits(model), both) < 1e-4, "two methods add up in either order")
    try peft.merge()
    try check(difference(logits(model), both) < 1e-4, "and merge together")
  }

  /// What cannot work is refused by name.
  private static func checkErrors(
    _ folder: String, _ adapter: String, _ registry: TunerRegistry
  ) throws {
    let (_, peft) = try makeModel(folder, registry)
    let norms = OutputScaleConfig(targets: TargetSelection(.list(["input_layernorm"])))
    try check(
      refusal { try peft.add("norms", norms) }?.contains("Embedding, Linear without bias") == true,
      "an unsupported layer is refused, and what is supported is said")
    let (_, standard) = try makeModel(folder, .standard)
    try check(
      refusal { try standard.load(adapter) }?.contains("OUTPUT_SCALE") == true,
      "a registry that does not know the method says so")
  }

  // MARK: Helpers

  private struct CheckFailure: Error, CustomStringConvertible {
    let what: String
    var description: String { "check failed: \(what)" }
  }

  private static func check(_ holds: Bool, _ what: String) throws {
    guard holds else { throw CheckFailure(what: what) }
    print("ok: \(what)")
  }

  private static func refusal(_ body: () throws -> Void) -> String? {
    do {
      try body()
      return nil
    } catch {
      print("refused: \(error)")
      return "\(error)"
    }
  }

  private static func logits(_ model: any CausalLanguageModel) -> Tensor {
    let batch = CountingTask.batch(1000)
    return withoutGradients { model.logits(batch, ForwardContext(batch.layout)) }
  }

  private static func difference(_ a: Tensor, _ b: Tensor) -> Float {
    zip(a.scalars, b.scalars).reduce(0) { max($0, abs($1.0 - $1.1)) }
  }
}
