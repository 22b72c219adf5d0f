import Tensors

/// A table of rows that token ids look up: ids to `[ids.count, width]`.
public final class Embedding: AdapterHost {
  /// The weight and bias.
  public var parameters: HostParameters
  /// What the layer's slot holds.
  public var adapters: (any HostAdapters)?
  /// Number of rows.
  public let count: Int
  /// Width of a row.
  public let width: Int
  /// The row of padding, which PyTorch prints.
  public let paddingIndex: Int?

  /// Creates a table; the weight is `[count, width]`.
  public init(_ parameters: HostParameters, count: Int, width: Int, paddingIndex: Int? = nil) {
    self.parameters = parameters
    self.count = count
    self.width = width
    self.paddingIndex = paddingIndex
  }

  /// Width of the input.
  public var inputFeatures: Int { count }
  /// Width of the output.
  public var outputFeatures: Int { width }

  /// Looks rows up, adapters included.
  ///
  /// - Precondition: Every id is in `0 ..< count`; models check their input before.
  public func callAsFunction(_ ids: [Int32], _ context: ForwardContext) -> Tensor {
    forward(.tokenIDs(ids), context)
  }

  /// The layer's function with given parameters and without adapters.
  public func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor {
    guard case .tokenIDs(let ids) = input else {
      preconditionFailure("an embedding takes token ids, not features")
    }
    switch parameters.weight {
    case .matrix(let matrix): return gather(matrix, rows: ids)
    case .parameter(let table): return gather(table.tensor, rows: ids)
    }
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "Embedding" }
  /// What PyTorch prints between the parentheses.
  public var attributes: String {
    "\(count), \(width)" + (paddingIndex.map { ", padding_idx=\($0)" } ?? "")
  }
}
