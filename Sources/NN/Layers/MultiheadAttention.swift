import BLASKernels
import Tensors

/// PyTorch's MultiheadAttention with one packed projection for queries, keys and values.
///
/// The module itself is the host of the packed projection, `in_proj_weight` `[3·width, width]`;
/// the output projection is a layer inside of it, `out_proj`, which an adapter of this module
/// adapts as well.
public final class MultiheadAttention: AdapterHost {
  /// The packed projection's weight and bias.
  public var parameters: HostParameters
  /// What the slot of the packed projection holds.
  public var adapters: (any HostAdapters)?
  /// The output projection.
  public let output: Linear
  /// Number of heads.
  public let heads: Int
  /// Width of the input and of the output.
  public let width: Int
  /// Whether tensors are `[n, length, width]` instead of `[length, n, width]`.
  public let batchFirst: Bool
  private let dropout: Dropout

  /// Creates a layer.
  ///
  /// - Parameters:
  ///   - packed: `in_proj_weight`, `[3·width, width]`.
  ///   - bias: `in_proj_bias`, `[3·width]`.
  ///   - output: Weight `[width, width]` and bias of the output projection.
  ///   - heads: Number of heads, a divisor of the width.
  ///   - batchFirst: Whether tensors are `[n, length, width]`.
  ///   - dropout: Dropout of attention weights, in training.
  public init(
    packed: any WeightMatrix, bias: Parameter?, output: HostParameters, heads: Int,
    batchFirst: Bool, dropout: Dropout
  ) {
    width = packed.columns
    precondition(packed.rows == 3 * width && width % heads == 0)
    parameters = HostParameters(
      weight: .matrix(packed), bias: bias, names: ("in_proj_weight", "in_proj_bias"))
    self.output = Linear(
      output, inputFeatures: width, outputFeatures: width,
      typeName: "NonDynamicallyQuantizableLinear")
    self.heads = heads
    self.batchFirst = batchFirst
    self.dropout = dropout
  }

  /// What attention sees besides queries, keys and values.
  public struct Masks {
    /// `[n · keys]`, sequence by sequence: 0 hides a key from everyone.
    public var keys: [UInt8]?
    /// Added to the scores, `[queries, keys]` or `[n · heads, queries, keys]`.
    public var bias: Tensor?
    /// Whether a query sees keys up to its own position only.
    public var isCausal: Bool

    /// No mask, unless given.
    public init(keys: [UInt8]? = nil, bias: Tensor? = nil, isCausal: Bool = false) {
      self.keys = keys
      self.bias = bias
      self.isCausal = isCausal
    }
  }

  /// Attention of a sequence to itself.
  public func callAsFunction(
    _ x: Tensor, _ masks: Masks = Masks(), _ context: ForwardContext
  ) -> Tensor {
    let shape = Shape(x, batchFirst)
    let all = project(x, shape, context)
    return attend(
      all.columnRange(0..<width), shape, all.columnRange(width..<2 * width),
      all.columnRange(2 * width..<3 * width), shape, masks, context)
  }

  /// Attention to other sequences.
  ///
  /// Each input goes through the whole packed projection, of which a third is used.
  ///
  /// - Parameters:
  ///   - query: `[n, queries, width]`, or `[queries, n, width]` unless ``batchFirst``.
  ///   - key: The same with the number of keys.
  ///   - value: Like `key`.
  ///   - masks: What is hidden.
  ///   - context: The pass; its sequence layout is replaced by the inputs'.
  /// - Returns: Shape of the query.
  public func callAsFunction(
    _ query: Tensor, key: Tensor, value: Tensor, _ masks: Masks = Masks(),
    _ context: ForwardContext
  ) -> Tensor {
    let (queries, keys) = (Shape(query, batchFirst), Shape(key, batchFirst))
    return attend(
      project(query, queries, context).columnRange(0..<width), queries,
      project(key, keys, context).columnRange(width..<2 * width),
      project(value, keys, context).columnRange(2 * width..<3 * width), keys, masks, context)
  }

  private struct Shape {
    let sequences: Int
    let length: Int
    let isTransposed: Bool

    init(_ x: Tensor, _ batchFirst: Bool) {
      precondition(x.shape.count == 3, "attention takes three dimensions, not \(x.shape)")
      sequences = x.shape[batchFirst ? 0 : 1]
      length = x.shape[batchFirst ? 1 : 0]
      isTransposed = !batchFirst
    }

    var offsets: [Int32] { (0...sequences).map { Int32($0 * length) } }

    /// Rows in the order of sequences, `[n · length, width]`.
    func packed(_ x: Tensor) -> Tensor {
      guard isTransposed else { return x.reshaped([sequences * length, x.columns]) }
      return x.selectRows(
        (0..<sequences).flatMap { s in (0..<length).map { Int32($0 * sequences + s) } })
    }

    /// The opposite.
    func unpacked(_ x: Tensor) -> Tensor {
      guard isTransposed else { return x.reshaped([sequences, length, x.columns]) }
      let rows = (0..<length).flatMap { t in
        (0..<sequences).map { Int32($0 * length + t) }
      }
      return x.selectRows(rows).reshaped([length, sequences, x.columns])
    }

    func context(_ context: ForwardContext) -> ForwardContext {
      var own = context
      own.sequences = SequenceLayout(lengths: .init(repeating: length, count: sequences))
      return own
    }
  }

  private func project(_ x: Tensor, _ shape: Shape, _ context: ForwardContext) -> Tensor {
    forward(.features(shape.packed(x)), shape.context(context))
  }

  private func attend(
    _ q: Tensor, _ queries: Shape, _ k: Tensor, _ v: Tensor, _ keys: Shape, _ masks: Masks,
    _ context: ForwardContext
  ) -> Tensor {
    let mixed: Tensor
    let key = dropout.key(context)
    if let bias = masks.bias {
      precondition(!masks.isCausal, "a bias on the scores says itself what is causal")
      mixed = BiasedAttention(
        heads: heads, sequences: queries.sequences, queries: queries.length, keys: keys.length,
        bias: bias, keyMask: masks.keys,
        dropout: key.map { (Float(dropout.probability), $0) })(q, k, v)
    } else {
      var problem = Attention(
        heads: heads, headDim: width / heads, queryOffsets: queries.offsets,
        keyOffsets: keys.offsets, isCausal: masks.isCausal)
      if let key {
        problem.dropout = Float(dropout.probability)
        problem.seed = key.seed
        problem.stream = key.stream
      }
      mixed = attention(q, k, v, problem, keyMask: masks.keys)
    }
    return queries.unpacked(output(mixed, queries.context(context)))
  }

  // MARK: The packed projection as a host

  /// Width of the input.
  public var inputFeatures: Int { width }
  /// Width of the packed projection.
  public var outputFeatures: Int { 3 * width }
  /// The output projection.
  public var innerHosts: [(name: String, host: any AdapterHost)] { [("out_proj", output)] }

  /// The packed projection, `[…, width]` to `[…, 3·width]`.
  public func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor {
    guard case .features(let x) = input else {
      preconditionFailure("a projection takes features, not token ids")
    }
    switch parameters.weight {
    case .matrix(let matrix): return linear(x, matrix, bias: parameters.bias?.tensor)
    case .parameter(let weight): return linear(x, weight.tensor, bias: parameters.bias?.tensor)
    }
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "MultiheadAttention" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] { [("out_proj", output)] }
}
