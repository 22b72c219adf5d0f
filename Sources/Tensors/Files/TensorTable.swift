import BLASKernels
import PEFTSupport

/// Named tensors in memory, which can be used in place of a file and written to one: a state dict.
public struct TensorTable: TensorFile {
  /// What messages call it.
  public let path: String
  /// The tensors, in the order in which they were given.
  public let entries: [TensorEntry]
  private let tensors: [Tensor]
  private let index: [String: Int]

  /// Creates a table.
  ///
  /// - Throws: ``PEFTError`` `unexpectedTensor` when two tensors have the same key.
  public init(
    _ tensors: [(key: String, tensor: Tensor)], path: String = "the tensors"
  ) throws(PEFTError) {
    self.path = path
    entries = tensors.map { TensorEntry(name: $0.key, type: .float32, shape: $0.tensor.shape) }
    self.tensors = tensors.map(\.tensor.detached)
    var index: [String: Int] = [:]
    for (place, entry) in entries.enumerated() {
      guard index.updateValue(place, forKey: entry.name) == nil else {
        throw PEFTError(.unexpectedTensor, "two tensors have the key '\(entry.name)'", at: path)
      }
    }
    self.index = index
  }

  /// Reads all tensors of a file, under other keys where `rename` gives them.
  ///
  /// - Throws: ``PEFTError`` for tensors that are no floats, and equal keys.
  public init(
    _ file: any TensorFile, rename: (String) -> String = { $0 }
  ) throws(PEFTError) {
    var tensors: [(key: String, tensor: Tensor)] = []
    for name in file.names { tensors.append((rename(name), try file.tensor(name))) }
    try self.init(tensors, path: file.path)
  }

  /// The entry of a key.
  public subscript(name: String) -> TensorEntry? { index[name].map { entries[$0] } }

  /// The bytes of a tensor.
  ///
  /// - Throws: ``PEFTError`` `missingTensor`.
  public func content(_ name: String) throws(PEFTError) -> Slice<UInt8> {
    let entry = try entry(name)
    let floats = tensors[index[name]!].slice
    return Slice(floats.storage, offset: floats.offset * 4, count: entry.byteCount)
  }

  /// Writes the tensors to a safetensors file.
  ///
  /// - Parameters:
  ///   - path: The file.
  ///   - type: F32, F16 or BF16.
  ///   - exact: Keys of those that are written in F32 whatever the type.
  /// - Throws: ``PEFTError`` `fileAccess`.
  public func write(
    to path: String, as type: ElementType = .float32, exact: Set<String> = []
  ) throws(PEFTError) {
    try SafetensorsWriter.write(
      zip(entries, tensors).map {
        SafetensorsItem($0.name, $1, as: exact.contains($0.name) ? .float32 : type)
      }, to: path)
  }
}
