import NN
import PEFTSupport
import Tensors

/// A layer whose change of the weight is the product of two factors, ΔW = s·B·A.
///
/// What works on the factors of any such method asks for this: optimisers, and decompositions that
/// need not make the whole change.
public protocol LowRankLayer: TunerLayer {
  /// A, the factor on the input, `[rank, inputs…]`.
  var a: Parameter { get }
  /// B, the factor on the output, `[outputs, rank / groups, 1…]`.
  var b: Parameter { get }
  /// s.
  var scaling: Double { get }
  /// The factors of ΔW, with the scaling in A.
  ///
  /// - Throws: ``PEFTError``: factors that have no product, or a change that is more than one.
  var change: FactoredChange { get throws(PEFTError) }
}

extension LowRankLayer {
  /// s·A and B.
  public var change: FactoredChange {
    get throws(PEFTError) {
      try FactoredChange(a: a.value.scaled(by: Float(scaling)), b: b.value)
    }
  }
}
