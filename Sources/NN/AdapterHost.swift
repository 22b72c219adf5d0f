import Tensors

/// A layer that adapters can change: it has one slot, and asks what is in it for its output.
///
/// The base layer is never replaced or subclassed. Its parameters keep their names, and any
/// number of adapters of any method share the slot.
public protocol AdapterHost: Module {
  /// The layer's own weight and bias; merging replaces the weight by another value.
  var parameters: HostParameters { get set }
  /// What the slot holds; `nil` for a plain layer.
  var adapters: (any HostAdapters)? { get set }
  /// Width of the input: features, channels, or rows of a table.
  var inputFeatures: Int { get }
  /// Width of the output: features or channels.
  var outputFeatures: Int { get }
  /// Extents of a convolution's kernel; empty for other layers.
  var kernelShape: [Int] { get }
  /// Number of runs of channels that only see one another; 1 for layers other than convolutions.
  var groups: Int { get }
  /// Layers inside of this one that an adapter of it adapts as well, by attribute name.
  var innerHosts: [(name: String, host: any AdapterHost)] { get }

  /// The layer's function with given parameters and without adapters.
  ///
  /// The result has one row of `outputFeatures` for each place, also after a convolution:
  /// `[n, positions…, outputFeatures]`.
  func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor

  /// The layer's map with another matrix in place of its weight, and without a bias: how the
  /// first factor of a low-rank change sees the input.
  ///
  /// - Parameters:
  ///   - input: The layer's input.
  ///   - factor: `[r, inputFeatures]`, for a convolution `[r, inputFeatures, kernel…]`; it is not
  ///     grouped, whatever the layer is.
  /// - Returns: A row of r features for each row of ``base(_:_:)``.
  func project(_ input: HostInput, by factor: Tensor) -> Tensor
}

extension AdapterHost {
  /// Extents of a convolution's kernel; empty for other layers.
  public var kernelShape: [Int] { [] }
  /// Number of runs of channels that only see one another.
  public var groups: Int { 1 }
  /// Layers inside of this one that an adapter of it adapts as well.
  public var innerHosts: [(name: String, host: any AdapterHost)] { [] }

  /// x·factorᵀ, what a linear layer does.
  public func project(_ input: HostInput, by factor: Tensor) -> Tensor {
    guard case .features(let x) = input else {
      preconditionFailure("\(typeName) takes features")
    }
    return linear(x, factor)
  }

  /// The layer's output, adapters included.
  func forward(_ input: HostInput, _ context: ForwardContext) -> Tensor {
    let output = adapters?.forward(input, host: self, context) ?? base(input, parameters)
    guard let observer = context.observer else { return output }
    return observer(self, input, output)
  }

  /// The parameters that belong to this module itself.
  public var ownParameters: [ParameterInfo] {
    parameters.info + (adapters?.ownParameters ?? [])
  }
}

/// What a host's slot can hold; the adapter framework provides it.
public protocol HostAdapters: AnyObject {
  /// The output of the host with the active adapters.
  func forward(_ input: HostInput, host: any AdapterHost, _ context: ForwardContext) -> Tensor
  /// How the host prints with its adapters.
  func printed(around base: PrintedModule) -> PrintedModule
  /// The adapters' parameters, named relative to the host.
  var ownParameters: [ParameterInfo] { get }
}

/// What a host takes as input.
public enum HostInput {
  /// Rows of features, `[…, inputFeatures]`.
  case features(Tensor)
  /// Row numbers of an embedding.
  case tokenIDs([Int32])
  /// What a convolution sees, `[n, channels, size…]`; an image counts as one row.
  case images(Tensor)
  /// Rows of features for one of the matrices of a ``StackedWeight``.
  case expert(Tensor, index: Int)

  /// Number of rows.
  public var rows: Int {
    switch self {
    case .features(let x): return x.rows
    case .tokenIDs(let ids): return ids.count
    case .images(let x): return x.shape[0]
    case .expert(let x, _): return x.rows
    }
  }

  /// Some of the rows, in order; gradients flow back to them.
  public func selecting(_ rows: [Int32]) -> HostInput {
    switch self {
    case .features(let x): return .features(x.selectRows(rows))
    case .tokenIDs(let ids): return .tokenIDs(rows.map { ids[Int($0)] })
    case .images(let x):
      return .images(
        x.asMatrix.selectRows(rows).reshaped([rows.count] + x.shape.dropFirst()))
    case .expert(let x, let index): return .expert(x.selectRows(rows), index: index)
    }
  }

  /// The input with its numbers changed, as by dropout; token ids stay as they are.
  public func map(_ transform: (Tensor) -> Tensor) -> HostInput {
    switch self {
    case .features(let x): return .features(transform(x))
    case .tokenIDs: return self
    case .images(let x): return .images(transform(x))
    case .expert(let x, let index): return .expert(transform(x), index: index)
    }
  }
}
