import CKernels
import PEFTSupport

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// A whole file, mapped read-only.
///
/// The mapping lives as long as this object, which every ``Storage`` window of it keeps alive. A file that is
/// replaced by renaming keeps its old content here; one that is truncated in place must not be mapped.
public final class MappedFile: Sendable {
  /// The file's path, for messages.
  public let path: String
  /// The file's size.
  public let byteCount: Int

  private let address: UInt

  var base: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: address)! }

  /// Maps a file.
  ///
  /// - Throws: `PEFTError` with code `fileNotFound` or `fileAccess`, naming the file.
  public init(path: String) throws(PEFTError) {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
      let code: PEFTError.Code = errno == ENOENT ? .fileNotFound : .fileAccess
      throw PEFTError(code, "cannot open: \(String(cString: strerror(errno)))", at: path)
    }
    defer { close(descriptor) }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else {
      throw PEFTError(.fileAccess, "cannot read: \(String(cString: strerror(errno)))", at: path)
    }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw PEFTError(.fileAccess, "is not a regular file, one was expected", at: path)
    }
    self.path = path
    byteCount = Int(status.st_size)
    // An empty range cannot be mapped; one page stands for it.
    guard byteCount > 0 else {
      address = Self.emptyPage
      return
    }
    let result = mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, descriptor, 0)
    guard let result, result != MAP_FAILED else {
      throw PEFTError(.fileAccess, "cannot map: \(String(cString: strerror(errno)))", at: path)
    }
    address = UInt(bitPattern: result)
  }

  deinit {
    if byteCount > 0 { munmap(base, byteCount) }
  }

  /// Copies bytes out of the file.
  public func bytes(_ range: Range<Int>) -> [UInt8] {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "range beyond the file")
    return Array(UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count))
  }

  /// The CRC-32 of a range, as zip files record it.
  public func crc32(_ range: Range<Int>) -> UInt32 {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "range beyond the file")
    let start = base.assumingMemoryBound(to: UInt8.self) + range.lowerBound
    return pk_crc32(start, range.count)
  }

  /// Lets the system drop the pages that lie wholly within a range; they are read again when used.
  public func release(_ range: Range<Int>) {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    let start = (range.lowerBound + page - 1) / page * page
    let end = min(range.upperBound, byteCount) / page * page
    if start < end { madvise(base + start, end - start, MADV_DONTNEED) }
  }

  private static let emptyPage = UInt(
    bitPattern: UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64))
}
