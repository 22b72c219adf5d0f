import NN
import PEFTCore
import PEFTSupport
import Tensors

/// The layers of a plan that are watched: linear ones. Others, such as embeddings and convolutions, have
/// no rows of features.
final class WatchedSites {
  /// The sites in model order.
  let sites: [AdapterPlan.Site]
  private let places: [ObjectIdentifier: Int]

  init(_ plan: AdapterPlan) {
    sites = plan.sites.filter { ["Linear", "Conv1D"].contains($0.host.typeName) }
    places = Dictionary(
      sites.enumerated().map { (ObjectIdentifier($0.element.host), $0.offset) },
      uniquingKeysWith: { first, _ in first })
  }

  /// Runs the model on a batch and shows what goes into each site, as `[rows, in]`.
  func observe(
    _ batch: Calibration.Batch, _ body: @escaping (_ place: Int, _ input: Tensor) -> Void
  ) throws(PEFTError) {
    try batch.observe { host, input, output in
      if let (place, x) = self.match(host, input) { body(place, x) }
      return output
    }
  }

  /// A host's number, and its input.
  func match(_ host: any AdapterHost, _ input: HostInput) -> (place: Int, input: Tensor)? {
    guard let place = places[ObjectIdentifier(host)], case .features(let x) = input else {
      return nil
    }
    return (place, x.detached.reshaped([x.rows, x.columns]))
  }

  /// The error for a layer that no batch ran through.
  func notRun(_ place: Int) -> PEFTError {
    PEFTError(
      .invalidData, "the layer did not run on any batch, so it has nothing to begin from",
      at: sites[place].path, remedy: "Leave it out with 'exclude_modules'.")
  }

  /// For each site the first one with the same input, as the projections of attention have: what is
  /// computed of an input is computed once. Compares the inputs of one batch.
  func leaders(
    _ batch: Calibration.Batch, _ rows: @escaping (Tensor) -> Tensor = { $0 }
  ) throws(PEFTError) -> [Int] {
    var hashes = [UInt64?](repeating: nil, count: sites.count)
    try observe(batch) { place, x in
      if hashes[place] == nil { hashes[place] = Self.hash(rows(x)) }
    }
    var first: [UInt64: Int] = [:]
    var result: [Int] = []
    for (place, hash) in hashes.enumerated() {
      guard let hash else { throw notRun(place) }
      result.append(first[hash] ?? place)
      if first[hash] == nil { first[hash] = place }
    }
    return result
  }

  private static func hash(_ x: Tensor) -> UInt64 {
    var state: UInt64 = 0xcbf2_9ce4_8422_2325 ^ UInt64(x.columns)
    x.slice.withSpan { values in
      for i in 0..<values.count {
        state = (state ^ UInt64(values[i].bitPattern)) &* 0x9e37_79b9_7f4a_7c15
        state ^= state >> 29
      }
    }
    return state
  }
}

extension AdapterPlan {
  /// The batches, which an initialisation cannot do without.
  func requireCalibration(_ name: String) throws(PEFTError) -> Calibration {
    guard let calibration else {
      throw PEFTError(
        .invalidConfiguration, "'init_lora_weights' is '\(name)', which begins from data",
        remedy: "Pass batches to run the model on ('calibration').")
    }
    guard calibration.batch(0) != nil else {
      throw PEFTError(
        .invalidData, "there is no batch to begin from ('\(name)')",
        remedy: "Pass at least one batch ('calibration').")
    }
    return calibration
  }
}
