import Testing

@testable import Tensors

/// Losses against numbers worked out from their formulas, and their gradients against differences.
struct TargetLossTests {
  private let logits = Tensor(shape: [3, 2], scalars: [0.3, -1.2, 2, 0.1, -0.4, 0.9])
  private let targets: [Float] = [1, 0, 1, 1, 0, 0.25]

  private func check(_ loss: (Tensor) -> Tensor) {
    let parameter = Parameter(logits)
    let gradients = loss(parameter.tensor).backward()
    let found = gradients[parameter]!.scalars
    for place in 0..<logits.count {
      func value(_ step: Float) -> Float {
        var scalars = logits.scalars
        scalars[place] += step
        return loss(Tensor(shape: [3, 2], scalars: scalars)).item
      }
      let slope = (value(0.01) - value(-0.01)) / 0.02
      #expect(abs(slope - found[place]) < 1e-3, "\(place)")
    }
  }

  @Test func squaredErrors() {
    // (0.49 + 1.44 + 1 + 0.81 + 0.16 + 0.4225) / 6
    #expect(abs(meanSquaredError(logits, targets: targets).item - 0.72041667) < 1e-6)
    #expect(abs(meanSquaredError(logits, targets: targets, count: 12).item - 0.36020833) < 1e-6)
    check { meanSquaredError($0, targets: targets) }
  }

  @Test func binaryCrossEntropies() {
    // −log σ(0) = log 2 for either target.
    let zero = Tensor(shape: [2], scalars: [0, 0])
    #expect(abs(binaryCrossEntropy(zero, targets: [0, 1]).item - 0.6931472) < 1e-6)
    // log(1 + e^-100) is nothing, and −log σ(−100) is 100: neither overflows.
    let large = Tensor(shape: [2], scalars: [100, -100])
    #expect(binaryCrossEntropy(large, targets: [1, 0]).item < 1e-6)
    #expect(abs(binaryCrossEntropy(large, targets: [0, 1]).item - 100) < 1e-4)
    check { binaryCrossEntropy($0, targets: targets, count: 3) }
  }

  @Test func spans() {
    // Rows 0 and 1 are one sequence, row 2 another, whose only row has probability 1.
    let loss = spanCrossEntropy(logits, offsets: [0, 2, 3], starts: [1, 0], ends: [0, 0])
    // log(1 + e^(0.3−2)) = 0.1676; log(1 + e^(0.1+1.2)) = 1.5410; a quarter of each.
    #expect(abs(loss.item - (0.16762 + 1.54101) / 4) < 1e-4)
    let one = spanCrossEntropy(
      logits, offsets: [0, 2, 3], starts: [1, ignoredLabel], ends: [0, ignoredLabel])
    #expect(abs(one.item - (0.16762 + 1.54101) / 2) < 1e-4)
    let none = spanCrossEntropy(
      logits, offsets: [0, 2, 3], starts: [ignoredLabel, ignoredLabel], ends: [0, 0])
    #expect(none.item.isNaN)
    check { spanCrossEntropy($0, offsets: [0, 2, 3], starts: [1, 0], ends: [0, 0]) }
    check { spanCrossEntropy($0, offsets: [0, 3], starts: [2], ends: [2], count: 5) }
  }
}
