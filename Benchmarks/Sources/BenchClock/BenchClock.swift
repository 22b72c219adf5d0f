#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// What durations are differences of.
public enum BenchClock: Sendable {
  /// Time as it passes.
  case monotonic
  /// Time that the process's threads have computed.
  case processor

  /// Seconds on the clock.
  public var seconds: Double {
    #if canImport(Darwin)
      let clock = self == .monotonic ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID
    #else
      let clock = self == .monotonic ? CLOCK_MONOTONIC : clockid_t(CLOCK_PROCESS_CPUTIME_ID)
    #endif
    var time = timespec()
    clock_gettime(clock, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
  }

  /// The seconds that `body` takes.
  public func measure(_ body: () throws -> Void) rethrows -> Double {
    let start = seconds
    try body()
    return seconds - start
  }
}

/// Seconds on the monotonic clock.
public func now() -> Double { BenchClock.monotonic.seconds }

/// The seconds on the monotonic clock that `body` takes.
public func measure(_ body: () throws -> Void) rethrows -> Double {
  try BenchClock.monotonic.measure(body)
}
