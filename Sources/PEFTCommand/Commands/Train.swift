import ArgumentParser
import PEFT
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// `peft train`.
struct Train: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Fine-tune a model with an adapter.",
    discussion: """
      Settings have Hugging Face's names. They come from a YAML file and from --set, which goes \
      before it:

        peft train --config run.yaml --set learning_rate=1e-3 --set lora.r=16

      The keys, of which model, train_file and output_dir must be there; under a method's name stand \
      its own settings:

      \(RunConfiguration.keys(.standard).joined(separator: ", "))
      """)

  @Option(name: .shortAndLong, help: "A YAML file with the settings.")
  var config: String?

  @Option(
    name: .customLong("set"), help: "A setting, as key=value; keys may be dotted. Repeatable.")
  var settings: [String] = []

  @Flag(name: .shortAndLong, help: "Print nothing but errors.")
  var quiet = false

  func validate() throws {
    if config == nil, settings.isEmpty {
      throw ValidationError("Give the settings with --config FILE or --set key=value.")
    }
  }

  func run() throws {
    let configuration = try resolvedConfiguration()
    let run: PreparedRun
    do { run = try PreparedRun(configuration, registry: .standard) } catch {
      throw error.code == .invalidConfiguration ? error.located(at: config ?? "--set") : error
    }
    let trainer = try run.makeTrainer()
    if !quiet { Terminal.writeError(Self.introduction(run, trainer.plan)) }

    let reporter = ProgressReporter(
      Terminal.progress, loggingSteps: configuration.arguments.loggingSteps)
    let isQuiet = quiet
    Interruption.listen()
    let summary: TrainingSummary
    do {
      summary = try trainer.run(
        observe: { if !isQuiet { reporter.handle($0) } },
        shouldStop: { Interruption.isRequested })
    } catch {
      reporter.close()
      throw error
    }
    reporter.close()
    if summary.isInterrupted {
      Terminal.writeError(
        "interrupted after step \(summary.steps); go on with --set resume_from_checkpoint=true\n")
      throw ExitCode(130)
    }
    if !quiet { try Terminal.write(Self.conclusion(summary, configuration.arguments.outputFolder)) }
  }

  /// The file's settings and those of --set. An error is the file's if the file alone has it too.
  private func resolvedConfiguration() throws(PEFTError) -> RunConfiguration {
    let file = try config.map { (path) throws(PEFTError) in try YAMLReader.object(file: path) }
    var object = file ?? JSONObject()
    for setting in settings { try YAMLReader.apply(setting, to: &object) }
    do { return try RunConfiguration(object, registry: .standard) } catch {
      guard let config, let file else { throw error.located(at: "--set") }
      var own: PEFTError?
      do { _ = try RunConfiguration(file, registry: .standard) } catch { own = error }
      throw error.located(at: own?.description == error.description ? config : "--set")
    }
  }

  // MARK: Text

  /// What is going to be trained, on what, and how.
  private static func introduction(_ run: PreparedRun, _ plan: TrainingPlan) -> String {
    let configuration = run.configuration
    let arguments = configuration.arguments
    var weights = configuration.precision.rawValue
    if configuration.randomWeights { weights += ", random weights" }
    var task = run.task.name
    if let labels = run.labels { task += ", \(labels.count) labels" }
    if run.problem != .singleLabel { task += ", \(run.problem.rawValue)" }
    var data = "\(grouped(run.train.count)) training"
    if let validation = run.validation { data += ", \(grouped(validation.count)) validation" }
    if let test = run.test { data += ", \(grouped(test.count)) test" }
    data += " examples; \(grouped(run.train.tokenCount)) tokens an epoch"
    let batch = arguments.trainBatchSize * arguments.accumulationSteps
    let steps =
      "\(grouped(plan.totalSteps)) steps (\(grouped(plan.updatesPerEpoch)) an epoch) of \(batch) "
      + "examples, learning rate \(scientific(arguments.learningRate)), "
      + "\(arguments.schedule.rawValue), \(grouped(plan.warmupSteps)) warm-up steps"
    var lines = [
      "model     \(configuration.model): \(run.base.model.typeName), \(weights)",
      "task      \(task)", "data      \(data)",
    ]
    let origin = configuration.initialAdapter.map { " from \($0)" } ?? ""
    lines.append(
      "adapter   \(run.method)\(origin) on \(run.targets.matched.count) modules")
    for (pattern, count) in patterns(run.targets.matched) {
      lines.append("            \(pattern)\(count > 1 ? "  (\(count))" : "")")
    }
    for path in run.targets.saved { lines.append("          trained in full: \(path)") }
    lines.append("          \(run.model.trainableParametersReport)")
    lines.append("training  \(steps)")
    lines += run.notices.map { "note: \($0)" }
    return lines.joined(separator: "\n") + "\n"
  }

  /// Paths that differ only in layer numbers as one pattern, with how many there are.
  private static func patterns(_ paths: [String]) -> [(pattern: String, count: Int)] {
    var result: [(pattern: String, count: Int)] = []
    for path in paths {
      let pattern = path.split(separator: ".").map { Int($0) == nil ? String($0) : "*" }
        .joined(separator: ".")
      if let place = result.firstIndex(where: { $0.pattern == pattern }) {
        result[place].count += 1
      } else {
        result.append((pattern, 1))
      }
    }
    return result
  }

  /// What came of it.
  private static func conclusion(_ summary: TrainingSummary, _ folder: String) -> String {
    let speed =
      summary.trainingSeconds > 0
      ? Int(Double(summary.tokens) / summary.trainingSeconds) : 0
    var lines = [
      "trained \(grouped(summary.steps)) steps, \(fixed(summary.epochs, 2)) epochs, in "
        + "\(duration(summary.seconds)) (\(duration(summary.trainingSeconds)) of it training, "
        + "\(grouped(speed)) tokens/s); mean loss \(fixed(summary.loss, 4))"
    ]
    if let result = summary.validation { lines.append("validation: \(result.summary)") }
    if let best = summary.best {
      lines.append("best \(best.metric): \(fixed(best.value, 4)) at step \(grouped(best.step))")
    }
    if let folder = summary.loadedBest { lines.append("the adapter is that of \(folder)") }
    if let result = summary.test { lines.append("test: \(result.summary)") }
    lines.append("adapter saved in \(folder)")
    return lines.joined(separator: "\n") + "\n"
  }
}

/// Ctrl-C while training: the first one asks for a checkpoint and an end, the second one kills.
private enum Interruption {
  private static let flag = Atomic<Bool>(false)

  static var isRequested: Bool { flag.load(ordering: .relaxed) }

  static func listen() {
    for number in [SIGINT, SIGTERM] {
      signal(number) { number in
        Interruption.flag.store(true, ordering: .relaxed)
        signal(number, SIG_DFL)
      }
    }
  }
}
