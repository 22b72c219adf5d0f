#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Reading whole files and writing them so that a reader never sees half of one.
///
/// What fails throws `fileNotFound` or `fileAccess`, with the path and the system's reason.
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
        let result = readSome(descriptor, buffer.baseAddress! + filled, count - filled)
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
    if exists(path) {
      throw PEFTError(
        .fileAccess, "is a file, a folder was expected", at: path, remedy: "Choose another folder.")
    }
    if let slash = path.lastIndex(of: "/"), slash != path.startIndex {
      try createDirectory(String(path[..<slash]))
    }
    if mkdir(path, 0o777) != 0, !isDirectory(path) {
      throw systemError("cannot create the folder", path)
    }
  }

  /// Writes a file atomically: a temporary file beside it, synced, then renamed over it.
  ///
  /// After a failure, a crash or a kill the old content (or absence) is intact. What a kill leaves
  /// of the temporary file is removed by the next write.
  public static func write(_ path: String, _ text: String) throws(PEFTError) {
    let bytes = Array(text.utf8)
    try write(path) { (file) throws(PEFTError) in try file.write(bytes) }
  }

  /// Writes a file atomically, piece by piece.
  public static func write(
    _ path: String, _ body: (borrowing OutputFile) throws(PEFTError) -> Void
  ) throws(PEFTError) {
    Leftovers.remove(of: path)
    let temporary = Leftovers.partialName(path)
    do {
      let file = try OutputFile(creating: temporary)
      file.lock()
      try body(file)
      try file.sync()
    } catch {
      unlink(temporary)
      throw error.relocated(from: temporary, to: path)
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
    Leftovers.remove(of: target)
    let temporary = Leftovers.partialName(target)
    removeTree(temporary)
    do throws(PEFTError) { try createDirectory(temporary) } catch {
      throw error.relocated(from: temporary, to: target)
    }
    let lock = NameLock(temporary)
    defer { withExtendedLifetime(lock) {} }
    do {
      try body(temporary)
    } catch {
      removeTree(temporary)
      throw (error as? PEFTError)?.relocated(from: temporary, to: target) ?? error
    }
    syncFolder(temporary)
    if exists(target), !isDirectory(target) {
      removeTree(temporary)
      throw PEFTError(
        .fileAccess, "is a file, a folder was to be written", at: target,
        remedy: "Name another folder, or remove the file.")
    }
    // Once the two have changed places, the temporary name holds the old content.
    guard
      exchange(temporary, target) || rename(temporary, target) == 0
        || replaceInTwoSteps(temporary, target)
    else {
      let failure = systemError("cannot create", target)
      removeTree(temporary)
      throw failure
    }
    syncParent(of: target)
    removeTree(temporary)
  }

  /// Moves the files of a folder into another one, over those of the same names.
  ///
  /// What a reader looks for first comes last: as long as not all files are there, `key` is missing, so
  /// that files of two origins are never taken for one. After a kill or a failure the same call goes on
  /// where it was.
  ///
  /// - Parameters:
  ///   - source: The folder, which is removed.
  ///   - target: The folder that gets the files.
  ///   - first: The name of the file that comes first; without it the move had begun.
  ///   - key: The name of the file without which the others mean nothing.
  ///   - known: Names that are removed from the target where the source does not have them.
  /// - Throws: ``PEFTError`` `fileAccess`.
  public static func moveFiles(
    from source: String, to target: String, first: String, last key: String,
    replacing known: Set<String>
  ) throws(PEFTError) {
    let names = try list(source)
    if names.contains(first) {
      for name in known.subtracting(names).union([key]) { removeTree(join(target, name)) }
      syncFolder(target)
    }
    let others = names.filter { $0 != first && $0 != key }
    for name in [first] + others + [key] where names.contains(name) {
      let path = join(target, name)
      if rename(join(source, name), path) != 0 { throw systemError("cannot replace", path) }
    }
    syncFolder(target)
    removeTree(source)
  }

  /// The way of file systems that cannot exchange names: moves the old folder aside first.
  private static func replaceInTwoSteps(_ temporary: String, _ target: String) -> Bool {
    let old = Leftovers.oldName(target)
    let lock = NameLock(target)
    defer { withExtendedLifetime(lock) {} }
    guard rename(target, old) == 0 else { return false }
    guard rename(temporary, target) == 0 else {
      let number = errno
      rename(old, target)
      errno = number
      return false
    }
    removeTree(old)
    return true
  }

  /// Lets two folders change names in one step, so that a kill at any moment leaves one of them
  /// complete under each name; `false` when either is absent or the file system cannot do it.
  private static func exchange(_ a: String, _ b: String) -> Bool {
    #if canImport(Darwin)
      return renamex_np(a, b, UInt32(RENAME_SWAP)) == 0
    #else
      // The overlay does not show this GNU function, nor RENAME_EXCHANGE, which is 2.
      typealias Rename2 =
        @convention(c) (
          Int32, UnsafePointer<CChar>, Int32, UnsafePointer<CChar>, UInt32
        ) -> Int32
      guard let symbol = dlsym(nil, "renameat2") else { return false }
      return unsafeBitCast(symbol, to: Rename2.self)(AT_FDCWD, a, AT_FDCWD, b, 2) == 0
    #endif
  }

  /// Removes a file or folder with all in it; absent is fine.
  public static func removeTree(_ path: String) {
    // A link to a folder is removed itself; what it leads to is not ours.
    var status = stat()
    let isFolder = lstat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    if isFolder, let names = try? list(path) {
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
    syncFolder(parent.isEmpty ? "/" : parent)
  }

  private static func syncFolder(_ path: String) {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    if descriptor >= 0 {
      fsync(descriptor)
      close(descriptor)
    }
  }
}

/// The system's `read`, whose name the functions above hide.
private func readSome(
  _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer, _ count: Int
) -> Int {
  read(descriptor, buffer, min(count, largestTransfer))
}

/// The system's `write`, whose name the methods below hide.
private func writeSome(_ descriptor: Int32, _ buffer: UnsafeRawPointer, _ count: Int) -> Int {
  write(descriptor, buffer, min(count, largestTransfer))
}

/// Darwin refuses more than 2 GiB in one call.
private let largestTransfer = 1 << 30

extension PEFTError {
  /// The same error where the user knows the place by another path than the one in use.
  fileprivate func relocated(from temporary: String, to path: String) -> PEFTError {
    guard let location, location.hasPrefix(temporary) else { return self }
    return PEFTError(
      code, message, at: path + location.dropFirst(temporary.count), remedy: remedy)
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

  /// Says that the file is in use, until it is closed.
  borrowing func lock() { flock(descriptor, LOCK_EX | LOCK_NB) }

  /// Appends bytes.
  public borrowing func write(_ bytes: [UInt8]) throws(PEFTError) {
    try write(bytes.span.bytes)
  }

  /// Appends bytes.
  public borrowing func write(_ bytes: RawSpan) throws(PEFTError) {
    try bytes.withUnsafeBytes { (buffer) throws(PEFTError) in try write(buffer) }
  }

  /// Appends bytes, all or none: when the disk is full, the file is cut back to what it was.
  public borrowing func append(_ bytes: [UInt8]) throws(PEFTError) {
    var status = stat()
    let isKnown = fstat(descriptor, &status) == 0
    do { try write(bytes) } catch {
      if isKnown { ftruncate(descriptor, status.st_size) }
      throw error
    }
  }

  private borrowing func write(_ buffer: UnsafeRawBufferPointer) throws(PEFTError) {
    var done = 0
    while done < buffer.count {
      let count = writeSome(descriptor, buffer.baseAddress! + done, buffer.count - done)
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
