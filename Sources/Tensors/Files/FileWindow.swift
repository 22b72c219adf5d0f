import BLASKernels

/// A mapped file as one storage, of which all of its tensors are parts.
struct FileWindow: Sendable {
  /// The whole file.
  let slice: Slice<UInt8>

  init(_ file: MappedFile) {
    slice = Slice(.window(0..<file.byteCount, of: file))
  }

  /// A range that begins at a multiple of an element's size, as the file's begins at a page's; a
  /// copy where it does not.
  func aligned(_ range: Range<Int>, to size: Int) -> Slice<UInt8> {
    let part = slice[range]
    return range.lowerBound % size == 0 ? part : Slice(part.array)
  }
}
