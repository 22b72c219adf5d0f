import LayerTestSupport
import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import PEFTCore

/// What the framework refuses whatever the method is, with the model as it was before.
struct RefusalTests {
  private func expect(
    _ peft: PeftModel, _ text: String, _ code: PEFTError.Code,
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
  ) throws {
    let before = try ModelState(peft)
    let error = #expect(throws: PEFTError.self, sourceLocation: sourceLocation) { try body() }
    #expect(error?.description == text, sourceLocation: sourceLocation)
    #expect(error?.code == code, sourceLocation: sourceLocation)
    #expect(try ModelState(peft).changes(since: before) == [], sourceLocation: sourceLocation)
  }

  /// A second method with the `peft_type` of the first.
  private enum OtherTuner: Tuner {
    typealias Config = DeltaConfig
    static let peftType = "TEST_DELTA"
    static let methodName = "other"
    static let modelTypeName = "OtherModel"
    static let dispatchers: [any Dispatcher] = [CheckedDispatcher()]
    static func accepts(_ config: JSONObject) -> Bool { config["flag"] == true }
  }

  private func fixture() throws -> Fixture {
    var registry = TunerRegistry()
    registry.register(DeltaTuner.self)
    registry.register(OtherTuner.self)
    return try Fixture(registry: registry)
  }

  private func other(_ name: String) throws -> DeltaConfig {
    var config = DeltaConfig(.list([name]))
    config.unknownKeys["flag"] = true
    return config
  }

  // MARK: Methods

