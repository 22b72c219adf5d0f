#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Reading whole files and writing them so that a reader never sees half of one.
public enum FileSystem {
  /// Whether something exists at `path`.
  public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  /// Whether `path` is a folder.
  public static func isDirectory(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
  }

  /// Joins a folder and a name.
  public static func join(_ folder: String, _ name: String) -> String {
    folder.isEmpty || folder.hasSuffix("/") ? folder + name : folder + "/" + name
  }

  /// The names in a folder, sorted.
  public static func list(_ folder: String) throws(PEFTError) -> [String] {
    guard let handle = opendir(folder) else { throw systemError("cannot list the folder", folder) }
    defer { closedir(handle) }
    var names: [String] = []
    while let entry = readdir(handle) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  /// The bytes of a file.
  public static func read(_ path: String) throws(PEFTError) -> [UInt8] {
    if isDirectory(path) {
      throw PEFTError(.fileAccess, "is a folder, a file was expected", at: path)
    }
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw systemError("cannot open", path) }
    defer { close(descriptor) }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw systemError("cannot read", path) }
    // One byte more than there should be finds the end in the same buffer.
    var bytes = try read(descriptor, upTo: max(Int(status.st_size) + 1, 4096), path)
    var isComplete = bytes.count <= Int(status.st_size)
    while !isComplete {
      // Pipes and growing files report no size, or too little.
      let wanted = max(4096, bytes.count)
      let more = try read(descriptor, upTo: wanted, path)
      bytes.append(contentsOf: more)
      isComplete = more.count < wanted
    }
    return bytes
  }

  /// Reads up to `count` bytes, fewer only at the end of the file.
  private static func read(
    _ descriptor: Int32, upTo count: Int, _ path: String
  ) throws(PEFTError) -> [UInt8] {
    var failure: PEFTError?
    let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      while filled < count {
        let result = Glibc.read(descriptor, buffer.baseAddress! + filled, count - filled)
        if result < 0, errno == EINTR { continue }
        if result < 0 { failure = systemError("cannot read", path) }
        if result <= 0 { break }
        filled += result
      }
    }
    if let failure { throw failure }
    return bytes
  }

  /// The JSON value in a file; errors name the file.
  public static func readJSON(_ path: String) throws(PEFTError) -> JSONValue {
    let bytes = try read(path)
    do { return try JSONValue(parsing: bytes) } catch { throw error.located(at: path) }
  }

  /// Creates a folder and those above it.
  public static func createDirectory(_ path: String) throws(PEFTError) {
    if isDirectory(path) { return }
    if let slash = path.lastIndex(of: "/"), slash != path.startIndex {
      try createDirectory(String(path[..<slash]))
    }
    if mkdir(path, 0o777) != 0, !isDirectory(path) {
      throw systemError("cannot create the folder", path)
    }
  }

  /// Writes a file atomically: a temporary file beside it, synced, then renamed over it.
  ///
  /// After a failure, a crash or a kill the old content (or absence) is intact.
  public static func write(_ path: String, _ text: String) throws(PEFTError) {
    let bytes = Array(text.utf8)
    try write(path) { (file) throws(PEFTError) in try file.write(bytes) }
  }

  /// Writes a file atomically, piece by piece.
  public static func write(
    _ path: String, _ body: (borrowing OutputFile) throws(PEFTError) -> Void
  ) throws(PEFTError) {
    let temporary = "\(path).partial-\(getpid())"
    do {
      let file = try OutputFile(creating: temporary)
      try body(file)
      try file.sync()
    } catch {
      unlink(temporary)
      throw error
    }
    guard rename(temporary, path) == 0 else {
      let failure = systemError("cannot replace", path)
      unlink(temporary)
      throw failure
    }
    syncParent(of: path)
  }

  /// Builds a folder beside `path`, then renames it into place, so that it is complete or absent.
  ///
  /// An existing folder at `path` is replaced only after the new one is complete.
  public static func writeDirectory(
    _ path: String, _ body: (_ temporary: String) throws -> Void
  ) throws {
    var target = path
    while target.count > 1, target.hasSuffix("/") { target.removeLast() }
    if let slash = target.lastIndex(of: "/"), slash != target.startIndex {
      try createDirectory(String(target[..<slash]))
    }
    let temporary = "\(target).partial-\(getpid())"
    removeTree(temporary)
    do {
      try createDirectory(temporary)
      try body(temporary)
    } catch {
      removeTree(temporary)
      throw error
    }
    let old = "\(target).old-\(getpid())"
    let replaces = exists(target)
    if replaces, rename(target, old) != 0 {
      let failure = systemError("cannot replace", target)
      removeTree(temporary)
      throw failure
    }
    guard rename(temporary, target) == 0 else {
      let failure = systemError("cannot create", target)
      if replaces { rename(old, target) }
      removeTree(temporary)
      throw failure
    }
    syncParent(of: target)
    if replaces { removeTree(old) }
  }

  /// Removes a file or folder with all in it; absent is fine.
  public static func removeTree(_ path: String) {
    if isDirectory(path), let names = try? list(path) {
      for name in names { removeTree(join(path, name)) }
      rmdir(path)
    } else {
      unlink(path)
    }
  }

  /// An error for the current `errno`.
  static func systemError(_ message: String, _ path: String) -> PEFTError {
    let number = errno
    let reason = String(cString: strerror(number))
    let code: PEFTError.Code = number == ENOENT || number == ENOTDIR ? .fileNotFound : .fileAccess
    var remedy: String?
    switch number {
    case ENOSPC, EDQUOT: remedy = "Free some space or choose another output folder."
    case EACCES, EPERM, EROFS: remedy = "Check the permissions or choose another folder."
    case ENOENT: remedy = "Check the path."
    default: break
    }
    return PEFTError(code, "\(message): \(reason)", at: path, remedy: remedy)
  }

  private static func syncParent(of path: String) {
    let parent = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
    let descriptor = open(parent.isEmpty ? "/" : parent, O_RDONLY | O_CLOEXEC)
    if descriptor >= 0 {
      fsync(descriptor)
      close(descriptor)
    }
  }
}

/// A file being written.
public struct OutputFile: ~Copyable {
  private let descriptor: Int32
  private let path: String

  /// Creates or truncates the file at `path`.
  public init(creating path: String, appending: Bool = false) throws(PEFTError) {
    self.path = path
    descriptor = open(
      path, O_WRONLY | O_CREAT | O_CLOEXEC | (appending ? O_APPEND : O_TRUNC), 0o666)
    if descriptor < 0 { throw FileSystem.systemError("cannot create", path) }
  }

  deinit { close(descriptor) }

  /// Appends bytes.
  public borrowing func write(_ bytes: [UInt8]) throws(PEFTError) {
    try write(bytes.span.bytes)
  }

  /// Appends bytes.
  public borrowing func write(_ bytes: RawSpan) throws(PEFTError) {
    try bytes.withUnsafeBytes { (buffer) throws(PEFTError) in try write(buffer) }
  }

  private borrowing func write(_ buffer: UnsafeRawBufferPointer) throws(PEFTError) {
    var done = 0
    while done < buffer.count {
      let count = Glibc.write(descriptor, buffer.baseAddress! + done, buffer.count - done)
      if count < 0 {
        if errno == EINTR { continue }
        throw FileSystem.systemError("cannot write", path)
      }
      done += count
    }
  }

  /// Waits until the content is on the disk.
  public borrowing func sync() throws(PEFTError) {
    if fsync(descriptor) != 0 { throw FileSystem.systemError("cannot write", path) }
  }
}
