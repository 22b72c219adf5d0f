import Tensors

/// Dropout at one place of a model; does nothing in evaluation.
public final class Dropout: Module {
  /// Chance of an element to be zeroed.
  public let probability: Double
  private let site: UInt64

  /// Creates a dropout site; the path makes its masks differ from those of other sites.
  public init(_ probability: Double, path: String) {
    self.probability = probability
    site = siteID(path)
  }

  /// Applies dropout in training.
  public func callAsFunction(_ x: consuming Tensor, _ context: ForwardContext) -> Tensor {
    guard probability > 0, let key = context.dropoutKey(site) else { return x }
    return dropout(x, probability: Float(probability), key: key)
  }

  /// The mask key for dropout that happens elsewhere, as in attention; `nil` when there is none.
  public func key(_ context: ForwardContext) -> DropoutKey? {
    probability > 0 ? context.dropoutKey(site) : nil
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "Dropout" }
  /// What PyTorch prints between the parentheses.
  public var attributes: String { "p=\(pythonNumber(probability)), inplace=False" }
}
