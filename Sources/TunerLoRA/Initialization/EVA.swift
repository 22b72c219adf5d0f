import PEFTCore
import PEFTSupport
import Tensors

/// EVA: A from the principal components of each layer's inputs, and more rank to the layers whose inputs
/// a component explains more of.
enum EVA {
  /// Fixes A of a plan's linear layers, spreads the ranks, and drops layers that get none.
  ///
  /// As in peft, batches are repeated until every component that a rank needs has settled; here at most
  /// ``maximumPasses`` times.
  ///
  /// - Throws: ``PEFTError``: no data, batches with fewer rows than components, components that do not
  ///   settle.
  static func prepare(_ plan: inout AdapterPlan, _ settings: EVASettings) throws(PEFTError) {
    guard let config = plan.config as? LoRAConfig else { return }
    let calibration = try plan.requireCalibration("eva")
    var search = try Search(plan, config, settings, calibration)
    try search.run(calibration)
    apply(search, config, settings, to: &plan)
  }

  static let maximumPasses = 100

  /// Puts ranks, alphas and values into the plan.
  private static func apply(
    _ search: Search, _ config: LoRAConfig, _ settings: EVASettings, to plan: inout AdapterPlan
  ) {
    var config = config
    var ranks: [String: Int] = [:]
    for (place, site) in search.watched.sites.enumerated() {
      let rank = search.ranks[place]
      ranks[site.path] = rank
      let pca = search.analyses[search.leaders[place]]!
      guard rank > 0, let components = pca.components else { continue }
      var a = components.copyingRows(0..<rank)
      if settings.whitens {
        a = a.scalingRows(
          by: Tensor(
            shape: [rank], scalars: pca.singularValues.prefix(rank).map { 1 / $0.squareRoot() }))
      }
      plan.initialValues[site.path] = [LoRAKey.a: a]
    }
    let before = plan.sites.count
    plan.sites.removeAll { ranks[$0.path] == 0 }
    if plan.sites.count < before {
      config.targets.modules = .list(plan.sites.map(\.path))
      config.targets.layers = nil
      config.targets.layersPattern = []
    }
    let paths = plan.sites.map(\.path)
    var rankEntries: [SuffixPatterns.Entry] = []
    var alphaEntries: [SuffixPatterns.Entry] = []
    for path in paths {
      // The patterns were tried before; they are replaced as a whole, since the first match counts.
      let oldRank = (try? search.config.rank(path)) ?? config.rank
      let rank = ranks[path] ?? oldRank
      var alpha = (try? search.config.alpha(path)) ?? config.alpha
      if settings.adjustsScaling, rank != oldRank { alpha *= Double(rank) / Double(oldRank) }
      let key = key(path, among: paths)
      if rank != config.rank { rankEntries.append(.init(key, Double(rank))) }
      if alpha != config.alpha { alphaEntries.append(.init(key, alpha)) }
    }
    config.rankPattern = SuffixPatterns(rankEntries)
    config.alphaPattern = SuffixPatterns(alphaEntries)
    plan.config = config
  }

  /// The path as the key of a pattern, anchored where it is the end of another one.
  private static func key(_ path: String, among paths: [String]) -> String {
    paths.contains { $0.hasSuffix(".\(path)") } ? "^\(path)" : path
  }
}

/// The search for components that have settled.
private struct Search {
  let config: LoRAConfig
  let settings: EVASettings
  let watched: WatchedSites
  /// For each site the one whose components it shares.
  let leaders: [Int]
  /// Components by leader.
  private(set) var analyses: [Int: IncrementalPCA] = [:]
  /// The rank of each site.
  private(set) var ranks: [Int]
  /// Most components of each site.
  private let limits: [Int]
  private let budget: Int
  /// By leader, which components stayed as they were in the last step.
  private var settled: [Int: [Bool]] = [:]

  init(
    _ plan: AdapterPlan, _ config: LoRAConfig, _ settings: EVASettings,
    _ calibration: Calibration
  ) throws(PEFTError) {
    self.config = config
    self.settings = settings
    watched = WatchedSites(plan)
    let first = calibration.batch(0)!
    let counted = Self.rows(of: first, settings)
    leaders = try watched.leaders(first) { Self.select($0, counted) }
    // peft bounds very large factors by the largest extent of any parameter.
    let largest =
      watched.sites.map { max($0.host.inputFeatures, $0.host.outputFeatures) }.max() ?? 0
    let rho = settings.rho > 1000 ? min(settings.rho, Double(largest / config.rank)) : settings.rho
    var limits: [Int] = []
    var budget = 0
    for site in watched.sites {
      let rank = try config.rank(site.path)
      // Python rounds halves to even.
      limits.append(Int((Double(rank) * rho).rounded(.toNearestOrEven)))
      budget += rank
    }
    let groups = Dictionary(grouping: limits.indices, by: { [leaders] in leaders[$0] })
    for group in groups.values {
      let most = group.map { limits[$0] }.max()!
      for place in group { limits[place] = most }
    }
    for place in groups.keys.sorted() {
      let width = watched.sites[place].host.inputFeatures
      guard limits[place] <= width else {
        throw PEFTError(
          .invalidConfiguration,
          "n_components=\(limits[place]) invalid for n_features=\(width): EVA looks for rho·r "
            + "components of the layer's inputs", at: watched.sites[place].path,
          remedy: "Lower 'r' or 'rho'.")
      }
      analyses[place] = IncrementalPCA(count: limits[place])
      settled[place] = Array(repeating: false, count: limits[place])
    }
    self.limits = limits
    self.budget = budget
    ranks = limits
  }

