import PEFTSupport

/// Shows a run's progress: one line that is rewritten on a terminal, plain lines elsewhere.
public final class ProgressReporter {
  /// Where text goes, and what it can show.
  public struct Output {
    /// Whether lines can be rewritten.
    public var isTerminal: Bool
    /// Width of the terminal, asked before every line.
    public var columns: () -> Int
    /// Writes text as it is.
    public var write: (String) -> Void

    /// Creates an output.
    public init(
      isTerminal: Bool, columns: @escaping () -> Int = { 80 }, write: @escaping (String) -> Void
    ) {
      self.isTerminal = isTerminal
      self.columns = columns
      self.write = write
    }
  }

  private let output: Output
  private let loggingSteps: Int
  private let now: () -> Double
  private var plan: TrainingPlan?
  private var startStep = 0
  private var startTime = 0.0
  private var lastDrawn = -Double.infinity
  private var isLineOpen = false
  /// The last steps, for smoothed numbers.
  private var window: [StepReport] = []
  private var epochLoss = (sum: 0.0, count: 0)

  /// Least time between two drawings on a terminal.
  private static let interval = 0.1

  /// Creates a reporter.
  ///
  /// - Parameters:
  ///   - output: Where to.
  ///   - loggingSteps: Steps between plain lines, and over which shown numbers are averaged.
  ///   - now: A clock in seconds.
  public init(
    _ output: Output, loggingSteps: Int, now: (() -> Double)? = nil
  ) {
    self.output = output
    self.loggingSteps = max(1, loggingSteps)
    self.now = now ?? { Clock.seconds }
  }

  /// Shows an event.
  public func handle(_ event: TrainingEvent) {
    switch event {
    case .started(let plan, let step):
      self.plan = plan
      startStep = step
      startTime = now()
      if step > 0 { line("resuming after step \(grouped(step)) of \(grouped(plan.totalSteps))") }
    case .step(let report): show(report)
    case .evaluating(let done, let total):
      if output.isTerminal { draw("evaluating \(grouped(done))/\(grouped(total))") }
    case .evaluated(let result, let name, let epoch, let isBest):
      let speed = result.seconds > 0 ? Double(result.examples) / result.seconds : 0
      var text = "\(name) at epoch \(fixed(epoch, 2)): \(result.summary)"
      if epochLoss.count > 0, name == "eval" {
        text += ", train loss \(fixed(epochLoss.sum / Double(epochLoss.count), 4))"
        epochLoss = (0, 0)
      }
      text += " (\(grouped(Int(speed))) examples/s)"
      line(isBest ? text + ", best so far" : text)
    case .saved(let path): line("saved \(path)")
    case .notice(let text): line("note: \(text)")
    }
  }

  /// Ends an open line, so that other text can follow.
  public func close() {
    if isLineOpen { output.write("\r\u{1B}[K") }
    isLineOpen = false
  }

  private func show(_ report: StepReport) {
    window.append(report)
    if window.count > loggingSteps { window.removeFirst() }
    epochLoss.sum += report.loss
    epochLoss.count += 1
    let isLast = report.step == plan?.totalSteps
    if output.isTerminal {
      draw(text(report), always: isLast)
    } else if report.step % loggingSteps == 0 || isLast {
      output.write(text(report) + "\n")
    }
  }

  private func text(_ report: StepReport) -> String {
    let count = Double(window.count)
    let loss = window.reduce(0) { $0 + $1.loss } / count
    let seconds = window.reduce(0) { $0 + $1.seconds }
    let tokens = window.reduce(0) { $0 + $1.tokens }
    let rate = seconds > 0 ? Int(Double(tokens) / seconds) : 0
    let total = plan?.totalSteps ?? report.step
    // Evaluations and checkpoints are in the elapsed time, and so in the estimate.
    let elapsed = (now() - startTime) / Double(max(1, report.step - startStep))
    let left = elapsed * Double(total - report.step)
    return "step \(grouped(report.step))/\(grouped(total))  epoch \(fixed(report.epoch, 2))  "
      + "loss \(fixed(loss, 4))  lr \(scientific(report.learningRate))  "
      + "\(grouped(rate)) tokens/s  \(duration(left)) left"
  }

  private func draw(_ text: String, always: Bool = false) {
    let time = now()
    guard always || time - lastDrawn >= Self.interval else { return }
    lastDrawn = time
    // A line that wraps could not be rewritten.
    output.write("\r" + String(text.prefix(max(1, output.columns() - 1))) + "\u{1B}[K")
    isLineOpen = true
  }

  private func line(_ text: String) {
    close()
    output.write(text + "\n")
  }
}
