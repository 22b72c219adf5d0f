import NN
import PEFTSupport
import Tensors
import Testing

@testable import PEFTCore

/// A tuner that shares its peft_type with another and takes the configs that have its flag.
private enum FlaggedTuner: Tuner {
  typealias Config = DeltaConfig
  static let peftType = "TEST_DELTA"
  static let modelTypeName = "FlaggedModel"
  static let dispatchers: [any Dispatcher] = [DeltaDispatcher(label: "flagged")]
  static func accepts(_ config: JSONObject) -> Bool { config["flag"] == true }
}

/// The registry, the order of dispatchers, and configs.
struct RegistryTests {
  private func label(_ peft: PeftModel, _ place: Linear) -> String? {
    let stack = place.stack
    return (stack?.layers.first?.layer as? DeltaLayer)?.label
  }

  @Test func firstDispatcherThatMatchesWins() throws {
    var registry = TunerRegistry()
    registry.register(DeltaTuner.self)
    try registry.prepend(DeltaDispatcher(label: "older"), to: DeltaTuner.self)
    try registry.prepend(DeltaDispatcher(label: "for six", handles: 6), to: DeltaTuner.self)
    let fixture = try Fixture(registry: registry)
    try fixture.peft.add("a", DeltaConfig(.allLinear))
    #expect(label(fixture.peft, fixture.model.up) == "for six")
    #expect(label(fixture.peft, fixture.model.down) == "older")
    let error = #expect(throws: PEFTError.self) {
      try fixture.peft.add("b", DeltaConfig(.list(["embed"])))
    }
    #expect(
      error?.message
        == "Target module Embedding(9, 4) is not supported. Currently, only the following modules "
        + "are supported: Linear (for six), Linear (older), Linear (default).")
  }

  @Test func dispatchersErrorsNameTheModule() throws {
    struct Refusing: Dispatcher {
      let supports = "nothing"
      func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
        throw PEFTError(.invalidConfiguration, "does not fit")
      }
    }
    var registry = TunerRegistry()
    registry.register(DeltaTuner.self)
    try registry.prepend(Refusing(), to: DeltaTuner.self)
    let fixture = try Fixture(registry: registry)
    let error = #expect(throws: PEFTError.self) {
      try fixture.peft.add("a", DeltaConfig(.list(["up"])))
    }
    #expect(error?.description == "mlp.up: does not fit")
    #expect(fixture.model.up.adapters == nil)
  }

  @Test func registryIsAValue() throws {
    let empty = TunerRegistry()
    var registry = empty
    registry.register(DeltaTuner.self)
    registry.register(DeltaTuner.self)
    #expect(registry.peftTypes == ["TEST_DELTA"] && empty.peftTypes.isEmpty)
    var copy = empty
    let error = #expect(throws: PEFTError.self) {
      try copy.prepend(DeltaDispatcher(label: "x"), to: DeltaTuner.self)
    }
    #expect(error?.message == "the tuner TEST_DELTA is not registered")
  }

  @Test func laterTunersAreAskedFirst() throws {
    var registry = TunerRegistry()
    registry.register(DeltaTuner.self)
    registry.register(FlaggedTuner.self)
    let plain = try registry.entry(for: JSONObject([("peft_type", "TEST_DELTA")]))
    let flagged = try registry.entry(
      for: JSONObject([("peft_type", "TEST_DELTA"), ("flag", true)]))
    #expect(plain.tuner == DeltaTuner.self && flagged.tuner == FlaggedTuner.self)
    for (object, message) in [
      (JSONObject([("peft_type", "OTHER")]), "no registered tuner handles peft_type 'OTHER'"),
      (JSONObject([("r", 8)]), "the key 'peft_type' is missing"),
    ] {
      let error = #expect(throws: PEFTError.self) { try registry.config(object) }
      #expect(error?.message == message)
    }
  }

  @Test func taskTypesCanBeAdded() throws {
    var registry = TunerRegistry()
    registry.register(DeltaTuner.self)
    #expect(try registry.taskType("QUESTION_ANS").savedModules == ["qa_outputs"])
    #expect(TaskType.standard.count == 6)
    registry.register(TaskType("POETRY", modelClassName: "PeftPoet", savedModules: ["classifier"]))
    let fixture = try Fixture(registry: registry)
    try fixture.peft.add("a", DeltaConfig(.list(["up"]), taskType: "POETRY"))
    #expect(fixture.peft.printed.typeName == "PeftPoet")
    #expect(try fixture.peft.taskType("a")?.name == "POETRY")
    #expect(try fixture.peft.tensors(of: "a").count == 3)
  }

  // MARK: Configs

  @Test func unknownKeysAreKeptAndUnsupportedOnesRefused() throws {
    let registry = try Fixture().peft.registry
    let object = try #require(
      try JSONValue(
        parsing:
          #"{"peft_type": "TEST_DELTA", "gain": 2, "target_modules": ["up"], "new": {"x": [1]}}"#
      ).object)
    let config = try registry.config(object)
    #expect(config.unknownKeys == (["new": ["x": [1]]] as JSONValue).object)
    #expect(config.object["new"] == ["x": [1]])
    for (value, isRefused) in [
      (false as JSONValue, false), (nil, false), ([], false), (true, true), (1, true),
    ] {
      var changed = object
      changed["secret"] = value
      if isRefused {
        let error = #expect(throws: PEFTError.self) { try registry.config(changed) }
        #expect(error?.code == .unsupported)
        #expect(error?.message == "'secret': \(value.text()) is not supported")
      } else {
        _ = try registry.config(changed)
      }
    }
  }

  @Test func configMembersAreTyped() throws {
    let members: JSONValue = [
      "i": 3, "f": 2.0, "s": "x", "b": true, "n": nil, "l": ["a", "b"], "d": ["k": 1.5],
    ]
    var reader = ConfigReader(try #require(members.object))
    #expect(try reader.int("i") == 3 && reader.int("f") == 2 && reader.int("n") == nil)
    #expect(try reader.double("i") == 3 && reader.bool("b") == true && reader.string("s") == "x")
    #expect(try reader.strings("l") == ["a", "b"] && reader.strings("s") == ["x"])
    #expect(try reader.ints("i") == [3])
    let numbers = try #require(try reader.numbers("d"))
    #expect(numbers.map(\.key) == ["k"] && numbers.map(\.value) == [1.5])
    #expect(reader.rest.keys.isEmpty)
    for (message, body) in [
      ("'s' is a string (\"x\"), an integer was expected", { _ = try $0.int("s") }),
      ("'b' is a Boolean (true), a number was expected", { _ = try $0.double("b") }),
      ("'i' is an integer (3), true or false was expected", { _ = try $0.bool("i") }),
      ("'i' is an integer (3), a string was expected", { _ = try $0.string("i") }),
      ("'i' is an integer (3), a mapping to numbers was expected", { _ = try $0.numbers("i") }),
    ] as [(String, (inout ConfigReader) throws -> Void)] {
      let error = #expect(throws: PEFTError.self) { try body(&reader) }
      #expect(error?.message == message && error?.code == .invalidConfiguration)
    }
  }
}
