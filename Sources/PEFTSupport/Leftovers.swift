#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// The names under which a file or folder is built beside its place, or moved aside from it.
///
/// Who has such a name in use holds a lock on what bears it, which ends with the process: what can be
/// locked was left behind by one that was killed. A process's number alone does not say so, since
/// it may have been given to another process, or be one of another machine.
enum Leftovers {
  private static let partial = ".partial-"
  private static let old = ".old-"

  /// The name of what is being built.
  static func partialName(_ target: String) -> String { "\(target)\(partial)\(getpid())" }

  /// The name of what is being replaced.
  static func oldName(_ target: String) -> String { "\(target)\(old)\(getpid())" }

  /// Removes what writes of a target left that did not come to their end. An old folder that was
  /// moved aside for a new one that never came is moved back.
  static func remove(of target: String) {
    let slash = target.lastIndex(of: "/")
    let folder = slash.map { $0 == target.startIndex ? "/" : String(target[..<$0]) } ?? "."
    let name = slash.map { target[target.index(after: $0)...] } ?? target[...]
    guard let found = try? FileSystem.list(folder) else { return }
    for other in found where other.count > name.count && other.hasPrefix(name) {
      let end = other.dropFirst(name.count)
      let isOld = end.hasPrefix(old)
      guard isOld || end.hasPrefix(partial) else { continue }
      let number = end.dropFirst(isOld ? old.count : partial.count)
      guard !number.isEmpty, number.allSatisfy({ $0.isASCII && $0.isNumber }),
        number != String(getpid())
      else { continue }
      let path = FileSystem.join(folder, other)
      guard let lock = NameLock(path), lock.isHeld else { continue }
      if !isOld || FileSystem.exists(target) || rename(path, target) != 0 {
        FileSystem.removeTree(path)
      }
    }
  }
}

/// A lock on a file or folder until the end of the value's life, or of the process.
struct NameLock: ~Copyable {
  private let descriptor: Int32
  /// Whether nobody else holds it; `false` also where the file system has no locks.
  let isHeld: Bool

  /// Tries to lock what is at `path`; `nil` when it cannot be opened, or is a link.
  init?(_ path: String) {
    descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    guard descriptor >= 0 else { return nil }
    isHeld = flock(descriptor, LOCK_EX | LOCK_NB) == 0
  }

  deinit { close(descriptor) }
}

extension FileSystem {
  /// Removes what writing the file or folder at `path` left beside it when the process was killed.
  /// The next write of the same path does so itself.
  public static func removeLeftovers(of path: String) { Leftovers.remove(of: path) }
}
