import PEFTSupport

/// Where a tensor lies in a safetensors file.
struct SafetensorsEntry: Sendable, Equatable {
  /// The name.
  let name: String
  /// The element type.
  let type: ElementType
  /// The extent of each dimension.
  let shape: [Int]
  /// Bytes from the start of the data section.
  let range: Range<Int>
}

/// The header of a safetensors file, checked completely before any tensor is touched.
struct SafetensorsHeader {
  /// The format's own limit of the header length.
  static let maximumLength = 100_000_000

  var entries: [SafetensorsEntry] = []
  var metadata: [String: String] = [:]
  /// Offset of the data section in the file.
  let dataStart: Int

  /// Parses and validates a header.
  ///
  /// Checks the header length against the file, every type, shape and offset, that the byte
  /// range of each tensor has exactly the size that its shape asks for, and that the ranges
  /// follow one another without overlap or gap up to the end of the file.
  init(length: Int, json: [UInt8], fileSize: Int) throws(PEFTError) {
    dataStart = 8 + length
    let dataSize = fileSize - dataStart
    var (entries, metadata) = try Self.parse(json, dataSize: dataSize)
    entries.sort {
      ($0.range.lowerBound, $0.range.upperBound) < ($1.range.lowerBound, $1.range.upperBound)
    }
    var end = 0
    for entry in entries {
      if entry.range.lowerBound < end {
        throw Self.malformed("the data of '\(entry.name)' overlaps that of another tensor")
      }
      if entry.range.lowerBound > end {
        throw Self.malformed(
          "\(entry.range.lowerBound - end) bytes before '\(entry.name)' belong to no tensor")
      }
      end = entry.range.upperBound
    }
    if end != dataSize {
      throw Self.malformed(
        end > dataSize
          ? "the file is truncated: the tensors need \(end) bytes of data, it has \(dataSize)"
          : "\(dataSize - end) bytes after the last tensor belong to none")
    }
    self.entries = entries
    self.metadata = metadata
  }

  private static func parse(
    _ json: [UInt8], dataSize: Int
  ) throws(PEFTError) -> (entries: [SafetensorsEntry], metadata: [String: String]) {
    var scanner = JSONScanner(json)
    var seen: Set<String> = []
    var entries: [SafetensorsEntry] = []
    var metadata: [String: String] = [:]
    guard scanner.peek() == .object else { throw malformed("the header is not a JSON object") }
    try scanner.readObject { (key, scanner) throws(PEFTError) in
      let value = try scanner.readValue()
      guard let object = value.object else {
        throw malformed("the header's entry '\(key)' is \(value.kindName), not an object")
      }
      if key == "__metadata__" {
        for (name, value) in object.members {
          guard let text = value.string else {
            throw malformed("metadata '\(name)' is \(value.kindName), not a string")
          }
          metadata[name] = text
        }
        return
      }
      guard seen.insert(key).inserted else {
        throw malformed("the tensor '\(key)' is listed twice")
      }
      entries.append(try entry(key, object, dataSize: dataSize))
    }
    try scanner.expectEnd()
    return (entries, metadata)
  }

  static func malformed(_ message: String) -> PEFTError {
    PEFTError(
      .malformedFile, "not a valid safetensors file: \(message)",
      remedy: "Obtain the file again.")
  }

  private static func entry(
    _ name: String, _ object: JSONObject, dataSize: Int
  ) throws(PEFTError) -> SafetensorsEntry {
    guard let typeName = object["dtype"]?.string else { throw malformed("'\(name)' has no dtype") }
    guard let type = ElementType(rawValue: typeName) else {
      throw malformed("'\(name)' has the unknown dtype '\(typeName)'")
    }
    guard let dimensions = object["shape"]?.array else { throw malformed("'\(name)' has no shape") }
    var shape: [Int] = []
    // Of the dimensions other than 0, as matrices multiply some of an empty tensor's too.
    var span = type.byteCount
    for dimension in dimensions {
      guard case .int(let extent) = dimension, extent >= 0 else {
        throw malformed("'\(name)' has a shape that is not a list of sizes")
      }
      let (product, overflow) = span.multipliedReportingOverflow(by: max(extent, 1))
      if overflow { throw malformed("the shape of '\(name)' is too large") }
      span = product
      shape.append(extent)
    }
    let byteCount = shape.contains(0) ? 0 : span
    guard let offsets = object["data_offsets"]?.array, offsets.count == 2,
      case .int(let start) = offsets[0], case .int(let end) = offsets[1], start >= 0, end >= start
    else { throw malformed("'\(name)' has no valid data_offsets") }
    guard end <= dataSize else {
      throw malformed(
        "the data of '\(name)' ends at byte \(end), but the file has \(dataSize) bytes of data: "
          + "it is truncated")
    }
    guard end - start == byteCount else {
      throw malformed(
        "'\(name)' has \(end - start) bytes, but its shape \(shape) of \(typeName) needs "
          + "\(byteCount)")
    }
    return SafetensorsEntry(name: name, type: type, shape: shape, range: start..<end)
  }
}
