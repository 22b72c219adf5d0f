import Foundation
import TestSupport
import Testing

@testable import PEFTSupport

struct FileSystemTests {
  let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  struct Stop: Error {}

  @Test func readsWhatWasWritten() throws {
    let path = folder("a.txt")
    try FileSystem.write(path, "grüße")
    #expect(try FileSystem.read(path) == Array("grüße".utf8))
    try FileSystem.write(path, "")
    #expect(try FileSystem.read(path) == [])
    #expect(folder.names == ["a.txt"])
  }

  @Test func readsFilesThatReportNoSize() throws {
    // The kernel gives these files the size 0.
    let status = String(decoding: try FileSystem.read("/proc/self/status"), as: UTF8.self)
    #expect(status.contains("Name:") && status.hasSuffix("\n"))
  }

  @Test func failedWriteKeepsTheOldFile() throws {
    let path = folder("a.txt")
    try FileSystem.write(path, "old")
    let failure = PEFTError(.invalidData, "stop")
    #expect(throws: PEFTError.self) {
      try FileSystem.write(path) { (file) throws(PEFTError) in
        try file.write(Array("half".utf8))
        throw failure
      }
    }
    #expect(try FileSystem.read(path) == Array("old".utf8))
    #expect(folder.names == ["a.txt"])
  }

  @Test func fullDiskIsAnErrorAndKeepsTheOldFile() throws {
    let error = #expect(throws: PEFTError.self) {
      let file = try OutputFile(creating: "/dev/full")
      try file.write([UInt8](repeating: 7, count: 100))
    }
    #expect(
      error?.description
        == "/dev/full: cannot write: No space left on device. "
        + "Free some space or choose another output folder.")
    #expect(error?.code == .fileAccess)
    // The atomic write meets the full disk through its temporary file.
    let path = folder("a.txt")
    try FileSystem.write(path, "old")
    try FileManager.default.createSymbolicLink(
      atPath: "\(path).partial-\(getpid())", withDestinationPath: "/dev/full")
    #expect(throws: PEFTError.self) { try FileSystem.write(path, "new") }
    #expect(try FileSystem.read(path) == Array("old".utf8))
    #expect(folder.names == ["a.txt"])
  }

  /// The key file comes last, and is missing as long as others are.
  @Test func movesFilesOverOthers() throws {
    let (source, target) = (folder("new"), folder("old"))
    func make(_ files: [String]) throws {
      try FileSystem.createDirectory(source)
      for name in files { try FileSystem.write("\(source)/\(name)", "new") }
    }
    try FileSystem.createDirectory("\(target)/c")
    for name in ["a", "key", "known", "other"] { try FileSystem.write("\(target)/\(name)", "old") }
    func move() throws(PEFTError) {
      try FileSystem.moveFiles(
        from: source, to: target, first: "b", last: "key", replacing: ["a", "known"])
    }
    try make(["a", "b", "key"])
    try move()
    #expect(try FileSystem.list(target) == ["a", "b", "c", "key", "other"])
    #expect(try FileSystem.read("\(target)/key") == Array("new".utf8))
    #expect(try FileSystem.read("\(target)/other") == Array("old".utf8))
    #expect(!FileSystem.exists(source))
    // A folder stands where a file is to go; once it is away, the move goes on.
    try make(["a", "b", "c", "key"])
    #expect(throws: PEFTError.self) { try move() }
    #expect(try FileSystem.list(target) == ["a", "b", "c", "other"])
    FileSystem.removeTree("\(target)/c")
    try move()
    #expect(try FileSystem.list(target) == ["a", "b", "c", "key", "other"])
  }

  @Test func appendsToAFile() throws {
    let path = try folder.write("log", "one\n")
    do {
      let file = try OutputFile(creating: path, appending: true)
      try file.write(Array("two\n".utf8))
      try file.sync()
    }
    #expect(try FileSystem.read(path) == Array("one\ntwo\n".utf8))
  }

  @Test func errorsNamePathAndRemedy() throws {
    let missing = folder("no/such/file")
    let error = #expect(throws: PEFTError.self) { try FileSystem.read(missing) }
    #expect(error?.code == .fileNotFound)
    #expect(
      error?.description == "\(missing): cannot open: No such file or directory. Check the path.")
    let asFile = #expect(throws: PEFTError.self) { try FileSystem.read(folder.path) }
    #expect(asFile?.message == "is a folder, a file was expected")
    #expect(throws: PEFTError.self) { try FileSystem.list(missing) }
    let created = #expect(throws: PEFTError.self) { try FileSystem.write(missing, "x") }
    #expect(created?.code == .fileNotFound)
    let json = try folder.write("a.json", "{\"a\": }")
    let malformed = #expect(throws: PEFTError.self) { try FileSystem.readJSON(json) }
    #expect(
      malformed?.description == "\(json): not valid JSON: expected a value, found '}' at byte 6")
  }

  /// Nobody, not even root, can create anything in /proc; a file stands where a folder should be.
  @Test func unwritableFoldersAreErrors() throws {
    #expect(throws: PEFTError.self) { try FileSystem.write("/proc/peft-test", "x") }
    #expect(throws: PEFTError.self) {
      try FileSystem.writeDirectory("/proc/peft-test") { _ in }
    }
    let file = try folder.write("file", "x")
    let error = #expect(throws: PEFTError.self) {
      try FileSystem.writeDirectory("\(file)/inside") { _ in }
    }
    #expect(error?.location == file)
    let onFile = #expect(throws: PEFTError.self) { try FileSystem.writeDirectory(file) { _ in } }
    #expect(onFile?.message == "is a file, a folder was to be written")
    #expect(try FileSystem.read(file) == Array("x".utf8))
    #expect(folder.names == ["file"])
  }

  @Test func folderIsCompleteOrAbsent() throws {
    let path = folder("out/adapter")
    #expect(throws: Stop.self) {
      try FileSystem.writeDirectory(path) { temporary in
        try FileSystem.write("\(temporary)/a", "1")
        #expect(!FileSystem.exists(path))
        throw Stop()
      }
    }
    #expect(try FileSystem.list(folder("out")) == [])
    try FileSystem.writeDirectory(path + "/") { try FileSystem.write("\($0)/a", "1") }
    #expect(try FileSystem.list(folder("out")) == ["adapter"])
    // Replacing: the old content stays until the new is complete, and nothing of it after.
    #expect(throws: Stop.self) {
      try FileSystem.writeDirectory(path) { temporary in
        try FileSystem.write("\(temporary)/b", "2")
        #expect(try FileSystem.list(path) == ["a"])
        throw Stop()
      }
    }
    #expect(try FileSystem.list(path) == ["a"])
    try FileSystem.writeDirectory(path) { try FileSystem.write("\($0)/b", "2") }
    #expect(try FileSystem.list(path) == ["b"])
    #expect(try FileSystem.list(folder("out")) == ["adapter"])
  }

  private static func isInUse(_ path: String) -> Bool {
    guard let lock = NameLock(path) else { return false }
    return !lock.isHeld
  }

  /// A process that was killed holds no locks any more; one that is at work does.
  @Test func leftoversOfKilledWritesAreRemoved() throws {
    _ = try folder.write("a.partial-12", "left")
    _ = try folder.write("a.partial-12x", "another's")
    _ = try folder.write("ab.partial-12", "another's")
    let used = try folder.write("a.partial-34", "in use")
    func writeBesideAnother() throws {
      let writer = NameLock(used)
      try FileSystem.write(folder("a"), "new")
      withExtendedLifetime(writer) {}
    }
    try writeBesideAnother()
    #expect(folder.names == ["a", "a.partial-12x", "a.partial-34", "ab.partial-12"])
    FileSystem.removeLeftovers(of: folder("a"))
    #expect(folder.names == ["a", "a.partial-12x", "ab.partial-12"])
  }

  @Test func leftoversOfKilledFoldersAreRemoved() throws {
    func leave(_ name: String, _ text: String) throws {
      try FileSystem.createDirectory(folder(name))
      try FileSystem.write(folder("\(name)/x"), text)
    }
    try leave("a.partial-12", "half")
    try leave("a.old-12", "moved aside")
    // The kill came before anything had taken the old folder's place.
    FileSystem.removeLeftovers(of: folder("a"))
    #expect(folder.names == ["a"])
    #expect(try FileSystem.read(folder("a/x")) == Array("moved aside".utf8))
    try leave("a.old-12", "moved aside")
    try leave("a.partial-12", "half")
    try FileSystem.writeDirectory(folder("a")) { temporary in
      #expect(folder.names == ["a", "a.partial-\(getpid())"])
      // A second process leaves alone what this one has in use.
      #expect(Self.isInUse(temporary))
      try FileSystem.write("\(temporary)/x", "new")
    }
    #expect(folder.names == ["a"])
    #expect(try FileSystem.read(folder("a/x")) == Array("new".utf8))
  }

  @Test func removingATreeDoesNotFollowLinks() throws {
    try FileSystem.createDirectory(folder("kept/deep"))
    _ = try folder.write("kept/deep/file", "x")
    try FileSystem.createDirectory(folder("gone/deep"))
    _ = try folder.write("gone/deep/file", "x")
    try FileManager.default.createSymbolicLink(
      atPath: folder("gone/link"), withDestinationPath: folder("kept"))
    FileSystem.removeTree(folder("gone"))
    FileSystem.removeTree(folder("never there"))
    #expect(folder.names == ["kept"])
    #expect(FileSystem.exists(folder("kept/deep/file")))
  }

  @Test func joinsAndListsNames() throws {
    #expect(FileSystem.join("a", "b") == "a/b")
    #expect(FileSystem.join("a/", "b") == "a/b")
    #expect(FileSystem.join("", "b") == "b")
    for name in ["b", "a", ".hidden"] { _ = try folder.write(name, "") }
    #expect(try FileSystem.list(folder.path) == [".hidden", "a", "b"])
    #expect(FileSystem.isDirectory(folder.path))
    #expect(!FileSystem.isDirectory(folder("a")))
  }

  @Test func errorTextPutsPlaceMessageAndRemedyTogether() {
    let error = PEFTError(.unsupported, "no 'x'", remedy: "Use y.")
    #expect(error.description == "no 'x'. Use y.")
    #expect(error.located(at: "f.json").description == "f.json: no 'x'. Use y.")
    #expect(error.located(at: "f.json").located(at: "other").location == "f.json")
    #expect(PEFTError.Code("mine.broken").description == "mine.broken")
  }
}
