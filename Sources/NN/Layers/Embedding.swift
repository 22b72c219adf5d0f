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
  /// The row of padding, which PyTorch prints and which gets no gradient.
  public let paddingIndex: Int?
  /// What rows are multiplied by, 1 in most models; Gemma multiplies by √width.
  public let scale: Float
  /// The class name that PyTorch prints.
  public let typeName: String

  /// Creates a table; the weight is `[count, width]`.
  public init(
    _ parameters: HostParameters, count: Int, width: Int, paddingIndex: Int? = nil,
    scale: Float = 1, typeName: String = "Embedding"
  ) {
    self.parameters = parameters
    self.count = count
    self.width = width
    self.paddingIndex = paddingIndex
    self.scale = scale
    self.typeName = typeName
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
    case .matrix(let matrix): return scaled(gather(matrix, rows: ids))
    case .parameter(let table):
      return scaled(gather(table.tensor, rows: ids, constant: paddingIndex))
    }
  }

  /// Columns of the factor, `[ids.count, r]`; that of padding is a constant.
  public func project(_ input: HostInput, by factor: Tensor) -> Tensor {
    guard case .tokenIDs(let ids) = input else {
      preconditionFailure("an embedding takes token ids, not features")
    }
    return scaled(selectColumns(factor, ids, constant: paddingIndex))
  }

  /// Rows multiplied as the table multiplies its own.
  package func scaled(_ rows: Tensor) -> Tensor { scale == 1 ? rows : rows.scaled(by: scale) }

  /// What PyTorch prints between the parentheses.
  public var attributes: String {
    "\(count), \(width)" + (paddingIndex.map { ", padding_idx=\($0)" } ?? "")
  }
}
