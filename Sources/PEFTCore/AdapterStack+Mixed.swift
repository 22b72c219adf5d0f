import NN
import Tensors

extension AdapterStack {
  /// Each sequence with its own adapter.
  ///
  /// The base is computed once for all. Adapters that are low-rank products then add to their own
  /// rows, all of them in one call; others are computed group by group, rows of one adapter together.
  func forwardMixed(
    _ adapters: SequenceAdapters, _ input: HostInput, host: any AdapterHost,
    _ context: ForwardContext
  ) -> Tensor {
    let layout = context.sequences
    let perRow = input.rows == layout.rows
    precondition(
      adapters.count == layout.count && (perRow || input.rows == layout.count),
      "\(adapters.count) adapters for \(layout.count) sequences and \(input.rows) rows")
    precondition(
      selection.isCurrent(adapters),
      "an adapter of \(adapters.names) was deleted after the sequences were assigned")
    var inner = context
    inner.sequenceAdapters = nil
    let slots = adapters.slots
    // Merged adapters are in no one's share: each sequence gets its own and nothing else.
    let parameters = parameters(below: [], host: host)
    func rows(_ sequence: Int) -> Range<Int> {
      perRow ? layout.range(sequence) : sequence..<sequence + 1
    }
    if !slots.contains(where: { hasContent(at: $0) }) { return host.base(input, parameters) }
    if let first = slots.first, first >= 0, slots.allSatisfy({ $0 == first }) {
      return forwardPart(first, input, base: nil, host, inner)
    }
    if let output = forwardLowRank(slots, input, host, parameters, inner, rows) { return output }
    let base = host.base(input, parameters)
    // The positions of an image go with it.
    func flat(_ x: Tensor, _ rows: Int) -> Tensor { x.reshaped([rows, x.count / max(rows, 1)]) }
    let whole = flat(base, input.rows)
    var output = whole
    var shape = [base.columns]
    if case .images = input { shape = Array(base.shape.dropFirst()) }
    var groups: [(place: Int, rows: [Int32])] = []
    for (sequence, place) in slots.enumerated() where hasContent(at: place) {
      let own = rows(sequence).map { Int32($0) }
      if let group = groups.firstIndex(where: { $0.place == place }) {
        groups[group].rows += own
      } else {
        groups.append((place, own))
      }
    }
    for (place, rows) in groups {
      let own = whole.selectRows(rows).reshaped([rows.count] + shape)
      let part = forwardPart(place, input.selecting(rows), base: own, host, inner)
      output.replaceRows(rows, with: flat(part, rows.count))
    }
    return output.reshaped(base.shape)
  }

  /// Rows of one adapter; `base` is their output without it, where that is known.
  private func forwardPart(
    _ place: Int, _ input: HostInput, base: Tensor?, _ host: any AdapterHost,
    _ context: ForwardContext
  ) -> Tensor {
    let parameters = parameters(below: [place], host: host)
    let known = hasOwnBase(at: place) ? nil : base
    let layer = layer(at: place)
    let needsBase = layer?.needsBaseOutput == true
    var own: HostParameters?
    if let standIn = layer?.standIn {
      own = parameters
      own?.weight = .matrix(standIn)
    }
    var sum = own.map { host.base(input, $0) } ?? known ?? host.base(input, parameters)
    // What a layer sees is the untouched base, whatever stands in for it or for rows of it.
    let seen =
      layer?.standIn == nil ? sum : needsBase ? known ?? host.base(input, parameters) : nil
    tokens(at: place)?.replace(in: &sum, input, bias: parameters.bias, host: host)
    layer?.contribute(
      call(input, needsBase ? seen : nil, host, parameters, context), to: &sum)
    return sum
  }

  /// All rows at once, when every adapter is a product of two factors and no gradient is wanted.
  private func forwardLowRank(
    _ slots: [Int], _ input: HostInput, _ host: any AdapterHost, _ parameters: HostParameters,
    _ context: ForwardContext, _ rows: (Int) -> Range<Int>
  ) -> Tensor? {
    guard case .features(let x) = input, !GradientMode.isRecording else { return nil }
    var runs: [(rows: Range<Int>, factors: LowRankFactors)] = []
    runs.reserveCapacity(slots.count)
    var last = -1
    for (sequence, place) in slots.enumerated() where hasContent(at: place) {
      let range = rows(sequence)
      if place == last, runs[runs.count - 1].rows.upperBound == range.lowerBound {
        runs[runs.count - 1].rows = runs[runs.count - 1].rows.lowerBound..<range.upperBound
        continue
      }
      guard !hasOwnBase(at: place), tokens(at: place) == nil,
        let factors = layer(at: place)?.lowRankFactors(context)
      else { return nil }
      last = place
      runs.append((range, factors))
    }
    var output = host.base(input, parameters)
    output.addLowRank(runs, of: x)
    return output
  }
}
