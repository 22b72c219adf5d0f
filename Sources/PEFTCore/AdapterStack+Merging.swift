import NN
import PEFTSupport
import Tensors

extension AdapterStack {
  /// Computes the host's parameters with the given adapters merged into the untouched weight.
  ///
  /// All deltas are summed first and rounded once.
  func mergedParameters(
    _ names: [String], host: any AdapterHost, checkingFinite: Bool
  ) throws -> HostParameters? {
    let present = names.filter { layer($0) != nil || tokens($0) != nil }
    guard !present.isEmpty else { return nil }
    if let whole = names.first(where: { copy($0) != nil }),
      let other = present.first(where: { copy($0) == nil })
    {
      throw PEFTError(
        .unsupported,
        "the adapter '\(whole)' trains this module in full, and '\(other)' changes it besides",
        at: path, remedy: "Merge one of the two.")
    }
    // A bias that an adapter trains stays, also where it trains nothing else.
    let below = (names + selection.active).filter { copy($0) == nil }
      .compactMap { selection.place(of: $0) }
    var result = parameters(below: below, host: host)
    let base = result.matrix
    let rowsOf = present.compactMap { tokens($0) }
    try checkDisjoint(present)
    let matrix = try base.merging { rows, block in
      for own in rowsOf { own.replace(in: &block, rows: rows) }
      for name in present {
        guard let layer = self.layer(name) else { continue }
        do {
          try layer.addDelta(rows: rows, to: &block, base: base)
        } catch let error as PEFTError { throw error.located(at: self.path) }
        if let standIn = layer.standIn {
          block = block + standIn.dequantized(rows: rows)
          block = block + base.dequantized(rows: rows).scaled(by: -1)
        }
      }
      if checkingFinite, !block.allFinite {
        throw self.notFinite(
          present.filter { !self.isFinite($0, rows: rows, base) }, of: present)
      }
    }
    result.weight = .matrix(matrix)
    result.bias = try mergedBias(present, result.bias)
    if checkingFinite, result.bias?.value.allFinite == false {
      throw notFinite(
        present.filter { layer($0)?.biasDelta?.allFinite == false }, of: present)
    }
    // A tied weight is no longer the one that it was tied to.
    result.isTied = false
    return result
  }

  /// The error for adapters whose own changes are not finite, or for all whose sum is not.
  private func notFinite(_ broken: [String], of all: [String]) -> PEFTError {
    PEFTError(
      .numericalFailure,
      "NaNs detected in the merged weights. The adapter "
        + "\((broken.isEmpty ? all : broken).joined(separator: ", ")) seems to be broken",
      at: path, remedy: "Leave it out, or load it from a file whose values are finite.")
  }

  /// Whether the weight with one adapter alone is finite.
  private func isFinite(_ name: String, rows: Range<Int>, _ base: any WeightMatrix) -> Bool {
    var block = base.dequantized(rows: rows)
    tokens(name)?.replace(in: &block, rows: rows)
    do { try layer(name)?.addDelta(rows: rows, to: &block, base: base) } catch { return false }
    return block.allFinite
  }

  /// Refuses adapters that train the same row.
  private func checkDisjoint(_ names: [String]) throws(PEFTError) {
    var taken: Set<Int32> = []
    for name in names {
      guard let indices = tokens(name)?.indices else { continue }
      guard taken.isDisjoint(with: indices) else {
        throw PEFTError(
          .invalidAdapter,
          "Token indices of adapter \(name) are already defined and would result in undefined "
            + "merging behavior. Only disjunct token indices are currently supported.",
          at: path, remedy: "Merge one of the adapters alone.")
      }
      taken.formUnion(indices)
    }
  }

  private func mergedBias(_ names: [String], _ bias: Parameter?) throws(PEFTError) -> Parameter? {
    var sum: Tensor?
    for name in names {
      guard let change = layer(name)?.biasDelta else { continue }
      guard let bias else {
        throw PEFTError(
          .unsupported,
          "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.",
          at: path, remedy: "Keep the adapter '\(name)' unmerged.")
      }
      sum = (sum ?? bias.value) + change
    }
    guard let bias, let sum else { return bias }
    return Parameter(sum, isTrainable: bias.isTrainable)
  }
}
