import BLASKernels
import PEFTSupport

/// A tensor in a file: its name, element type and shape.
public struct TensorEntry: Sendable, Equatable {
  /// The name.
  public let name: String
  /// The element type.
  public let type: ElementType
  /// The extent of each dimension.
  public let shape: [Int]

  /// Describes a tensor.
  public init(name: String, type: ElementType, shape: [Int]) {
    self.name = name
    self.type = type
    self.shape = shape
  }

  /// Number of elements.
  public var count: Int { shape.reduce(1, *) }
  /// Bytes of the elements.
  public var byteCount: Int { count * type.byteCount }
}

/// A file of named tensors that is read without being executed: safetensors, or torch's zip.
///
/// Its structure has been checked completely when it is open; tensors are read when they are used.
public protocol TensorFile: Sendable {
  /// The file's path.
  var path: String { get }
  /// The tensors, in the file's order.
  var entries: [TensorEntry] { get }
  /// The entry of a name.
  subscript(name: String) -> TensorEntry? { get }
  /// The bytes of the elements, in row-major order and little-endian, at a multiple of the
  /// element's size; shared with the mapped file where it has them so.
  func content(_ name: String) throws(PEFTError) -> Slice<UInt8>
}

extension TensorFile {
  /// The names of the tensors.
  public var names: [String] { entries.map(\.name) }

  /// The entry of a name that must be there.
  ///
  /// - Throws: ``PEFTError`` `missingTensor`.
  public func entry(_ name: String) throws(PEFTError) -> TensorEntry {
    guard let entry = self[name] else {
      let near = Spelling.nearest(to: name, among: names).map { "The file has '\($0)'." }
      throw PEFTError(.missingTensor, "the tensor '\(name)' is missing", at: path, remedy: near)
    }
    return entry
  }

  /// A tensor as floats: a window of the file for F32, converted for F16, BF16 and F64.
  ///
  /// - Throws: ``PEFTError``: `missingTensor`, or `shapeMismatch` for integers.
  public func tensor(_ name: String) throws(PEFTError) -> Tensor {
    let entry = try entry(name)
    switch entry.type {
    case .float32:
      return Tensor(shape: entry.shape, slice: try slice(entry))
    case .float16, .bfloat16:
      let bits: Slice<UInt16> = try slice(entry)
      let format: HalfFormat = entry.type == .float16 ? .float16 : .bfloat16
      return Tensor.filled(entry.shape) { Conversion.widen(bits, from: format, into: $0) }
    case .float64:
      let values: Slice<Double> = try slice(entry)
      return Tensor(shape: entry.shape, scalars: values.array.map(Float.init))
    default:
      throw PEFTError(
        .shapeMismatch, "'\(name)' has type \(entry.type.rawValue), floats were expected", at: path)
    }
  }

  /// A matrix in the file's own precision, without a copy.
  ///
  /// - Parameters:
  ///   - name: A tensor of two dimensions.
  ///   - precision: How activations enter a product with it.
  /// - Throws: ``PEFTError``: `missingTensor`, or `shapeMismatch` for other dimensions and types.
  public func matrix(
    _ name: String, precision: HalfPrecision = .exact
  ) throws(PEFTError) -> any WeightMatrix {
    let entry = try entry(name)
    guard entry.shape.count >= 2 else {
      throw PEFTError(
        .shapeMismatch, "'\(name)' has shape \(entry.shape), a matrix was expected", at: path)
    }
    let (rows, columns) = (entry.shape[0], entry.shape.dropFirst().reduce(1, *))
    guard entry.type == .float16 || entry.type == .bfloat16 else {
      return DenseMatrix(Tensor(shape: [rows, columns], slice: try tensor(name).slice))
    }
    return HalfMatrix(
      try slice(entry), rows: rows, columns: columns,
      format: entry.type == .float16 ? .float16 : .bfloat16, precision: precision)
  }

  /// An integer tensor's shape and values.
  ///
  /// - Throws: ``PEFTError``: `missingTensor`, `shapeMismatch` for other types and for values
  ///   beyond 32 bits.
  public func integers(_ name: String) throws(PEFTError) -> (shape: [Int], values: [Int32]) {
    let entry = try entry(name)
    switch entry.type {
    case .int64:
      let wide = (try slice(entry) as Slice<Int64>).array
      var values: [Int32] = []
      values.reserveCapacity(wide.count)
      for value in wide {
        guard let narrow = Int32(exactly: value) else {
          throw PEFTError(.shapeMismatch, "'\(name)' holds \(value), beyond 32 bits", at: path)
        }
        values.append(narrow)
      }
      return (entry.shape, values)
    case .int32:
      return (entry.shape, (try slice(entry) as Slice<Int32>).array)
    case .int16:
      return (entry.shape, (try slice(entry) as Slice<Int16>).array.map(Int32.init))
    case .int8:
      return (entry.shape, (try slice(entry) as Slice<Int8>).array.map(Int32.init))
    case .uint8, .bool:
      return (entry.shape, (try slice(entry) as Slice<UInt8>).array.map(Int32.init))
    default:
      throw PEFTError(
        .shapeMismatch, "'\(name)' has type \(entry.type.rawValue), integers were expected",
        at: path)
    }
  }

  /// The stored bytes of a tensor, for copying it unchanged.
  ///
  /// - Throws: ``PEFTError`` `missingTensor`.
  public func bytes(_ name: String) throws(PEFTError) -> [UInt8] {
    try content(name).array
  }

  private func slice<Element: BitwiseCopyable & Sendable>(
    _ entry: TensorEntry
  ) throws(PEFTError) -> Slice<Element> {
    let bytes = try content(entry.name)
    return Slice(
      bytes.storage, offset: bytes.offset / MemoryLayout<Element>.size, count: entry.count)
  }
}