  @Test func exchangesNeedOneMethod() throws {
    let folder = try TemporaryFolder()
    let fixture = try fixture()
    let peft = fixture.peft
    try peft.add("a", DeltaConfig(.list(["up"])), seed: 1)
    try peft.add("b", try other("up"), seed: 2)
    try peft.save(folder("b"), adapter: "b")
    try expect(
      peft,
      "\(folder("b"))/adapter_config.json: the adapter 'a' is of the method test_delta, the one in "
        + "the folder of other. Load it as an adapter of its own.", .invalidConfiguration
    ) { try peft.hotSwap("a", from: folder("b")) }
    try expect(
      peft, "Adapter c not found. There are: a, b.", .invalidAdapter
    ) { try peft.hotSwap("c", from: folder("b")) }
    try FileSystem.write(
      folder("b/adapter_config.json"), #"{"peft_type": "TEST_DELTA", "gain": true}"#)
    try expect(
      peft, "\(folder("b"))/adapter_config.json: 'gain' is a Boolean (true), a number was expected",
      .invalidConfiguration
    ) { try peft.hotSwap("a", from: folder("b")) }
    try FileSystem.write(folder("b/adapter_config.json"), #"{"peft_type": "OLDER"}"#)
    try expect(
      peft,
      "\(folder("b"))/adapter_config.json: Incompatible PEFT types found: TEST_DELTA and OLDER. Load "
        + "it as an adapter of its own.", .invalidConfiguration
    ) { try peft.hotSwap("a", from: folder("b")) }
  }

  @Test func methodsWithoutScalingsAndCombinations() throws {
    let peft = try fixture().peft
    try peft.add("a", DeltaConfig(.list(["up"])), seed: 1)
    try peft.add("b", DeltaConfig(.list(["up"])), seed: 2)
    let text =
      "mlp.up: the adapter 'a' has no scaling that can be changed. Its method, test_delta, has none."
    for call in [
      { try peft.setScale("a", 2) }, { try peft.scaleLayers(by: 2) }, { try peft.unscaleLayers() },
    ] as [() throws -> Void] { try expect(peft, text, .unsupported, call) }
    try expect(
      peft,
      "adapters of the methods TEST_DELTA cannot be combined. Convert them first: those with "
        + "magnitudes to DoRA, which keeps their change, the others to LoRA.",
      .unsupported
    ) { try peft.combine(["a", "b"], weights: [1, 1], into: "c", Combination(.cat)) }
  }

  // MARK: Names

  @Test func namesThatNoAdapterHas() throws {
    let peft = try fixture().peft
    try expect(peft, "Adapter a does not exist. There are none.", .invalidAdapter) {
      try peft.delete("a")
    }
    try peft.add("a", DeltaConfig(.list(["up"])), seed: 1)
    try expect(peft, "Adapter b does not exist. There are: a.", .invalidAdapter) {
      try peft.delete("b")
    }
    let names = "There are: a."
    for call in [
      { try peft.setActive(["a", "b"]) }, { try peft.merge(["a", "b"]) },
      { try peft.setTrainable(["a", "b"], false) }, { try peft.rename("b", to: "c") },
      { _ = try peft.state(of: "b") }, { _ = try peft.values(of: "b") },
      { _ = try peft.plainState(of: "b") }, { _ = try peft.targetReport(of: "b") },
      { _ = try peft.adaptedLayers(of: "b") }, { _ = try peft.taskType("b") },
    ] as [() throws -> Void] {
      try expect(peft, "Adapter b not found. \(names)", .invalidAdapter, call)
    }
    try expect(
      peft, "Trying to infer with non-existing adapter(s): b, c. \(names)", .invalidAdapter
    ) { _ = try peft.sequenceAdapters(["c", "a", "b", "__base__"]) }
  }

  // MARK: Values

  /// Where a layer refuses what was read, the layers before it have taken theirs, and computed more.
  @Test func layersThatRefuseWhatWasRead() throws {
    let peft = try fixture().peft
    var config = try other("up")
    config.targets.modules = .list(["up", "down"])
    try peft.add("a", config, seed: 1)
    var items: [(key: String, tensor: Tensor)] = []
    for tensor in try peft.tensors(of: "a") where tensor.isStored {
      let sign: Float = tensor.key.contains("down") ? -1 : 1
      items.append((tensor.key, Tensor(repeating: sign, shape: tensor.shape)))
    }
    let state = try TensorTable(items, path: "the state")
    try expect(peft, "the state, 'mlp.down': is negative", .invalidAdapter) {
      try peft.setState(state, of: "a")
    }
    for (place, item) in items.enumerated() {
      items[place].tensor = Tensor(repeating: 1, shape: item.tensor.shape)
    }
    try peft.setState(try TensorTable(items, path: "the state"), of: "a")
    let derived = try peft.tensors(of: "a").filter { !$0.isStored }.map(\.value.scalars)
    #expect(derived == [[2], [2]])
  }

  /// A failed load decides nothing about the adapters that are there.
  @Test func failedLoadsLeaveTrainabilityAlone() throws {
    let folder = try TemporaryFolder()
    let peft = try fixture().peft
    try peft.add("a", DeltaConfig(.list(["up"])), seed: 1)
    try peft.add("b", DeltaConfig(.list(["down"])), seed: 2)
    try peft.save(folder("b"), adapter: "b")
    let weights = folder("b/adapter_model.safetensors")
    try SafetensorsWriter.write([], to: weights)
    try peft.setTrainable(["a"], false)
    try peft.setTrainable(["b"], true)
    let key = "base_model.model.mlp.down.test_delta.weight"
    try expect(
      peft,
      "\(weights): the adapter's tensors do not fit the model; missing: '\(key)'. The adapter was "
        + "made for another base model or task, or the file is incomplete.", .missingTensor
    ) { try peft.load(folder("b"), as: "c") }
    // Taking away an adapter that is not active decides nothing either.
    try peft.add("c", DeltaConfig(.list(["down"])))
    try peft.delete("c")
    #expect(try !peft.tensors(of: "a")[0].parameter.isTrainable)
    #expect(try peft.tensors(of: "b")[0].parameter.isTrainable)
  }
}

/// Makes layers that compute a parameter from what was read, and refuse negative values.
private struct CheckedDispatcher: Dispatcher {
  let supports = "Linear"

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.host is Linear else { return nil }
    return CheckedLayer(site)
  }
}

private final class CheckedLayer: TunerLayer {
  private let delta: Parameter
  private let derived = Parameter(.zeros([1]))

  init(_ site: AdapterSite) {
    delta = Parameter(.zeros([site.host.outputFeatures, site.host.inputFeatures]))
  }

  var parameters: [AdapterParameter] {
    var own = AdapterParameter("derived", derived, isTrained: false)
    own.isStored = false
    return [AdapterParameter("test_delta.weight", delta), own]
  }

  func didLoad(on parameters: HostParameters) throws(PEFTError) {
    derived.assign(delta.value.rowRange(0..<1).scaled(by: 2).columnRange(0..<1).reshaped([1]))
    if derived.value.scalars[0] < 0 { throw PEFTError(.invalidAdapter, "is negative") }
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {}

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {}

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule { base }
}
