#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Seconds on a clock.
func seconds(_ clock: clockid_t) -> Double {
  var time = timespec()
  clock_gettime(clock, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
}

/// `FOLDER --name value --flag`.
struct Options {
  let folder: String
  private let words: [String]

  init(_ arguments: [String]) {
    guard arguments.count > 1 else {
      print("usage: methods-bench CONFIG_FOLDER [--task causal|classify] …")
      exit(2)
    }
    folder = arguments[1]
    words = Array(arguments.dropFirst(2))
  }

  func flag(_ name: String) -> Bool { words.contains("--\(name)") }

  func text(_ name: String, _ fallback: String) -> String {
    guard let place = words.firstIndex(of: "--\(name)"), place + 1 < words.count else {
      return fallback
    }
    return words[place + 1]
  }

  func number(_ name: String, _ fallback: Int) -> Int { Int(text(name, "")) ?? fallback }

  func list(_ name: String, _ fallback: String) -> [String] {
    text(name, fallback).split(separator: ",").map(String.init)
  }
}
