import ArgumentParser
import PEFT

/// The options of every command that runs a model.
struct RunOptions: ParsableArguments {
  @Option(help: "How weights are kept and multiplied: float32 or bfloat16.")
  var precision = WeightPrecision.float32

  @OptionGroup var threading: ThreadOptions

  /// Makes the settings of the process.
  func apply() { threading.apply() }

  /// Checks the sizes that the commands which read data files have as options.
  static func check(batchSize: Int, maxLength: Int?) throws {
    if batchSize < 1 { throw ValidationError("--batch-size must be at least 1.") }
    if batchSize > Int(Int32.max) {
      throw ValidationError("--batch-size must be at most \(Int32.max).")
    }
    if let maxLength, maxLength < 2 { throw ValidationError("--max-length must be at least 2.") }
  }
}

/// The option of every command that computes.
struct ThreadOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Number of threads.",
      discussion: "By default OMP_NUM_THREADS, else all processors of this process.",
      valueName: "n"))
  var threads: Int?

  func validate() throws {
    if let threads, threads < 1 {
      throw ValidationError("--threads is \(threads), a positive number was expected")
    }
  }

  /// Makes the setting of the process.
  func apply() {
    if let threads { Parallel.threadCount = threads }
  }
}

extension WeightPrecision: ExpressibleByArgument {}

/// The option that says what a model is for.
struct TaskOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "SEQ_CLS, TOKEN_CLS, QUESTION_ANS, CAUSAL_LM or FEATURE_EXTRACTION.",
      discussion: "By default the adapter's task_type, else what config.json's architectures say.",
      valueName: "type"))
  var task: String?
}
