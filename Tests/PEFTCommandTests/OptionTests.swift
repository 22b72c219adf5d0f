import PEFT
import Testing

@testable import PEFTCommand

struct OptionTests {
  @Test func adapterReferencesHaveNames() throws {
    #expect(AdapterReference(argument: "a/b") == AdapterReference(folder: "a/b"))
    #expect(AdapterReference(argument: "a/b=c") == AdapterReference(folder: "a/b", name: "c"))
    #expect(AdapterReference(argument: "a=b=c") == AdapterReference(folder: "a=b", name: "c"))
    let folder = try TemporaryFolder()
    try FileSystem.createDirectory(folder.file("x=1"))
    #expect(
      AdapterReference(argument: folder.file("x=1"))
        == AdapterReference(folder: folder.file("x=1")))
    #expect(
      AdapterReference(argument: folder.file("x=1") + "=n")
        == AdapterReference(folder: folder.file("x=1"), name: "n"))
  }

  @Test func adaptersGetDefaultNames() throws {
    let names = try ModelSession.named([
      AdapterReference(folder: "out/first"), AdapterReference(folder: "out/v1.2/"),
      AdapterReference(folder: "third", name: "x"),
    ]).map(\.name)
    #expect(names == ["default", "v1_2", "x"])
    #expect(throws: PEFTError.self) {
      try ModelSession.named([
        AdapterReference(folder: "a/x"), AdapterReference(folder: "b/x", name: "default"),
      ])
    }
  }

  @Test func activeNamesAreSplit() throws {
    func names(_ arguments: String...) throws -> [String]? {
      try ActiveOptions.parse(arguments).names
    }
    #expect(try names() == nil)
    #expect(try names("--active", "") == [])
    #expect(try names("--active", "__base__") == [])
    #expect(try names("--active", "a") == ["a"])
    #expect(try names("--active", "a, b") == ["a", "b"])
  }

  @Test func bytesHaveUnits() {
    #expect(byteSize(999) == "999 bytes")
    #expect(byteSize(1000) == "1.0 kB")
    #expect(byteSize(25_824) == "25.8 kB")
    #expect(byteSize(988_000_000) == "988.0 MB")
    #expect(byteSize(3_210_000_000) == "3.2 GB")
  }
}
