#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

import PEFT

/// The standard streams, without buffering.
enum Terminal {
  /// Writes text to standard output, where it appears at once.
  ///
  /// - Throws: ``PEFTError`` `fileAccess` when it cannot be written, as on a full disk.
  static func write(_ text: String) throws(PEFTError) {
    if !write(text, to: 1) {
      throw PEFTError(
        .fileAccess, "cannot write: \(String(cString: strerror(errno)))", at: "standard output")
    }
  }

  /// Writes a line to standard error, which carries what is not the result.
  static func note(_ line: String) { _ = write(line + "\n", to: 2) }

  /// Whether all of the text could be written.
  private static func write(_ text: String, to descriptor: Int32) -> Bool {
    var text = text
    return text.withUTF8 { bytes in
      var done = 0
      while done < bytes.count {
        #if canImport(Glibc)
          let count = Glibc.write(descriptor, bytes.baseAddress! + done, bytes.count - done)
        #else
          let count = Darwin.write(descriptor, bytes.baseAddress! + done, bytes.count - done)
        #endif
        if count < 0 {
          if errno == EINTR { continue }
          return false
        }
        done += count
      }
      return true
    }
  }
}
