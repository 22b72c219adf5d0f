import BenchClock

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// One way to do something.
struct Contender {
  var name: String
  var body: () -> Void
}

/// The best time of each contender, taken in turns so that disturbances hit all alike.
///
/// - Parameters:
///   - contenders: The ways to compare.
///   - seconds: How long to measure in all.
/// - Returns: The least seconds of one call for each.
func race(_ contenders: [Contender], seconds: Double) -> [Double] {
  var counts: [Int] = []
  for contender in contenders {
    contender.body()
    let start = now()
    contender.body()
    counts.append(max(1, Int(2e-3 / max(now() - start, 1e-7))))
  }
  var best = contenders.map { _ in Double.infinity }
  let end = now() + seconds
  var rounds = 0
  while now() < end || rounds < 3 {
    for (index, contender) in contenders.enumerated() {
      let start = now()
      for _ in 0..<counts[index] { contender.body() }
      best[index] = min(best[index], (now() - start) / Double(counts[index]))
    }
    rounds += 1
  }
  return best
}

/// Pads text to a width.
func pad(_ text: String, _ width: Int) -> String {
  text + String(repeating: " ", count: max(1, width - text.count))
}

/// A number with a fixed number of decimals.
func decimals(_ value: Double, _ places: Int) -> String {
  let scale = pow(10, Double(places))
  let rounded = (value * scale).rounded() / scale
  guard places > 0 else { return String(Int(rounded)) }
  let text = String(rounded)
  let fraction = text.split(separator: ".").last.map(\.count) ?? 0
  return text + String(repeating: "0", count: max(0, places - fraction))
}

/// Prints a line: what, the amount per second for each contender, and how often the first goes into the others' time.
///
/// - Parameters:
///   - what: The kernel and its shape.
///   - amount: Operations or bytes of one call.
///   - unit: Their name, for thousands of millions a second.
///   - contenders: The ways to compare; ratios are to the first.
func report(
  _ what: String, amount: Double, unit: String, _ contenders: [Contender], seconds: Double = 0.4
) {
  let times = race(contenders, seconds: seconds)
  var line = pad(what, 44)
  for (contender, time) in zip(contenders, times) {
    line += pad("\(contender.name) \(decimals(amount / time / 1e9, 1)) \(unit)", 24)
  }
  line += pad(decimals(times[0] * 1e6, 1) + " µs", 14)
  for (contender, time) in zip(contenders, times).dropFirst() {
    line += " \(decimals(time / times[0], 2))× \(contender.name)"
  }
  print(line)
}
