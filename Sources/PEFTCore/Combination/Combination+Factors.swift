import NN
import PEFTSupport
import Tensors

/// One adapter's change of a module that several adapters change.
public struct CombinationPart: Sendable {
  /// The adapter's place in the list.
  public let adapter: Int
  /// A and B, without the scaling.
  public let factors: FactoredChange
  /// s.
  public let scaling: Double
  /// w.
  public let weight: Double

  /// Describes a change.
  public init(adapter: Int, factors: FactoredChange, scaling: Double, weight: Double) {
    self.adapter = adapter
    self.factors = factors
    self.scaling = scaling
    self.weight = weight
  }

  /// w·s, the factor of B·A in the sum.
  var gain: Double { weight * scaling }
}

extension Combination {
  /// Combines the changes of one module.
  ///
  /// The whole change is only made for kinds that prune it; sums are decomposed from their factors.
  ///
  /// - Parameters:
  ///   - parts: The changes, of one shape.
  ///   - module: The module's path, which random numbers and errors go by.
  ///   - rank: Of decomposed results, for the whole module; a change of lower rank gets that.
  /// - Returns: Factors of the new change, whose scaling is 1.
  /// - Throws: ``PEFTError``: `shapeMismatch`, `invalidConfiguration` for ranks that differ where they
  ///   must not, `numericalFailure`.
  public func combine(
    _ parts: [CombinationPart], at module: String, rank: Int
  ) throws(PEFTError) -> FactoredChange {
    let first = parts[0].factors
    for part in parts.dropFirst() {
      let other = part.factors
      guard
        (other.outputs, other.inputs, other.groups) == (first.outputs, first.inputs, first.groups)
      else {
        throw PEFTError(
          .shapeMismatch,
          "changes of shapes [\(first.outputs), \(first.inputs)] and [\(other.outputs), "
            + "\(other.inputs)], or of other groups, cannot be combined", at: module,
          remedy: "The adapters were made for different base models.")
      }
    }
    switch kind {
    case .cat: return compatibility == .peft ? Self.concatenated(parts) : Self.stacked(parts)
    case .linear:
      return compatibility == .peft || parts.count == 1
        ? try factorwise(parts, module) : Self.stacked(parts)
    case .magnitudePrune, .dareLinear:
      if compatibility == .peft { return try factorwise(parts, module) }
      var pruned: [(FactoredChange, Double)] = []
      for part in parts {
        let (a, b) = (part.factors.a, part.factors.b)
        pruned.append(
          (
            FactoredChange(
              prune(a, part, "A", module), prune(b, part, "B", module), groups: part.factors.groups),
            part.gain
          ))
      }
      return FactoredChange.stacked(pruned)
    case .ties, .dareTIES: return try factorwise(parts, module)
    case .svd:
      let sum = Self.stacked(parts)
      return limited(
        try sum.decomposed(), rank: min(rank, sum.rank), first, module)
    case .tiesSVD, .dareLinearSVD, .dareTIESSVD, .magnitudePruneSVD:
      let changes = parts.map { part in
        prune(part.factors.product(scale: part.scaling), part, "delta", module)
      }
      let sum = merge(changes, weights: parts.map(\.weight))
      return limited(
        try Decomposition.groups(sum, count: first.groups), rank: rank, first, module)
    }
  }

  private static func stacked(_ parts: [CombinationPart]) -> FactoredChange {
    .stacked(parts.map { ($0.factors, $0.gain) })
  }

  /// Rows below rows whatever the groups, as peft does it.
  private static func concatenated(_ parts: [CombinationPart]) -> FactoredChange {
    FactoredChange(
      .stackingRows(parts.map { $0.factors.a.scaled(by: Float($0.gain)) }),
      .stackingColumns(parts.map(\.factors.b)), groups: parts[0].factors.groups)
  }

  /// A and B each for themselves, with roots of the gains; a sign goes to A alone.
  private func factorwise(
    _ parts: [CombinationPart], _ module: String
  ) throws(PEFTError) -> FactoredChange {
    guard parts.allSatisfy({ $0.factors.rank == parts[0].factors.rank }) else {
      throw Self.unequalRanks(parts.map(\.factors.rank), at: module)
    }
    let roots = parts.map { $0.gain.magnitude.squareRoot() }
    let signed = zip(parts, roots).map { $0.gain >= 0 ? $1 : -$1 }
    return FactoredChange(
      merge(parts.map { prune($0.factors.a, $0, "A", module) }, weights: signed),
      merge(parts.map { prune($0.factors.b, $0, "B", module) }, weights: roots),
      groups: parts[0].factors.groups)
  }

  /// peft's error for kinds that combine factors element by element.
  public static func unequalRanks(_ ranks: [Int], at module: String? = nil) -> PEFTError {
    PEFTError(
      .invalidConfiguration,
      "All adapters must have the same r value when using combination_type linear, ties, dare_ties "
        + "or dare_linear.", at: module,
      remedy: ranks.isEmpty
        ? "Name the adapters."
        : "The ranks are \(ranks.map(String.init).joined(separator: ", ")); use cat, svd or one of "
          + "the svd variants.")
  }

  private func prune(
    _ tensor: Tensor, _ part: CombinationPart, _ side: String, _ module: String
  ) -> Tensor {
    guard kind.prunes, let density, density < 1 else { return tensor }
    guard kind.isRandom else {
      return TaskArithmetic.prunedByMagnitude(tensor, density: density)
    }
    if density == 0, compatibility == .exact { return .zeros(tensor.shape) }
    let draw = PruningDraw(
      module: module, adapter: part.adapter, side: side, shape: tensor.shape)
    let mask =
      draws?(draw)
      ?? TaskArithmetic.mask(
        tensor.shape, density: density, seed: seed,
        stream: siteID("\(module).\(part.adapter).\(side)"))
    return TaskArithmetic.pruned(tensor, mask: mask, density: density)
  }

  private func merge(_ tensors: [Tensor], weights: [Double]) -> Tensor {
    kind.elects
      ? TaskArithmetic.elected(tensors, weights: weights, by: majoritySign)
      : TaskArithmetic.sum(tensors, weights: weights)
  }

  /// The best factors of a rank, limited to a quantile if that is wanted.
  private func limited(
    _ groups: [Decomposition], rank: Int, _ like: FactoredChange, _ module: String
  ) -> FactoredChange {
    let most = min(like.outputs / like.groups, like.inputs)
    let groupRank = min((rank + like.groups - 1) / like.groups, most)
    var groups = groups
    if let signs { groups = groups.map { $0.flipped(signs(module, $0.vt)) } }
    let factors = Decomposition.factors(groups, groupRank: groupRank)
    guard let svdClamp else { return factors }
    let limit = Self.quantile(svdClamp, of: factors.b.scalars + factors.a.scalars)
    func limited(_ tensor: Tensor) -> Tensor {
      Tensor(shape: tensor.shape, scalars: tensor.scalars.map { min(max($0, -limit), limit) })
    }
    return FactoredChange(limited(factors.a), limited(factors.b), groups: factors.groups)
  }

  /// A quantile with linear interpolation between neighbours.
  private static func quantile(_ share: Double, of values: [Float]) -> Float {
    let sorted = values.sorted()
    let place = share * Double(sorted.count - 1)
    let below = Int(place)
    let above = min(below + 1, sorted.count - 1)
    return sorted[below] + Float(place - Double(below)) * (sorted[above] - sorted[below])
  }
}
