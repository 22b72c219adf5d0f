import NN
import PEFTSupport
import Tensors

/// A layer whose change of a linear map is the product of two factors, ΔW = s·B·A.
///
/// What works on the factors of any such method, as optimisers do, asks for this.
public protocol LowRankLayer: TunerLayer {
  /// The factor on the input, `[rank, …]`.
  var inputFactor: Parameter { get }
  /// The factor on the output, `[…, rank]`.
  var outputFactor: Parameter { get }
  /// s, the factor of the product.
  var productScaling: Double { get }
}

extension PeftModel {
  /// The layers of an adapter, in model order, with the paths of their hosts.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` for an unknown name.
  public func layers(
    of adapter: String
  ) throws(PEFTError) -> [(path: String, layer: any TunerLayer)] {
    var result: [(path: String, layer: any TunerLayer)] = []
    for place in try record(adapter).sites.sorted() {
      let (path, host) = hosts[place]
      if let layer = (host.adapters as? AdapterStack)?.layer(adapter) {
        result.append((path, layer))
      }
    }
    return result
  }
}
