import BLASKernels
import BenchClock

/// The ways to the eight leading singular vectors, for the linear layers of Qwen2-0.5B, and what all 168
/// of them take together.
func benchmarkDecompositions() {
  let rank = 8
  let ways: [(name: String, run: (Slice<Float>, Int, Int) throws -> SingularValues)] = [
    ("4 iterations", { try LAPACK.truncatedSVD($0, m: $1, n: $2, rank: rank, iterations: 4) }),
    ("10 iterations", { try LAPACK.truncatedSVD($0, m: $1, n: $2, rank: rank, iterations: 10) }),
    ("leading", { try LAPACK.leadingSVD($0, m: $1, n: $2, rank: rank) }),
    ("whole", { try LAPACK.svd($0, m: $1, n: $2) }),
  ]
  var totals = ways.map { _ in 0.0 }
  for (m, n, count) in [(896, 896, 48), (128, 896, 48), (4864, 896, 48), (896, 4864, 24)] {
    let matrix = random(m * n).readOnly
    let times = ways.map { way in
      // The whole decomposition takes so long that disturbances hardly count.
      (0..<(way.name == "whole" ? 1 : 3)).reduce(Double.infinity) { best, _ in
        min(best, measure { _ = try? way.run(matrix, m, n) })
      }
    }
    var line = pad("singular vectors of \(m)×\(n), \(count) times", 44)
    for (index, way) in ways.enumerated() {
      totals[index] += times[index] * Double(count)
      line += pad("\(way.name) \(decimals(times[index] * 1e3, 1)) ms", 26)
    }
    print(line)
  }
  let sums = zip(ways, totals).map { pad("\($0.name) \(decimals($1, 1)) s", 26) }
  print(pad("all 168", 44) + sums.joined())
}
