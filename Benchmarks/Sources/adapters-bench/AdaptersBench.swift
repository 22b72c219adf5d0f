import ArgumentParser
import BLASKernels
import BenchClock
import PEFT

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

extension WeightPrecision: @retroactive ExpressibleByArgument {}

/// What is measured, and over what base.
struct Settings: ParsableArguments {
  @Argument(help: "Folder of a language model.") var model: String
  @Flag(help: "Random weights of the shape that config.json describes.") var random = false
  @Option(help: "Adapters on the base.") var adapters = 100
  @Option(help: "Precision of the base's weights.") var precision = WeightPrecision.float32
  @Option(help: "Tokens of each prompt.") var tokens = 16
  @Option(help: "Seconds for each kind of mixed batch.") var seconds = 4.0

  func validate() throws {
    guard adapters >= MixedBatch.rows else {
      throw ValidationError("--adapters: a mixed batch takes at least \(MixedBatch.rows).")
    }
    guard tokens >= 1 else { throw ValidationError("--tokens: a prompt has at least one.") }
  }
}

/// The batch in which each row has an adapter of its own.
enum MixedBatch {
  static let rows = 8
}

@main
struct AdaptersBenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "adapters-bench",
    abstract: "Many LoRA adapters on one base: injection, loading, memory, switching, mixtures.",
    discussion: """
      Every adapter has rank 8 and adapts every linear layer. Prints one JSON object; \
      compare/adapters.py puts peft's figures beside it. Threads: OMP_NUM_THREADS.
      """)
  @OptionGroup var settings: Settings

  func run() throws {
    print(JSONValue.object(JSONObject(try AdaptersBench(settings).run())).text())
  }
}

/// The measurements over one base.
struct AdaptersBench {
  let settings: Settings
  let peft: PeftModel
  let model: any CausalLanguageModel
  let baseBytes: Int

  init(_ settings: Settings) throws {
    self.settings = settings
    var options = ModelOptions()
    options.precision = settings.precision
    options.randomWeights = settings.random
    let loaded = try ModelLoader.load(settings.model, head: .causalLM, options: options)
    peft = PeftModel(loaded)
    guard let model = loaded.model as? any CausalLanguageModel else {
      throw PEFTError(.unsupported, "is no language model", at: settings.model)
    }
    self.model = model
    baseBytes = peft.base.namedParameters().reduce(0) { sum, entry in
      sum + entry.info.count * (entry.info.format == "float32" ? 4 : 2)
    }
  }

  private var config: LoRAConfig {
    LoRAConfig(
      rank: 8, alpha: 16, targets: TargetSelection(.allLinear), taskType: .causalLM,
      initialization: .random)
  }

  func run() throws -> [(String, JSONValue)] {
    var result: [(String, JSONValue)] = [
      ("threads", .int(Parallel.threadCount)), ("base_bytes", .int(baseBytes)),
    ]
    // All that a pass allocates is there before anything is counted.
    _ = try seconds(of: prompts, adapters: nil)
    result.append(("inject_seconds", .double(try injection())))
    let folder = "/tmp/adapters-bench-\(getpid())"
    defer { FileSystem.removeTree(folder) }
    try peft.add("saved", config)
    try peft.save(folder)
    try peft.delete("saved")
    result.append(("load_seconds", .double(try loading(folder))))
    result += try memory(folder)
    result += try switching()
    result += try mixedBatches()
    return result
  }

  /// The least time in which an adapter is put on the base.
  private func injection() throws -> Double {
    var best = Double.infinity
    for _ in 0..<5 {
      best = min(best, try measure { try peft.add("new", config) })
      try peft.delete("new")
    }
    return best
  }

