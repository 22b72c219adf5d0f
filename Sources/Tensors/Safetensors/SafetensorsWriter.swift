import BLASKernels
import PEFTSupport

/// A tensor to be written.
public struct SafetensorsItem {
  /// The name in the file.
  public let name: String
  /// The shape in the file.
  public let shape: [Int]
  /// The type in the file.
  public let type: ElementType
  fileprivate let content: Content

  fileprivate enum Content {
    case floats(Tensor)
    case bytes([UInt8])
  }

  /// A tensor, stored as F32, BF16 or F16.
  public init(_ name: String, _ tensor: Tensor, as type: ElementType = .float32) {
    precondition([.float32, .bfloat16, .float16].contains(type))
    self.init(name: name, shape: tensor.shape, type: type, content: .floats(tensor.detached))
  }

  /// Integers, stored as I64.
  public init(_ name: String, shape: [Int], integers: [Int64]) {
    let bytes = integers.withUnsafeBytes { Array($0) }
    self.init(name: name, shape: shape, type: .int64, content: .bytes(bytes))
  }

  /// Bytes that are already in the file's form.
  public init(_ name: String, shape: [Int], type: ElementType, bytes: [UInt8]) {
    precondition(bytes.count == shape.reduce(type.byteCount, *))
    self.init(name: name, shape: shape, type: type, content: .bytes(bytes))
  }

  private init(name: String, shape: [Int], type: ElementType, content: Content) {
    self.name = name
    self.shape = shape
    self.type = type
    self.content = content
  }

  fileprivate var byteCount: Int { shape.reduce(type.byteCount, *) }

  fileprivate func write(to file: borrowing OutputFile) throws(PEFTError) {
    switch content {
    case .bytes(let bytes): try file.write(bytes)
    case .floats(let tensor):
      if type == .float32 { return try file.write(tensor.slice) }
      let bits = MutableSlice<UInt16>(count: tensor.count)
      Conversion.narrow(
        tensor.slice, to: type == .bfloat16 ? .bfloat16 : .float16, into: bits)
      try file.write(bits.readOnly)
    }
  }
}

/// Writes safetensors files.
public enum SafetensorsWriter {
  /// Writes tensors to a file, atomically: a reader sees the old file or the whole new one.
  ///
  /// Tensors are ordered by descending width of their elements and then by name, so equal content gives
  /// equal files; those of one type stand as the reference implementation orders them.
  ///
  /// - Parameters:
  ///   - items: The tensors; names must differ.
  ///   - path: The file.
  ///   - metadata: Goes to `__metadata__`; transformers wants `format` to be `pt`.
  /// - Throws: ``PEFTError`` `fileAccess`, among others when the disk is full.
  public static func write(
    _ items: [SafetensorsItem], to path: String, metadata: [String: String] = ["format": "pt"]
  ) throws(PEFTError) {
    let ordered = items.sorted {
      ($1.type.byteCount, $0.name) < ($0.type.byteCount, $1.name)
    }
    var header = JSONObject()
    if !metadata.isEmpty {
      header["__metadata__"] = .object(
        JSONObject(metadata.sorted { $0.key < $1.key }.map { ($0.key, .string($0.value)) }))
    }
    var offset = 0
    for item in ordered {
      precondition(header[item.name] == nil, "two tensors named '\(item.name)'")
      header[item.name] = [
        "dtype": .string(item.type.rawValue),
        "shape": .array(item.shape.map { .int($0) }),
        "data_offsets": [.int(offset), .int(offset + item.byteCount)],
      ]
      offset += item.byteCount
    }
    var json = Array(JSONValue.object(header).text().utf8)
    // Padded with spaces, so that the data begins at a multiple of eight.
    json.append(contentsOf: [UInt8](repeating: 0x20, count: (8 - json.count % 8) % 8))
    let length = (0..<8).map { UInt8(truncatingIfNeeded: json.count >> (8 * $0)) }
    try FileSystem.write(path) { (file) throws(PEFTError) in
      try file.write(length)
      try file.write(json)
      for item in ordered { try item.write(to: file) }
    }
  }
}

extension OutputFile {
  /// Appends the memory of a slice.
  fileprivate borrowing func write<Element>(_ slice: Slice<Element>) throws(PEFTError) {
    try slice.withSpan { (span) throws(PEFTError) in try self.write(span.bytes) }
  }
}
