import Testing

@testable import Training

struct ProgressTests {
  /// Collects what is written, with a clock that the test moves.
  private final class Screen {
    var text = ""
    var time = 0.0
    func reporter(isTerminal: Bool, loggingSteps: Int, columns: Int = 200) -> ProgressReporter {
      ProgressReporter(
        ProgressReporter.Output(isTerminal: isTerminal, columns: { columns }) { self.text += $0 },
        loggingSteps: loggingSteps, now: { self.time })
    }
  }

  private let plan = TrainingPlan(TrainingArguments(outputFolder: ""), exampleCount: 80)

  private func step(_ number: Int, loss: Double = 1) -> TrainingEvent {
    .step(
      StepReport(
        step: number, epoch: Double(number) / 10, loss: loss, learningRate: 1.25e-4,
        gradientNorm: 1, tokens: 1000, seconds: 0.5))
  }

  @Test func plainLinesComeEverySoManySteps() {
    let screen = Screen()
    let reporter = screen.reporter(isTerminal: false, loggingSteps: 2)
    reporter.handle(.started(plan, resumedAt: 0))
    for number in 1...4 {
      screen.time += 0.5
      reporter.handle(step(number, loss: Double(number)))
    }
    // The loss is the mean of two steps; 26 steps of 0.5 s are left after the fourth of 30.
    let lines = screen.text.split(separator: "\n")
    #expect(lines.count == 2)
    #expect(
      lines.last == "step 4/30  epoch 0.40  loss 3.5000  lr 1.25e-04  2,000 tokens/s  13 s left")
  }

  @Test func aTerminalLineIsRewrittenAtMostTenTimesASecond() {
    let screen = Screen()
    let reporter = screen.reporter(isTerminal: true, loggingSteps: 1, columns: 20)
    reporter.handle(.started(plan, resumedAt: 0))
    for number in 1...21 {
      reporter.handle(step(number))
      screen.time += 0.0625
    }
    // At 0, 0.125, 0.25, … 1.25 s.
    let drawn = screen.text.split(separator: "\r")
    #expect(drawn.count == 11)
    #expect(drawn.allSatisfy { $0.hasPrefix("step ") && $0.hasSuffix("\u{1B}[K") })
    // One column less than the terminal has, so that nothing wraps.
    #expect(drawn[0].dropLast("\u{1B}[K".count).count == 19)
    #expect(!screen.text.contains("\n"))
    reporter.handle(.saved(path: "out/checkpoint-21"))
    #expect(screen.text.hasSuffix("\r\u{1B}[Ksaved out/checkpoint-21\n"))
  }

  @Test func evaluationsSayWhetherTheyAreTheBest() {
    let screen = Screen()
    let reporter = screen.reporter(isTerminal: false, loggingSteps: 100)
    reporter.handle(.started(plan, resumedAt: 10))
    reporter.handle(step(11, loss: 2))
    let result = EvaluationResult(
      loss: 0.5, metrics: [Metric("accuracy", 0.75)], examples: 100, seconds: 2)
    reporter.handle(.evaluating(done: 5, total: 10))
    reporter.handle(.evaluated(result, name: "eval", epoch: 1, isBest: true))
    #expect(
      screen.text == """
        resuming after step 10 of 30
        eval at epoch 1.00: loss 0.5000, accuracy 0.7500, train loss 2.0000 (50 examples/s), best so far

        """)
  }
}
