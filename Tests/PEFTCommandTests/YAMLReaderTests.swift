import PEFT
import Testing

@testable import PEFTCommand

/// Plain scalars by the core schema of YAML 1.2.2, section 10.3.2.
struct YAMLReaderTests {
  @Test func exponentsWithoutAPointAreNumbers() throws {
    // YAML 1.1, which PyYAML follows, reads these as text.
    #expect(YAMLReader.scalar("1e-3") == .double(0.001))
    #expect(YAMLReader.scalar("2E5") == .double(200_000))
    #expect(try YAMLReader.parse("learning_rate: 1e-3")["learning_rate"] == .double(1e-3))
  }

  @Test(
    arguments: [
      ("12", .int(12)), ("-1", .int(-1)), ("+7", .int(7)), ("007", .int(7)), ("0x1F", .int(31)),
      ("0o17", .int(15)), (".5", .double(0.5)), ("1.", .double(1)), ("-1.5e+2", .double(-150)),
      ("-.inf", .double(-.infinity)), ("true", .bool(true)), ("FALSE", .bool(false)),
      ("~", .null), ("", .null), ("null", .null), ("no", .string("no")), ("on", .string("on")),
      ("1e", .string("1e")), ("1_000", .string("1_000")), ("1.2.3", .string("1.2.3")),
      ("e5", .string("e5")), (".", .string(".")), ("-", .string("-")), ("12:30", .string("12:30")),
      ("99999999999999999999", .double(1e20)),
    ] as [(String, JSONValue)])
  func plainScalars(_ text: String, _ expected: JSONValue) {
    #expect(YAMLReader.scalar(text) == expected, "\(text)")
  }

  @Test func collectionsQuotesAndComments() throws {
    let value = try YAMLReader.parse(
      """
      # a comment
      model: dir/with space   # and another
      labels: ["1", '2', three, 4]
      lora:
        target_modules:
          - query
          - value
        r: 8
      base: &base {a: 1}
      copy: *base
      tagged: !!str 5
      """)
    #expect(value["model"] == "dir/with space")
    #expect(value["labels"] == ["1", "2", "three", 4])
    #expect(value["lora"] == ["target_modules": ["query", "value"], "r": 8] as JSONValue)
    #expect(value["copy"] == .object(JSONObject([("a", 1)])))
    #expect(value["tagged"] == "5")
  }

  @Test func settingsOnTheCommandLine() throws {
    var object = JSONObject([("seed", 1)])
    for setting in [
      "seed=2", "learning_rate=1e-4", "lora.target_modules=[query, value]", "output_dir=a=b: c",
      "labels=['1', x]", "max_steps=-1", "text_column=\"12\"", "empty=",
    ] {
      try YAMLReader.apply(setting, to: &object)
    }
    #expect(object["seed"] == 2 && object["learning_rate"] == .double(1e-4))
    #expect(object["lora"]?["target_modules"] == ["query", "value"])
    #expect(object["output_dir"] == "a=b: c" && object["labels"] == ["1", "x"])
    #expect(object["max_steps"] == -1 && object["text_column"] == "12")
    #expect(object["empty"] == JSONValue.null)
    for wrong in ["seed", "=3", "a..b=1", "seed.x=1", "labels=[1"] {
      let error = #expect(throws: PEFTError.self) { try YAMLReader.apply(wrong, to: &object) }
      #expect(error?.location?.hasPrefix("--set") == true, "\(wrong)")
    }
  }

  @Test func errorsNameFileAndLine() throws {
    let folder = try TemporaryFolder()
    func failure(_ text: String) throws -> String {
      try FileSystem.write(folder.file("run.yaml"), text)
      let error = #expect(throws: PEFTError.self) {
        _ = try YAMLReader.object(file: folder.file("run.yaml"))
      }
      return error.map { "\($0)" } ?? ""
    }
    #expect(try failure("model: a\nlabels: [1, 2\n").contains("run.yaml: not valid YAML: line 3"))
    #expect(try failure("seed: 1\nseed: 2\n").contains("the key 'seed' occurs twice"))
    #expect(try failure("- a\n- b\n").contains("holds a list, a mapping of settings was expected"))
    #expect(try failure("# nothing\n").contains("holds no settings"))
    #expect(try failure("a: *missing\n").contains("not valid YAML"))
    #expect(try failure("[a]: 1\n").contains("a key must be plain text"))
  }
}