  /// The least time from a folder to an adapter on the base; its values are mapped, so they are read too.
  private func loading(_ folder: String) throws -> Double {
    var best = Double.infinity
    for _ in 0..<5 {
      let seconds = try measure {
        try peft.load(folder, as: "loaded")
        for tensor in try peft.tensors(of: "loaded") { _ = tensor.parameter.value.sumOfSquares }
      }
      best = min(best, seconds)
      try peft.delete("loaded")
    }
    return best
  }

  /// Resident memory without adapters and with all of them.
  private func memory(_ folder: String) throws -> [(String, JSONValue)] {
    Storage.trimPool()
    let before = residentBytes()
    for index in 0..<settings.adapters { try peft.add("a\(index)", config, seed: UInt64(index)) }
    let adapterBytes = try peft.tensors(of: "a0").reduce(0) { $0 + $1.parameter.value.count * 4 }
    let after = residentBytes()
    return [
      ("adapters", .int(settings.adapters)), ("adapter_bytes", .int(adapterBytes)),
      ("resident_before", .int(before)), ("resident_after", .int(after)),
    ]
  }

  /// The least, the middle and the longest time to make another adapter the active one.
  private func switching() throws -> [(String, JSONValue)] {
    var times: [Double] = []
    for round in 0..<300 {
      let name = "a\((round * 37) % settings.adapters)"
      if peft.activeAdapters == [name] { continue }
      times.append(try measure { try peft.setActive([name]) })
    }
    times.sort()
    return [
      ("switch_seconds_least", .double(times[0])),
      ("switch_seconds_median", .double(times[times.count / 2])),
      ("switch_seconds_most", .double(times[times.count - 1])),
    ]
  }

  /// Eight prompts in a batch, and eight rows that generate: without an adapter, all rows with one,
  /// each with its own.
  private func mixedBatches() throws -> [(String, JSONValue)] {
    let own = try peft.sequenceAdapters((0..<MixedBatch.rows).map { "a\($0)" })
    let ways: [(name: String, active: [String], adapters: SequenceAdapters?)] = [
      ("base", [], nil), ("one", ["a0"], nil), ("mixed", ["a0"], own),
    ]
    var result: [(String, JSONValue)] = []
    for (kind, isStep) in [("prefill", false), ("step", true)] {
      var best = ways.map { _ in Double.infinity }
      let end = now() + settings.seconds
      var rounds = 0
      while now() < end || rounds < 3 {
        for (index, way) in ways.enumerated() {
          try peft.setActive(way.active)
          let time =
            isStep
            ? try stepSeconds(way.adapters) : try seconds(of: prompts, adapters: way.adapters)
          best[index] = min(best[index], time)
        }
        rounds += 1
      }
      for (way, time) in zip(ways, best) {
        result.append(("\(kind)_seconds_\(way.name)", .double(time)))
      }
    }
    return result
  }

  private var prompts: [[Int32]] {
    (0..<MixedBatch.rows).map { row in
      (0..<settings.tokens).map { Int32(3 + (row * 31 + $0 * 7) % 400) }
    }
  }

  private func seconds(of prompts: [[Int32]], adapters: SequenceAdapters?) throws -> Double {
    let batch = TokenBatch(prompts)
    var context = ForwardContext(batch.layout)
    context.sequenceAdapters = adapters
    return withoutGradients { measure { _ = model.logits(batch, context) } }
  }

  /// The mean time of a generation's steps after the first.
  private func stepSeconds(_ adapters: SequenceAdapters?) throws -> Double {
    let steps = 6
    let generation = try model.generation(
      prompts, GenerationSettings(maxNewTokens: steps + 1), adapters: adapters)
    _ = generation.next()
    return measure { while generation.next() != nil {} } / Double(steps)
  }
}

/// Bytes of memory that the process holds, files mapped included.
private func residentBytes() -> Int {
  guard let text = try? FileSystem.read("/proc/self/statm") else { return 0 }
  let pages = String(decoding: text, as: UTF8.self).split(separator: " ")[1]
  return (Int(pages) ?? 0) * Int(sysconf(Int32(_SC_PAGESIZE)))
}
