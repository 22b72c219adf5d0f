import BLASKernels

/// A dense, row-major array of 32-bit floats with value semantics.
///
/// A tensor shares its ``Storage`` with its copies and writes only to storage that nobody else
/// holds (copy on write), so passing tensors about costs nothing and no one's values change
/// behind their back. A tensor that was read from a file is a window of the memory-mapped file.
///
/// A tensor that depends on a trainable ``Parameter`` carries the graph that leads back to it;
/// ``backward()`` walks that graph. Lower precision is not an element type of tensors: weights in
/// bf16, f16 or quantised form are ``WeightMatrix`` values.
public struct Tensor: Sendable {
  /// The extent of each dimension; empty for a scalar.
  public let shape: [Int]
  var storage: Storage
  /// Index of the first element in the storage, in floats.
  let offset: Int
  let node: GraphNode?

  init(shape: [Int], storage: Storage, offset: Int, node: GraphNode?) {
    self.shape = shape
    self.storage = storage
    self.offset = offset
    self.node = node
  }

  /// Creates a tensor over existing floats without a copy.
  ///
  /// - Precondition: `slice.count` is the product of `shape`.
  public init(shape: [Int], slice: Slice<Float>) {
    precondition(slice.count == shape.reduce(1, *), "\(slice.count) floats for shape \(shape)")
    self.init(shape: shape, storage: slice.storage, offset: slice.offset, node: nil)
  }

  /// Creates a tensor from floats in row-major order.
  ///
  /// - Precondition: `scalars.count` is the product of `shape`.
  public init(shape: [Int], scalars: [Float]) {
    precondition(scalars.count == shape.reduce(1, *), "\(scalars.count) floats for shape \(shape)")
    self.init(uninitialized: shape)
    MutableSlice<Float>(storage).copy(from: scalars)
  }

  /// Creates a tensor whose elements hold whatever the memory held.
  public init(uninitialized shape: [Int]) {
    let count = shape.reduce(1, *)
    self.init(
      shape: shape, storage: .allocate(byteCount: count * MemoryLayout<Float>.stride), offset: 0,
      node: nil)
  }

  /// Creates a tensor with one value everywhere.
  public init(repeating value: Float, shape: [Int]) {
    self.init(uninitialized: shape)
    MutableSlice<Float>(storage, count: count).fill(value)
  }

  /// A tensor of zeros.
  public static func zeros(_ shape: [Int]) -> Tensor { Tensor(repeating: 0, shape: shape) }

  /// Creates a scalar: a tensor of shape `[]`.
  public init(_ value: Float) { self.init(shape: [], scalars: [value]) }

  /// Number of elements.
  public var count: Int { shape.reduce(1, *) }

  /// The extent of the last dimension; 1 for a scalar.
  public var columns: Int { shape.last ?? 1 }

  /// The number of rows when all dimensions but the last are taken as one.
  public var rows: Int { shape.dropLast().reduce(1, *) }

  /// The elements in row-major order, copied.
  public var scalars: [Float] { slice.array }

  /// The only element.
  ///
  /// - Precondition: The tensor has exactly one element.
  public var item: Float {
    precondition(count == 1, "item of a tensor of shape \(shape)")
    return slice[0]
  }

  /// The elements, for kernels.
  public var slice: Slice<Float> { Slice(storage, offset: offset, count: count) }

  /// Whether gradients flow through this tensor.
  public var isTracked: Bool { node != nil }

  /// The same values without a graph.
  public var detached: Tensor {
    Tensor(shape: shape, storage: storage, offset: offset, node: nil)
  }

  /// The same elements in another shape; gradients flow through.
  ///
  /// - Precondition: Both shapes have the same number of elements.
  public func reshaped(_ newShape: [Int]) -> Tensor {
    precondition(newShape.reduce(1, *) == count, "cannot reshape \(shape) to \(newShape)")
    let value = Tensor(shape: newShape, storage: storage, offset: offset, node: nil)
    let oldShape = shape
    return value.recorded(from: [self]) { gradient, sink in
      sink.add(gradient.reshaped(oldShape), to: 0)
    }
  }

  /// Calls `body` with the elements for writing, after copying them if anyone else holds them.
  ///
  /// - Precondition: The tensor is not part of a graph.
  public mutating func withMutableSlice<Result, Failure: Error>(
    _ body: (MutableSlice<Float>) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    precondition(node == nil, "a tensor in a graph is not written to")
    if storage.isReadOnly || !isKnownUniquelyReferenced(&storage) {
      let copy = Tensor(uninitialized: shape)
      MutableSlice<Float>(copy.storage, count: count).copy(from: slice)
      self = copy
    }
    return try body(MutableSlice(storage, offset: offset, count: count))
  }

  /// A new tensor of the given shape, filled by `body`, which must write every element.
  public static func filled<Failure: Error>(
    _ shape: [Int], _ body: (MutableSlice<Float>) throws(Failure) -> Void
  ) throws(Failure) -> Tensor {
    let tensor = Tensor(uninitialized: shape)
    try body(MutableSlice(tensor.storage, count: tensor.count))
    return tensor
  }
}

extension Tensor: CustomStringConvertible {
  /// The text for messages.
  public var description: String {
    let shown = count > 8 ? Array(scalars.prefix(8)) : scalars
    let dots = count > 8 ? ", …" : ""
    return "Tensor\(shape) [\(shown.map { "\($0)" }.joined(separator: ", "))\(dots)]"
  }
}
