import PEFT

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

extension FileSystem {
  /// The absolute path without links, to tell whether two paths are one; `nil` when absent.
  static func resolved(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    return String(cString: resolved)
  }

  /// The same of a file that need not be there yet; `nil` when its folder is absent.
  static func place(of file: String) -> String? {
    if let present = resolved(file) { return present }
    let slash = file.lastIndex(of: "/")
    let folder = slash.map { $0 == file.startIndex ? "/" : String(file[..<$0]) } ?? "."
    let name = slash.map { String(file[file.index(after: $0)...]) } ?? file
    return resolved(folder).map { join($0, name) }
  }
}
