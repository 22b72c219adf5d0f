import Testing

@testable import PEFTSupport

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Files of all sizes come back as they were written, and so does what has no size.
@Suite struct FileReadingTests {
  @Test(arguments: [0, 1, 4095, 4096, 4097, 100_000]) func sizes(_ count: Int) throws {
    let path = "/tmp/peft-reading-\(getpid())-\(count)"
    defer { FileSystem.removeTree(path) }
    let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31) }
    try FileSystem.write(path) { (file) throws(PEFTError) in try file.write(bytes) }
    #expect(try FileSystem.read(path) == bytes)
  }

  #if canImport(Glibc)
    @Test func filesWithoutSize() throws {
      #expect(try FileSystem.read("/proc/self/status").starts(with: "Name:".utf8))
    }
  #endif

  @Test func missing() {
    let error = #expect(throws: PEFTError.self) { try FileSystem.read("/tmp/peft-no-such-file") }
    #expect(error?.code == .fileNotFound)
  }
}
