import NN
import PEFTSupport
import Tensors

/// One layer of an adapter with the host that it is on.
public struct AdaptedLayer {
  /// The host's path.
  public let path: String
  /// The path that the keys of files have for it.
  public let filePath: String
  /// The path that the config's patterns apply to.
  public let target: String
  /// The host.
  public let host: any AdapterHost
  /// The adapter's layer.
  public let layer: any TunerLayer
  /// The host's parameters without any adapter.
  public let parameters: HostParameters

  /// The key that files have for one of its tensors, by the end of its name.
  package func key(_ suffix: String) -> String {
    layer.parameters.first { $0.suffix == suffix }?.keys(at: filePath)[0]
      ?? FileKey.key("\(filePath).\(suffix)")
  }

  /// The host's weight without any adapter.
  public var base: any WeightMatrix { parameters.matrix }

  /// ΔW in full, `[base.rows, base.columns]`: a row for each output, an embedding's for each token.
  ///
  /// - Throws: ``PEFTError`` when the change is none of the weight.
  public func fullChange() throws(PEFTError) -> Tensor {
    let base = base
    var change = Tensor.zeros([base.rows, base.columns])
    if let standIn = layer.standIn {
      change = standIn.dequantized() + base.dequantized().scaled(by: -1)
    }
    do {
      try layer.addDelta(rows: 0..<base.rows, to: &change, base: base)
    } catch {
      throw error.located(at: path)
    }
    return change
  }

  /// A layer of another tuner for the same host, which stays off it, to learn what its parameters are.
  ///
  /// - Parameters:
  ///   - tuner: The other tuner.
  ///   - config: Settings of that.
  /// - Throws: ``PEFTError`` when it has no layer for the host.
  public func sibling<Other: Tuner>(
    of tuner: Other.Type, _ config: Other.Config
  ) throws(PEFTError) -> any TunerLayer {
    let site = AdapterSite(
      host: host, path: path, target: target, adapter: "sibling", config: config, seed: 0,
      parameters: parameters, isLoading: true)
    return try PeftModel.makeLayer(site, TunerRegistry.Entry(tuner: tuner))
  }
}

extension PeftModel {
  /// The layers of an adapter, in model order.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func adaptedLayers(of adapter: String) throws(PEFTError) -> [AdaptedLayer] {
    let record = try record(adapter)
    return record.layout.sorted { $0.place < $1.place }.compactMap { site in
      let (path, host) = hosts[site.place]
      guard let layer = host.stack?.layer(adapter) else { return nil }
      return AdaptedLayer(
        path: path, filePath: site.prefix, target: site.path, host: host, layer: layer,
        parameters: host.untouched)
    }
  }
}