  /// Goes over the batches until all components that count have settled.
  mutating func run(_ calibration: Calibration) throws(PEFTError) {
    let order = analyses.keys.sorted()
    var done: Set<Int> = []
    var number = 0
    while true {
      let watching = order.filter { place in
        settled[place]!.prefix(needed(place)).contains(false)
      }
      done = Set(order).subtracting(watching)
      if done.count == order.count { return }
      try checkProgress(number, watching, calibration)
      try step(calibration.cycled(number)!, Set(watching))
      number += 1
      if order.allSatisfy({ analyses[$0]!.components != nil }) { distribute(order) }
    }
  }

  /// How many of a leader's components must settle: as many as its own rank, as in peft.
  private func needed(_ leader: Int) -> Int { ranks[leader] }

  private mutating func step(_ batch: Calibration.Batch, _ watching: Set<Int>) throws(PEFTError) {
    let counted = Self.rows(of: batch, settings)
    var inputs: [Int: Tensor] = [:]
    // Analyses are made when the model has run: a closure that escapes cannot change this value.
    let limits = limits
    try watched.observe(batch) { place, x in
      guard watching.contains(place) else { return }
      let rows = Self.select(x, counted)
      if rows.rows >= limits[place] { inputs[place] = rows }
    }
    for (place, rows) in inputs.sorted(by: { $0.key < $1.key }) {
      guard rows.allFinite else {
        throw PEFTError(
          .numericalFailure, "the layer's inputs have infinite or NaN elements",
          at: watched.sites[place].path, remedy: "Check the batches and the model's weights.")
      }
      let before = analyses[place]!.components
      do { try analyses[place]!.add(rows) } catch {
        throw error.located(at: watched.sites[place].path)
      }
      guard let before, let after = analyses[place]!.components else { continue }
      settled[place] = Self.cosines(before, after).map { $0 >= settings.tau }
    }
  }

  /// Gives the ranks to the components that explain most, whichever layer they are of.
  private mutating func distribute(_ order: [Int]) {
    // Leaders first, then those that share their components; equal ones keep this order.
    let places = order + leaders.indices.filter { leaders[$0] != $0 }
    var candidates: [(place: Int, ratio: Double)] = []
    for place in places {
      for ratio in analyses[leaders[place]]!.varianceRatios.prefix(limits[place]) {
        candidates.append((place, ratio))
      }
    }
    let chosen = candidates.enumerated().sorted {
      ($1.element.ratio, $0.offset) < ($0.element.ratio, $1.offset)
    }.prefix(budget)
    ranks = Array(repeating: 0, count: ranks.count)
    for (_, candidate) in chosen { ranks[candidate.place] += 1 }
    for place in leaders.indices where leaders[place] != place {
      // A leader has the highest rank, since its components are the ones that are watched.
      if ranks[leaders[place]] < ranks[place] { ranks.swapAt(leaders[place], place) }
    }
  }

  private func checkProgress(
    _ number: Int, _ watching: [Int], _ calibration: Calibration
  ) throws(PEFTError) {
    let count = calibration.batch(number) == nil ? calibration.count : 0
    guard count > 0, number % count == 0 else { return }
    if let place = watching.first(where: { analyses[$0]!.components == nil }) {
      throw PEFTError(
        .invalidData,
        "no batch has as many rows as EVA looks for components: \(limits[place])",
        at: watched.sites[place].path,
        remedy: "Use larger batches, lower 'r' or 'rho', or set 'use_label_mask' to false.")
    }
    if number / count >= EVA.maximumPasses {
      throw PEFTError(
        .numericalFailure,
        "the components have not settled after \(EVA.maximumPasses) passes over the batches",
        at: watched.sites[watching[0]].path, remedy: "Use more batches, or lower 'tau' or 'rho'.")
    }
  }

  /// The rows of a batch that count; `nil` for all.
  private static func rows(of batch: Calibration.Batch, _ settings: EVASettings) -> [Int32]? {
    guard settings.usesLabelMask, let labels = batch.labels else { return nil }
    return labels.contains(settings.ignoredLabel)
      ? labels.indices.filter { labels[$0] != settings.ignoredLabel }.map { Int32($0) } : nil
  }

  private static func select(_ x: Tensor, _ rows: [Int32]?) -> Tensor {
    // A layer that sees one row of each sequence has no use for labels of rows.
    guard let rows, let last = rows.last, Int(last) < x.rows else { return x }
    return x.selectRows(rows)
  }

  private static func cosines(_ x: Tensor, _ y: Tensor) -> [Double] {
    (0..<x.rows).map { row in
      let (a, b) = (x.rowRange(row..<row + 1), y.rowRange(row..<row + 1))
      let dot = zip(a.scalars, b.scalars).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
      let lengths = (a.sumOfSquares * b.sumOfSquares).squareRoot()
      return lengths > 0 ? dot / lengths : 0
    }
  }
}
