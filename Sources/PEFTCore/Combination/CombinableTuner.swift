import NN
import PEFTSupport
import Tensors

/// A tuner whose adapters can be combined.
public protocol CombinableTuner: Tuner {
  /// Whether adapters with the given configs can be combined here.
  static func combines(_ configs: [JSONObject]) -> Bool

  /// Makes one adapter of several, without a model.
  ///
  /// - Parameters:
  ///   - sources: The adapters with their weights, at least one.
  ///   - combination: The settings, which are valid for the number of sources.
  ///   - base: The base model's weights, for adapters whose change depends on them.
  /// - Returns: The new adapter, and warnings.
  /// - Throws: ``PEFTError``, naming the module, key or adapter.
  static func combine(
    _ sources: [CombinationSource], _ combination: Combination, base: BaseWeights?
  ) throws(PEFTError) -> (state: AdapterValues, warnings: [String])
}

/// An adapter that goes into a combination.
public struct CombinationSource: Sendable {
  /// The adapter.
  public var state: AdapterValues
  /// Its weight.
  public var weight: Double

  /// Pairs an adapter with its weight.
  public init(_ state: AdapterValues, weight: Double) {
    self.state = state
    self.weight = weight
  }
}

/// Gives out weights of the base model by module path, `[outputs, inputs]` as a product B·A has it:
/// an embedding's and a GPT-2 layer's are transposed.
public struct BaseWeights {
  private let weight:
    (_ path: String, _ outputs: Int, _ inputs: Int, _ isEmbedding: Bool) throws(PEFTError) -> Tensor

  /// Creates a source of weights.
  public init(
    _ weight:
      @escaping (_ path: String, _ outputs: Int, _ inputs: Int, _ isEmbedding: Bool)
      throws(PEFTError) -> Tensor
  ) {
    self.weight = weight
  }

  /// The weight of a module.
  ///
  /// - Throws: ``PEFTError`` when the base has no such weight, or one of another shape.
  public func callAsFunction(
    _ path: String, outputs: Int, inputs: Int, isEmbedding: Bool
  ) throws(PEFTError) -> Tensor {
    try weight(path, outputs, inputs, isEmbedding)
  }

  /// A stored weight in the orientation of B·A.
  ///
  /// - Parameter isTransposed: Whether the weight is stored `[inputs, outputs]`; `nil` where only the shape tells.
  /// - Throws: ``PEFTError`` `shapeMismatch`.
  public static func oriented(
    _ stored: Tensor, outputs: Int, inputs: Int, isTransposed: Bool?, at path: String
  ) throws(PEFTError) -> Tensor {
    let matrix = stored.asMatrix
    let fits = matrix.shape == [outputs, inputs]
    if fits, isTransposed != true { return matrix }
    if matrix.shape == [inputs, outputs], isTransposed != false { return matrix.transposed() }
    throw PEFTError(
      .shapeMismatch,
      "the base's weight has shape \(stored.shape), the adapter changes one of [\(outputs), "
        + "\(inputs)]", at: path, remedy: "The adapter was made for another base model.")
  }
}

/// What came of combining adapters.
public struct CombinationReport: Sendable {
  /// Whether there is a new adapter; in peft nothing happens when the name is taken.
  public internal(set) var isNew = true
  /// What was done otherwise than asked for, or may be meant otherwise.
  public internal(set) var warnings: [String] = []
}

extension TunerRegistry {
  /// Combines adapters with the registered tuner that can.
  ///
  /// ```swift
  /// let new = try registry.combine(
  ///   [CombinationSource(first, weight: 0.7), CombinationSource(second, weight: 0.4)],
  ///   Combination(.ties, density: 0.5))
  /// ```
  ///
  /// - Throws: ``PEFTError``: invalid settings, methods that cannot be combined, or what the tuner throws.
  public func combine(
    _ sources: [CombinationSource], _ combination: Combination, base: BaseWeights? = nil
  ) throws(PEFTError) -> (state: AdapterValues, warnings: [String]) {
    let (combination, warnings) = try combination.resolved(
      weights: sources.map(\.weight), adapters: sources.map(\.state.name))
    let configs = sources.map(\.state.config)
    guard let tuner = combiner(of: configs) else {
      let types = configs.map { $0["peft_type"]?.string ?? "unknown" }
      throw PEFTError(
        .unsupported,
        "adapters of the methods \(Set(types).sorted().joined(separator: ", ")) cannot be combined",
        remedy: "Convert them first: those with magnitudes to DoRA, which keeps their change, the "
          + "others to LoRA.")
    }
    var result = try tuner.combine(sources, combination, base: base)
    result.warnings = warnings + result.warnings
    return result
  }
}
