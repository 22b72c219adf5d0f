import PEFT

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// The standard streams, unbuffered: results go to the output, everything about progress to the
/// error stream.
enum Terminal {
  /// Writes text to the standard output.
  ///
  /// - Throws: ``PEFTError`` `fileAccess` when it cannot be written, as to a full disk.
  static func write(_ text: String) throws(PEFTError) {
    if !write(text, to: STDOUT_FILENO) {
      throw PEFTError(
        .fileAccess, "cannot write: \(String(cString: strerror(errno)))", at: "standard output")
    }
  }

  /// Writes text to the standard error stream.
  static func writeError(_ text: String) {
    // When this fails there is nobody left to tell.
    _ = write(text, to: STDERR_FILENO)
  }

  /// The error stream for progress displays.
  static var progress: ProgressReporter.Output {
    ProgressReporter.Output(
      isTerminal: isatty(STDERR_FILENO) == 1 && !isDumb, columns: { columns },
      write: { writeError($0) })
  }

  /// Whether the standard input comes from a person.
  static var isInteractive: Bool { isatty(STDIN_FILENO) == 1 }

  private static var isDumb: Bool { getenv("TERM").map { String(cString: $0) } == "dumb" }

  private static var columns: Int {
    var size = winsize()
    let isKnown = ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0 && size.ws_col > 0
    return isKnown ? Int(size.ws_col) : 80
  }

  /// Whether all of the text could be written.
  private static func write(_ text: String, to descriptor: Int32) -> Bool {
    let bytes = Array(text.utf8)
    var done = 0
    while done < bytes.count {
      let count = bytes[done...].withUnsafeBytes {
        writeSome(descriptor, $0)
      }
      if count < 0, errno == EINTR { continue }
      if count <= 0 { return false }
      done += count
    }
    return true
  }
}

/// The function of the C library, whose name a method here has too.
private func writeSome(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
  write(descriptor, bytes.baseAddress, bytes.count)
}
