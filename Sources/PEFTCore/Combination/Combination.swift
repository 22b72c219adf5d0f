import PEFTSupport
import Tensors

/// How several adapters become one: peft's `add_weighted_adapter`.
///
/// With weights wᵢ and changes ΔWᵢ = sᵢ·Bᵢ·Aᵢ, the kinds do this:
///
/// | kind | new adapter | rank |
/// | --- | --- | --- |
/// | `linear`, `cat` | Σ wᵢ ΔWᵢ, exactly, by stacking the factors | Σ rᵢ |
/// | `svd` | the best approximation of Σ wᵢ ΔWᵢ of a lower rank | ``svdRank``, else the largest rᵢ |
/// | `magnitude_prune`, `dare_linear` | `linear` of adapters whose factors are pruned | Σ rᵢ |
/// | `ties`, `dare_ties` | A and B for themselves: pruned, then only what has the elected sign is averaged | rᵢ, all equal |
/// | `…_svd` | the same on the whole ΔWᵢ, then the best approximation of a lower rank | as `svd` |
///
/// One adapter alone is always scaled, as in peft, unless `svd` is given a rank.
///
/// With ``Compatibility/peft`` the numbers are peft's, which differ: `linear`, `magnitude_prune` and `dare_linear` add A and B
/// for themselves, so that B·A has products of different adapters in it; with rsLoRA the result is
/// too large by √r; magnitudes of DoRA and biases are lost; and there is one rank for all modules.
public struct Combination: Sendable {
  /// The kinds, under peft's names.
  public enum Kind: String, Sendable, CaseIterable {
    case svd, linear, cat, ties
    case tiesSVD = "ties_svd"
    case dareTIES = "dare_ties"
    case dareLinear = "dare_linear"
    case dareTIESSVD = "dare_ties_svd"
    case dareLinearSVD = "dare_linear_svd"
    case magnitudePrune = "magnitude_prune"
    case magnitudePruneSVD = "magnitude_prune_svd"

    /// The kind of a name.
    ///
    /// - Throws: ``PEFTError`` `invalidConfiguration`, listing the kinds.
    public init(name: String) throws(PEFTError) {
      guard let kind = Kind(rawValue: name) else {
        throw PEFTError(
          .invalidConfiguration, "Invalid combination_type: \(name)",
          remedy: Spelling.suggestion(for: name, among: Kind.allCases.map(\.rawValue)))
      }
      self = kind
    }

    /// Whether the result is decomposed.
    public var decomposes: Bool { self == .svd || rawValue.hasSuffix("_svd") }
    /// Whether ``Combination/density`` is needed.
    public var prunes: Bool { ![.linear, .cat, .svd].contains(self) }
    /// Whether what is pruned is drawn.
    public var isRandom: Bool { rawValue.hasPrefix("dare_") }
    /// Whether signs are elected.
    public var elects: Bool { rawValue.contains("ties") }
    /// Whether A and B are combined for themselves, element by element, in peft.
    var isFactorwise: Bool { !decomposes && self != .cat }
  }

  /// How the sign of an element is elected.
  public enum MajoritySign: String, Sendable, CaseIterable {
    /// By the sum of the values.
    case total
    /// By the number of adapters.
    case frequency

    /// The method of a name.
    ///
    /// - Throws: ``PEFTError`` `invalidConfiguration`.
    public init(name: String) throws(PEFTError) {
      guard let method = MajoritySign(rawValue: name) else {
        throw PEFTError(
          .invalidConfiguration, "Unimplemented mask method \"\(name)\"",
          remedy: "'majority_sign_method' is total or frequency.")
      }
      self = method
    }
  }

