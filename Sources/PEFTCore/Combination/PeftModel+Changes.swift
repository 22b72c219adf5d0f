import NN
import PEFTSupport
import Tensors

/// A layer whose change of the weight is a product of two factors, so that it can be decomposed
/// without being made.
public protocol FactoredLayer: TunerLayer {
  /// The factors of ΔW with the scaling in A.
  var change: FactoredChange { get throws(PEFTError) }
}

/// One layer of an adapter with the host that it is on.
public struct AdaptedLayer {
  /// The host's path.
  public let path: String
  /// The host.
  public let host: any AdapterHost
  /// The adapter's layer.
  public let layer: any TunerLayer
  /// The host's weight without any adapter.
  public let base: any WeightMatrix

  /// ΔW in full, as the host stores its weight, `[base.rows, base.columns]`.
  ///
  /// - Throws: ``PEFTError`` when the layer has no such change.
  public func fullChange() throws(PEFTError) -> Tensor {
    var change = Tensor.zeros([base.rows, base.columns])
    do {
      try layer.addDelta(rows: 0..<base.rows, to: &change, base: base)
    } catch {
      throw error.located(at: path)
    }
    return change
  }
}

extension PeftModel {
  /// The layers of an adapter, in model order.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func adaptedLayers(of adapter: String) throws(PEFTError) -> [AdaptedLayer] {
    let record = try record(adapter)
    return record.sites.compactMap { place in
      let (path, host) = hosts[place]
      guard let layer = (host.adapters as? AdapterStack)?.layer(adapter) else { return nil }
      return AdaptedLayer(
        path: path, host: host, layer: layer, base: originalParameters(of: host).matrix)
    }
  }
}
