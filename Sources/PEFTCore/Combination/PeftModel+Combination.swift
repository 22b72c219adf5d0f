import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// Makes a new adapter of several: peft's `add_weighted_adapter`.
  ///
  /// The new adapter is like any other; it is not active. When it throws, the model is as it was
  /// before.
  ///
  /// ```swift
  /// try peft.combine(["first", "second"], weights: [0.7, 0.4], into: "both", Combination(.cat))
  /// ```
  ///
  /// - Parameters:
  ///   - adapters: The adapters; one may be named several times.
  ///   - weights: A weight for each, negative ones to take a change away.
  ///   - name: The new adapter's name.
  ///   - combination: What is done.
  /// - Returns: Whether there is a new adapter, and warnings.
  /// - Throws: ``PEFTError``: unknown adapters, a name that is taken (in peft's compatibility mode
  ///   nothing happens then), settings that are invalid or do not fit the adapters.
  @discardableResult
  public func combine(
    _ adapters: [String], weights: [Double], into name: String,
    _ combination: Combination = Combination()
  ) throws(PEFTError) -> CombinationReport {
    var report = CombinationReport()
    if combination.compatibility == .peft, adapterNames.contains(name) {
      report.isNew = false
      return report
    }
    try checkNewName(name)
    for adapter in adapters where !records.contains(where: { $0.name == adapter }) {
      throw PEFTError(
        .invalidAdapter, "Adapter \(adapter) does not exist",
        remedy: Spelling.suggestion(for: adapter, among: adapterNames))
    }
    _ = try combination.resolved(weights: weights, adapters: adapters)
    var sources: [CombinationSource] = []
    for (adapter, weight) in zip(adapters, weights) {
      sources.append(CombinationSource(try values(of: adapter), weight: weight))
    }
    let combined = try registry.combine(sources, combination, base: baseWeights)
    try add(name, combined.state, allowingFresh: combination.compatibility == .peft)
    report.warnings = combined.warnings
    return report
  }

  /// The untouched weights of the base, whatever is merged.
  var baseWeights: BaseWeights {
    BaseWeights { [self] (path, outputs, inputs, isEmbedding) throws(PEFTError) in
      guard let host = places[FileKey.modulePath(path)].map({ hosts[$0].host }) else {
        throw PEFTError(
          .noMatchingModule, "the base model has no module '\(path)'",
          remedy: "The adapter was made for another base model.")
      }
      let stored = host.untouched.matrix.dequantized()
      return try BaseWeights.oriented(
        stored, outputs: outputs, inputs: inputs, isTransposed: host is Embedding,
        at: path)
    }
  }
}