  /// What is done.
  public var kind: Kind
  /// The share of values that pruning keeps, from 0 on; from 1 on nothing is pruned.
  public var density: Double?
  /// How signs are elected.
  public var majoritySign: MajoritySign
  /// The rank of a decomposed result; the largest of the adapters' by default. A module whose
  /// change has a lower rank gets that.
  public var svdRank: Int?
  /// A quantile of the values of a decomposed result's factors, to which they are limited.
  ///
  /// The quantile depends on the signs of singular vectors, which are free: here the largest
  /// component of each left vector is positive.
  public var svdClamp: Double?
  /// Accepted for the sake of peft's signature; the result does not depend on it.
  public var svdFullMatrices = true
  /// Must be absent: it names methods of CUDA.
  public var svdDriver: String?
  /// Seeds what is drawn.
  public var seed: UInt64
  /// Whether peft's numbers are wanted, or the right ones.
  public var compatibility: Compatibility

  // For comparisons with numbers made elsewhere, with other random numbers and singular vectors.
  var draws: (@Sendable (PruningDraw) -> Tensor?)?
  var signs: (@Sendable (_ module: String, _ right: Tensor) -> [Float])?

  /// Describes a combination; the defaults are peft's.
  public init(
    _ kind: Kind = .svd, density: Double? = nil, majoritySign: MajoritySign = .total,
    svdRank: Int? = nil, svdClamp: Double? = nil, seed: UInt64 = 0,
    compatibility: Compatibility = .exact
  ) {
    self.kind = kind
    self.density = density
    self.majoritySign = majoritySign
    self.svdRank = svdRank
    self.svdClamp = svdClamp
    self.seed = seed
    self.compatibility = compatibility
  }

  /// Checks the settings and the weights for a number of adapters.
  ///
  /// - Returns: The settings with the kind that is carried out, and warnings.
  /// - Throws: ``PEFTError`` `invalidConfiguration` or `unsupported`, naming the setting.
  public func resolved(weights: [Double], adapters: [String]) throws(PEFTError) -> (
    combination: Combination, warnings: [String]
  ) {
    func invalid(_ message: String, _ remedy: String? = nil) -> PEFTError {
      PEFTError(.invalidConfiguration, message, remedy: remedy)
    }
    if adapters.isEmpty {
      throw kind.isFactorwise
        ? Self.unequalRanks([])
        : invalid("Found no adapter matching the names in []", "Name the adapters.")
    }
    if weights.count != adapters.count {
      throw invalid(
        "\(adapters.count) adapters and \(weights.count) weights",
        "Give one weight for each adapter.")
    }
    for (weight, adapter) in zip(weights, adapters) where !weight.isFinite {
      throw invalid("the weight of '\(adapter)' is \(weight), a finite number was expected")
    }
    if let svdRank, svdRank < 1 {
      throw invalid("'svd_rank' is \(svdRank), a positive number was expected")
    }
    if let svdClamp, !(0...1).contains(svdClamp) {
      throw invalid("'svd_clamp' is \(svdClamp), a quantile from 0 to 1 was expected")
    }
    if let svdDriver {
      throw PEFTError(
        .unsupported, "'svd_driver': \"\(svdDriver)\" is not supported: it names methods of CUDA",
        remedy: "Leave it out.")
    }
    var result = self
    let keepsKind = compatibility == .exact && kind == .svd && svdRank != nil
    if adapters.count == 1, !keepsKind { result.kind = .linear }
    guard result.kind.prunes else { return (result, []) }
    guard let density else {
      throw invalid(
        "'density' is missing, combination_type \(kind.rawValue) needs it",
        "Give the share of values to keep, as 0.5.")
    }
    if !(density >= 0) { throw invalid("Density should be >= 0, got \(density)") }
    let warning =
      "The density \(density) is greater than or equal to 1, no pruning will be performed."
    return (result, density >= 1 ? [warning] : [])
  }
}

/// Whether results follow the formulas, or peft where it departs from them.
public enum Compatibility: String, Sendable, CaseIterable {
  /// The right numbers.
  case exact
  /// The numbers of peft 0.21, its known faults included.
  case peft
}

/// Which of several adapters' tensors is being pruned at random.
struct PruningDraw: Sendable {
  let module: String
  /// The place of the adapter in the list.
  let adapter: Int
  /// "A", "B", or "delta" for the whole change, `[outputs, inputs]`.
  let side: String
  let shape: [Int]
}
