import Glibc
import PEFT

// adapters-bench MODEL [--random] [--adapters N] [--precision P] [--tokens T] [--seconds S]: many LoRA adapters
// (r 8, every linear layer) on one base: memory, switching, mixed batches, injection, loading. Prints one JSON
// object. Threads: OMP_NUM_THREADS. Started by compare/adapters.py, which puts peft's figures beside these.

do {
  let settings = try Settings(CommandLine.arguments)
  let bench = try AdaptersBench(settings)
  print(JSONValue.object(JSONObject(try bench.run())).text())
} catch {
  let text = Array("\(error)\n".utf8)
  write(2, text, text.count)
  exit(1)
}

/// What the command line says.
struct Settings {
  var model = ""
  var random = false
  var adapters = 100
  var precision = WeightPrecision.float32
  /// Tokens of each prompt.
  var tokens = 16
  /// How long mixed batches are measured.
  var seconds = 4.0

  init(_ arguments: [String]) throws(PEFTError) {
    func wrong(_ text: String) -> PEFTError { PEFTError(.invalidConfiguration, text) }
    var rest = arguments.dropFirst()
    while let word = rest.popFirst() {
      if word == "--random" {
        random = true
      } else if word.hasPrefix("--") {
        guard let value = rest.popFirst() else { throw wrong("\(word) needs a value") }
        switch word {
        case "--adapters": adapters = Int(value) ?? 0
        case "--tokens": tokens = Int(value) ?? 0
        case "--seconds": seconds = Double(value) ?? 0
        case "--precision":
          guard let known = WeightPrecision(rawValue: value) else {
            throw wrong("unknown precision \(value)")
          }
          precision = known
        default: throw wrong("unknown option \(word)")
        }
      } else {
        model = word
      }
    }
    guard !model.isEmpty, adapters >= 8, tokens >= 1 else {
      throw wrong("usage: adapters-bench MODEL [--random] [--adapters N >= 8] [--tokens T >= 1]")
    }
  }
}

/// Seconds on the monotonic clock.
func now() -> Double {
  var time = timespec()
  clock_gettime(CLOCK_MONOTONIC, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
}

/// The seconds that `body` takes.
func measure(_ body: () throws -> Void) rethrows -> Double {
  let start = now()
  try body()
  return now() - start
}

/// Bytes of memory that the process holds, files mapped included.
func residentBytes() -> Int {
  guard let text = try? FileSystem.read("/proc/self/statm") else { return 0 }
  let pages = String(decoding: text, as: UTF8.self).split(separator: " ")[1]
  return (Int(pages) ?? 0) * Int(sysconf(Int32(_SC_PAGESIZE)))
}
