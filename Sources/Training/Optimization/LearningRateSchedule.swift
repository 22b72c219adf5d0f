#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// The learning rate of every step, as transformers' schedules give it.
public struct LearningRateSchedule: Sendable, Equatable {
  /// How the rate goes.
  public enum Kind: String, Sendable, CaseIterable {
    /// The rate stays, from the first step on: there is no warm-up.
    case constant
    /// The rate stays after the warm-up.
    case constantWithWarmup = "constant_with_warmup"
    /// The rate falls linearly to 0 after the warm-up.
    case linear
    /// The rate falls to 0 along half a cosine after the warm-up.
    case cosine
  }

  /// How the rate goes.
  public var kind: Kind
  /// The highest rate.
  public var baseRate: Double
  /// How many steps the rate rises linearly from 0, unless it is constant.
  public var warmupSteps: Int
  /// The number of steps of the run.
  public var totalSteps: Int

  /// Creates a schedule.
  public init(_ kind: Kind, baseRate: Double, warmupSteps: Int, totalSteps: Int) {
    self.kind = kind
    self.baseRate = baseRate
    self.warmupSteps = warmupSteps
    self.totalSteps = totalSteps
  }

  /// Number of warm-up steps; a ratio is rounded up, as in transformers.
  public static func warmupSteps(_ warmup: TrainingArguments.Warmup, totalSteps: Int) -> Int {
    switch warmup {
    case .steps(let steps): return steps
    case .ratio(let ratio): return Int((ratio * Double(totalSteps)).rounded(.up))
    }
  }

  /// The rate of a step, counted from 0.
  ///
  /// The formulas are those of `get_constant_schedule`, `get_constant_schedule_with_warmup`,
  /// `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` in transformers.
  public func rate(at step: Int) -> Double {
    baseRate * factor(at: step)
  }

  /// What the rate of a step is relative to ``baseRate``.
  public func factor(at step: Int) -> Double {
    if kind == .constant { return 1 }
    if step < warmupSteps { return Double(step) / Double(max(1, warmupSteps)) }
    let decaying = Double(max(1, totalSteps - warmupSteps))
    switch kind {
    case .constant, .constantWithWarmup: return 1
    case .linear: return max(0, Double(totalSteps - step) / decaying)
    case .cosine:
      let progress = Double(step - warmupSteps) / decaying
      return max(0, 0.5 * (1 + cos(Double.pi * 0.5 * 2 * progress)))
    }
  }
}
