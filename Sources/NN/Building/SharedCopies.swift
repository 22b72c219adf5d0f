import Tensors

/// Copies of layers with the same base parameters and slots of their own, as layer replication
/// makes them. A copy's weight counts as tied: it is stored once.

extension HostParameters {
  /// The same parameters, owned by another layer.
  fileprivate var shared: HostParameters {
    var copy = self
    copy.isTied = true
    return copy
  }
}

extension Linear {
  /// A layer with the same weight and bias.
  public func sharingParameters() -> Linear {
    Linear(
      parameters.shared, inputFeatures: inputFeatures, outputFeatures: outputFeatures)
  }
}

extension LayerNorm {
  /// A norm with the same weight and bias.
  public func sharingParameters() -> LayerNorm {
    guard case .parameter(let weight) = parameters.weight, let bias = parameters.bias else {
      preconditionFailure("a layer norm has a weight vector and a bias")
    }
    return LayerNorm(weight: weight, bias: bias, width: width, epsilon: epsilon)
  }
}

extension RMSNorm {
  /// A norm with the same weight.
  public func sharingParameters() -> RMSNorm {
    guard case .parameter(let weight) = parameters.weight else {
      preconditionFailure("a norm has a weight vector")
    }
    return RMSNorm(weight: weight, width: width, epsilon: epsilon, typeName: typeName)
  }
}

extension Dropout {
  /// A site of the same probability with masks of its own.
  public func atPath(_ path: String) -> Dropout { Dropout(probability, path: path) }
}

/// Lets the first copy of each layer own the weights that its copies share, so that these are
/// counted and written once.
///
/// - Parameters:
///   - copies: The copies in order.
///   - sources: For each, the index of the layer that it was made of.
///   - originals: The layers.
public func assignOwners<Layer: Module>(_ copies: [Layer], sources: [Int], originals: [Layer]) {
  var owned: Set<Int> = []
  for (copy, source) in zip(copies, sources) where owned.insert(source).inserted {
    for (one, original) in zip(copy.namedModules(), originals[source].namedModules()) {
      guard let host = one.module as? any AdapterHost,
        let other = original.module as? any AdapterHost
      else { continue }
      host.parameters.isTied = other.parameters.isTied
    }
  }
}
