import PEFTSupport

/// A layer whose change is multiplied by a number that can be changed.
///
/// Changed scalings act at once and are not saved; to keep one, make a new adapter
/// with ``PeftModel/combine(_:weights:into:_:)``, or by converting it.
public protocol ScaledLayer: TunerLayer {
  /// The present factor.
  var scaling: Double { get set }
  /// The factor that follows from the config.
  var configuredScaling: Double { get }
}

extension ScaledLayer {
  /// Makes the scaling a multiple of the configured one (peft's `set_scale`).
  public func setScale(_ factor: Double) { scaling = factor * configuredScaling }

  /// Multiplies the present scaling (peft's `scale_layer`).
  public func scale(by factor: Double) { scaling *= factor }

  /// Divides the present scaling, or restores the configured one (peft's `unscale_layer`).
  public func unscale(by factor: Double? = nil) {
    scaling = factor.map { scaling / $0 } ?? configuredScaling
  }
}

extension PeftModel {
  /// Makes the scaling of an adapter a multiple of the configured one (peft's `set_scale`).
  ///
  /// - Throws: ``PEFTError``: there is no such adapter, its layers have no scaling, the factor is not
  ///   finite, or the adapter is merged, as the merged weights would not follow.
  public func setScale(_ adapter: String, _ factor: Double) throws(PEFTError) {
    try rescale([adapter], factor) { $0.setScale(factor) }
  }

  /// Multiplies the present scalings of the active adapters (peft's `scale_layer`).
  ///
  /// - Throws: ``PEFTError`` as ``setScale(_:_:)``.
  public func scaleLayers(by factor: Double) throws(PEFTError) {
    try rescale(selection.active, factor) { $0.scale(by: factor) }
  }

  /// Divides the present scalings of the active adapters, or restores the configured ones (peft's
  /// `unscale_layer`).
  ///
  /// - Throws: ``PEFTError`` as ``setScale(_:_:)``, and for a factor of 0.
  public func unscaleLayers(by factor: Double? = nil) throws(PEFTError) {
    if factor == 0 {
      throw PEFTError(
        .invalidConfiguration, "scalings cannot be divided by 0",
        remedy: "Without a factor the configured scalings are restored.")
    }
    try rescale(selection.active, factor ?? 1) { $0.unscale(by: factor) }
  }

  private func rescale(
    _ adapters: [String], _ factor: Double, _ change: (any ScaledLayer) -> Void
  ) throws(PEFTError) {
    guard factor.isFinite else {
      throw PEFTError(
        .invalidConfiguration, "the scale is \(factor), a finite number was expected",
        remedy: "Give another factor.")
    }
    var found: [any ScaledLayer] = []
    for adapter in adapters {
      if mergedAdapters.contains(adapter) {
        throw PEFTError(
          .invalidState, "the adapter '\(adapter)' is merged", remedy: "Unmerge it first.")
      }
      let record = try record(adapter)
      for layer in try adaptedLayers(of: adapter) {
        guard let scaled = layer.layer as? any ScaledLayer else {
          throw PEFTError(
            .unsupported, "the adapter '\(adapter)' has no scaling that can be changed",
            at: layer.path, remedy: "Its method, \(record.tuner.methodName), has none.")
        }
        found.append(scaled)
      }
    }
    found.forEach(change)
  }
}
