import BLASKernels
import PEFTSupport

/// A memory-mapped safetensors file: tensors are windows of the file, read when they are used.
public struct SafetensorsFile: Sendable {
  /// The file's path.
  public let path: String
  /// The tensors in the order of their data.
  public let entries: [SafetensorsEntry]
  /// The header's `__metadata__`.
  public let metadata: [String: String]
  private let file: MappedFile
  private let dataStart: Int
  private let index: [String: Int]

  /// Opens a file and checks its header.
  ///
  /// - Throws: ``PEFTError``: `fileNotFound`, `fileAccess` or `malformedFile`, naming the file.
  public init(_ path: String) throws(PEFTError) {
    self.path = path
    let file = try MappedFile(path: path)
    let size = file.byteCount
    do throws(PEFTError) {
      guard size >= 8 else {
        throw SafetensorsHeader.malformed("\(size) bytes are too few for a header")
      }
      let length = file.bytes(0..<8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      guard length <= UInt64(SafetensorsHeader.maximumLength), Int(length) <= size - 8 else {
        throw SafetensorsHeader.malformed(
          "its header claims \(length) bytes, the file has \(size)")
      }
      let json = file.bytes(8..<8 + Int(length))
      let header = try SafetensorsHeader(length: Int(length), json: json, fileSize: size)
      entries = header.entries
      metadata = header.metadata
      dataStart = header.dataStart
    } catch {
      throw error.located(at: path)
    }
    self.file = file
    var index: [String: Int] = [:]
    for (place, entry) in entries.enumerated() { index[entry.name] = place }
    self.index = index
  }

  /// The names of the tensors.
  public var names: [String] { entries.map(\.name) }

  /// The entry of a name.
  public subscript(name: String) -> SafetensorsEntry? { index[name].map { entries[$0] } }

  /// The entry of a name that must be there.
  ///
  /// - Throws: ``PEFTError`` `missingTensor`.
  public func entry(_ name: String) throws(PEFTError) -> SafetensorsEntry {
    guard let entry = self[name] else {
      let near = Spelling.nearest(to: name, among: index.keys).map { "The file has '\($0)'." }
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
      return Tensor(
        shape: entry.shape,
        slice: window(entry))
    case .float16, .bfloat16:
      let bits: Slice<UInt16> = window(entry)
      let format: HalfFormat = entry.type == .float16 ? .float16 : .bfloat16
      return Tensor.filled(entry.shape) { Conversion.widen(bits, from: format, into: $0) }
    case .float64:
      let values: Slice<Double> = window(entry)
      return Tensor(shape: entry.shape, scalars: values.array.map(Float.init))
    default:
      throw PEFTError(
        .shapeMismatch, "'\(name)' has type \(entry.type.rawValue), floats were expected", at: path)
    }
  }

  /// A matrix in the file's own precision, without a copy.
  ///
  /// All dimensions but the first are taken as one, as for a convolution's kernel.
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
      window(entry), rows: rows, columns: columns,
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
      let wide = (window(entry) as Slice<Int64>).array
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
      return (entry.shape, (window(entry) as Slice<Int32>).array)
    case .uint8, .bool:
      let bytes = (window(entry) as Slice<UInt8>).array
      return (entry.shape, bytes.map(Int32.init))
    default:
      throw PEFTError(
        .shapeMismatch, "'\(name)' has type \(entry.type.rawValue), integers were expected",
        at: path)
    }
  }

  /// The stored bytes of a tensor, for copying it unchanged.
  public func bytes(_ name: String) throws(PEFTError) -> [UInt8] {
    file.bytes(range(of: try entry(name)))
  }

  /// The elements of a tensor in place; copied only where the file does not align them.
  private func window<Element: BitwiseCopyable & Sendable>(
    _ entry: SafetensorsEntry
  ) -> Slice<Element> {
    Slice(
      .window(range(of: entry), of: file, alignment: MemoryLayout<Element>.alignment),
      count: entry.count)
  }

  private func range(of entry: SafetensorsEntry) -> Range<Int> {
    entry.range.lowerBound + dataStart..<entry.range.upperBound + dataStart
  }
}
