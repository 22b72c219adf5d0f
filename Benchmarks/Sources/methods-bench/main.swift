// Training steps, inference and initialisation of LoRA, DoRA, EDoRA and LoRA-XS on one model, in turns:
// methods-bench CONFIG_FOLDER [--task causal|classify] [--precision float32|bfloat16] [--rows 128]
//   [--rank 8] [--rounds 8] [--decode 16] [--modules a,b] [--init]
// With --processor times are those of the processor instead of the clock: with one thread they tell
// the methods apart on a machine that does other things too. Prints one JSON object. See Benchmarks/compare/README.md.

import PEFT

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

var options = Options(CommandLine.arguments)
let methods = options.list("methods", "lora,dora,edora,lora-xs")
let precision: WeightPrecision =
  options.text("precision", "float32") == "bfloat16" ? .bfloat16 : .float32
let isCausal = options.text("task", "causal") == "causal"
let rank = options.number("rank", 8)
let usesProcessorTime = options.flag("processor")

/// The time that differences are taken of.
@MainActor func now() -> Double {
  #if canImport(Darwin)
    seconds(usesProcessorTime ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC)
  #else
    seconds(usesProcessorTime ? clockid_t(CLOCK_PROCESS_CPUTIME_ID) : clockid_t(CLOCK_MONOTONIC))
  #endif
}
let modules = options.list(
  "modules",
  isCausal
    ? "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj" : "query,key,value,dense")

var modelOptions = ModelOptions()
modelOptions.precision = precision
modelOptions.randomWeights = true
let loaded = try ModelLoader.load(
  options.folder, head: isCausal ? .causalLM : .sequenceClassification(labels: 77),
  options: modelOptions)
let model = PeftModel(loaded)

/// The settings of a method with the same rank, alpha and targets.
@MainActor func settings(_ method: String, random: Bool) throws -> any TunerConfig {
  var object = JSONObject([
    ("r", .int(rank)), ("lora_alpha", .int(4 * rank)),
    ("task_type", isCausal ? "CAUSAL_LM" : "SEQ_CLS"),
    ("target_modules", .array(modules.map { .string($0) })),
  ])
  for (key, value) in model.registry.identifyingMembers(ofMethod: method)?.members ?? [] {
    object[key] = value
  }
  if random, method == "edora" || method == "lora-xs" {
    object["reconstruct_config"] = ["replacement_module_random_init": true]
  }
  return try model.registry.config(object)
}

var result: [(String, JSONValue)] = []
if options.flag("init") {
  // Exact and randomised decompositions of every adapted weight, and DoRA's norms.
  var seconds: [(String, JSONValue)] = []
  for (name, method, recipe) in [
    ("lora", "lora", nil), ("dora", "dora", nil), ("lora pissa_niter_4", "lora", "pissa_niter_4"),
    ("lora pissa", "lora", "pissa"), ("lora olora", "lora", "olora"),
    ("edora random", "edora", #"{"replacement_module_random_init": true}"#),
    ("edora svd n_iter 10", "edora", #"{"svd": {"n_iter": 10}}"#),
    ("edora svd exact", "edora", "{}"),
  ] as [(String, String, String?)] {
    var config = try settings(method, random: false)
    if let recipe {
      var object = config.object
      if method == "lora" {
        object["init_lora_weights"] = .string(recipe)
      } else {
        object["reconstruct_config"] = try JSONValue(parsing: recipe)
      }
      config = try model.registry.config(object)
    }
    let start = now()
    try model.add("init", any: config, seed: 1)
    seconds.append((name, .double(now() - start)))
    try model.delete("init")
  }
  result.append(("initialisation_seconds", .object(JSONObject(seconds))))
} else {
  for method in methods { try model.add(method, any: settings(method, random: true), seed: 1) }
  // Away from the start, where B is zero.
  for method in methods {
    for (index, tensor) in try model.tensors(of: method).enumerated()
    where tensor.key.contains("lora_") && tensor.parameter.value.sumOfSquares == 0 {
      tensor.parameter.assign(
        .normal(
          tensor.parameter.shape, deviation: 0.01,
          key: DropoutKey(seed: 7, stream: UInt64(index))))
    }
  }
  // A row of tokens, or a batch of questions as banking77 has them: 4 to 30 tokens.
  let rows = options.number("rows", 128)
  var sequences: [[Int32]] = []
  var count = 0
  while count < rows {
    let length = isCausal ? rows : min(4 + (sequences.count * 7) % 27, rows - count)
    sequences.append(
      (0..<length).map { Int32(($0 * 7919 + sequences.count * 104_729) % 20_000 + 1000) })
    count += length
  }
  let batch = TokenBatch(sequences)
  let labels =
    isCausal
    ? sequences.flatMap { Array($0.dropFirst()) + [ignoredLabel] }
    : sequences.indices.map { Int32($0 % 77) }

  @MainActor func loss(_ seed: UInt64) throws -> Tensor {
    var context = ForwardContext(batch.layout)
    context.dropoutSeed = seed
    switch loaded.model {
    case let model as any CausalLanguageModel:
      return try crossEntropy(model.logits(batch, context), labels: labels)
    case let model as any SequenceClassifier:
      return try crossEntropy(model.logits(batch, context), labels: labels)
    default: fatalError("no head")
    }
  }

  @MainActor func forward() {
    withoutGradients {
      let context = ForwardContext(batch.layout)
      switch loaded.model {
      case let model as any CausalLanguageModel: _ = model.lastHiddenState(batch, context)
      case let model as any SequenceClassifier: _ = model.logits(batch, context)
      default: break
      }
    }
  }

  var optimizers: [String: AdamW] = [:]
  var training: [String: [Double]] = [:]
  var inference: [String: [Double]] = [:]
  var decoding: [String: [Double]] = [:]
  let rounds = options.number("rounds", 8)
  let newTokens = isCausal ? options.number("decode", 16) : 0
  for round in 0...rounds {
    for method in round % 2 == 0 ? methods : methods.reversed() {
      try model.setActive([method])
      if optimizers[method] == nil { optimizers[method] = AdamW(model.trainableTensors) }
      let start = now()
      let gradients = try loss(UInt64(round)).backward()
      optimizers[method]!.update(gradients)
      if round > 0 { training[method, default: []].append(now() - start) }
    }
  }
  for round in 0...rounds {
    for method in round % 2 == 0 ? methods : methods.reversed() {
      try model.setActive([method])
      let start = now()
      forward()
      if round > 0 { inference[method, default: []].append(now() - start) }
    }
  }
  if newTokens > 0, let language = loaded.model as? any CausalLanguageModel {
    for round in 0...max(2, rounds / 2) {
      for method in round % 2 == 0 ? methods : methods.reversed() {
        try model.setActive([method])
        var generation = try language.generation(
          [Array(sequences[0].prefix(16))], GenerationSettings(maxNewTokens: newTokens + 1)
        ).makeIterator()
        _ = generation.next()
        let start = now()
        while generation.next() != nil {}
        if round > 0 { decoding[method, default: []].append((now() - start) / Double(newTokens)) }
      }
    }
  }
  for (name, times) in [
    ("training_step_seconds", training), ("forward_seconds", inference),
    ("decode_token_seconds", decoding),
  ] where !times.isEmpty {
    result.append(
      (
        name,
        .object(
          JSONObject(
            methods.map { method in
              (method, .array((times[method] ?? []).map { .double($0) }))
            }))
      ))
  }
  result.append(("rows", .int(rows)))
}
print(JSONValue.object(JSONObject(result)).text())
