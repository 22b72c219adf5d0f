import BLASKernels
import PEFTSupport

/// A memory-mapped safetensors file: tensors are windows of the file, read when they are used.
public struct SafetensorsFile: TensorFile {
  /// The file's path.
  public let path: String
  /// The tensors in the order of their data.
  public let entries: [TensorEntry]
  /// The header's `__metadata__`.
  public let metadata: [String: String]
  private let whole: FileWindow
  /// The bytes of each tensor in the file.
  private let ranges: [Range<Int>]
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
      entries = header.entries.map {
        TensorEntry(name: $0.name, type: $0.type, shape: $0.shape)
      }
      ranges = header.entries.map {
        $0.range.lowerBound + header.dataStart..<$0.range.upperBound + header.dataStart
      }
      metadata = header.metadata
    } catch {
      throw error.located(at: path)
    }
    whole = FileWindow(file)
    // The header has done its duty; its pages need not stay in memory with the tensors'.
    file.release(0..<(ranges.map(\.lowerBound).min() ?? 0))
    var index: [String: Int] = [:]
    for (place, entry) in entries.enumerated() { index[entry.name] = place }
    self.index = index
  }

  /// The entry of a name.
  public subscript(name: String) -> TensorEntry? { index[name].map { entries[$0] } }

  /// The bytes of a tensor in place; copied only where the file does not align its elements.
  ///
  /// - Throws: ``PEFTError`` `missingTensor`.
  public func content(_ name: String) throws(PEFTError) -> Slice<UInt8> {
    let entry = try entry(name)
    return whole.aligned(ranges[index[name]!], to: entry.type.byteCount)
  }
}
