import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// What conversions between the methods refuse, with the adapter or the module, and the model as it
/// was.
struct ConversionErrorTests {
  private static func model(
    _ weight: any WeightMatrix, registry: TunerRegistry = GoldenTests.registry
  ) -> PeftModel {
    let host = Linear(
      HostParameters(weight: .matrix(weight), bias: nil), inputFeatures: weight.columns,
      outputFeatures: weight.rows)
    return PeftModel(
      SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: registry)
  }

  private static let weight = Tensor.normal(
    [8, 12], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))

  private static func lora(
    rank: Int = 2, _ change: (inout LoRAConfig) -> Void = { _ in }
  ) -> LoRAConfig {
    var config = LoRAConfig(
      rank: rank, targets: TargetSelection(.list(["layer"])), initialization: .random)
    change(&config)
    return config
  }

  private static func edora(_ change: (inout EDoRAConfig) -> Void = { _ in }) -> EDoRAConfig {
    var config = EDoRAConfig(
      rank: 3, alpha: 6, targets: TargetSelection(.list(["layer"])), sigma: 0.3)
    change(&config)
    return config
  }

  /// The first adapter is active, and not trained though it is.
  private static func adapted(
    _ config: any TunerConfig, _ weight: any WeightMatrix = DenseMatrix(Self.weight)
  ) throws -> PeftModel {
    let peft = model(weight)
    try peft.add("first", any: config, seed: 1)
    try peft.setTrainable(["first"], false)
    return peft
  }

  @Test func requests() throws {
    let peft = try Self.adapted(Self.edora())
    try peft.refuses("Adapter nobody not found.", .invalidAdapter) {
      try peft.convert("nobody", to: .lora, as: "new")
    }
    try peft.refuses(
      "Adapter with name 'first' already exists.", .invalidAdapter, isPefts: true
    ) { try peft.convert("first", to: .lora, as: "first") }
    for form in [AdapterForm.dora, .edora] {
      try peft.refuses(
        "the change has rank 3 and keeps it; a rank of 5 cannot be had", .invalidConfiguration,
        at: "first"
      ) { try peft.convert("first", to: form, as: "new", rank: 5) }
    }
    for form in [AdapterForm.lora, .dora] {
      try peft.refuses(
        "an adapter of \(form.rawValue) has no compact form", .invalidConfiguration, at: "first"
      ) { try peft.convert("first", to: form, as: "new", isCompact: true) }
    }
    for rank in [0, -1] {
      try peft.refuses(
        "`r` should be a positive integer value but the value passed is \(rank)",
        .invalidConfiguration, isPefts: true
      ) { try peft.convert("first", to: .lora, as: "new", rank: rank) }
    }
    try peft.refuses(
      "'r' is 9, but a weight [8, 12] has only 8 singular vectors", .invalidConfiguration,
      at: "layer"
    ) { try peft.convert("first", to: .loraXS, as: "new", rank: 9) }
  }

  @Test func recipesWithoutR() throws {
    let peft = try Self.adapted(Self.edora { $0.reconstruction.hasLatent = false })
    try peft.refuses(
      "the recipe has no R ('r_squared': false) that a change could go into", .unsupported,
      at: "layer"
    ) { try peft.convert("first", to: .loraXS, as: "new") }
    try peft.refuses("'compact' needs 'r_squared': true", .invalidConfiguration) {
      try peft.convert("first", to: .edora, as: "new", isCompact: true)
    }
    // The way round that the remedy names.
    try peft.convert("first", to: .dora, as: "dora")
    try peft.convert("dora", to: .loraXS, as: "new")
  }

  /// A and B that the recipe does not make again.
  @Test func compactForms() throws {
    let peft = try Self.adapted(Self.edora())
    for place in 0..<2 {
      let parameter = try peft.tensors(of: "first")[place].parameter
      let good = parameter.value
      parameter.assign(good.scaled(by: 1.1))
      try peft.refuses(
        "A and B are not those that the recipe makes of this weight, so they cannot be left out",
        .unsupported, at: "layer"
      ) { try peft.convert("first", to: .edora, as: "new", isCompact: true) }
      parameter.assign(good)
    }
    try peft.convert("first", to: .edora, as: "new", isCompact: true)
  }

  /// A weight of rank 2, and none.
  @Test func weightsOfLowRank() throws {
    let left = Self.weight.columnRange(0..<2)
    let low = linear(left, Self.weight.transposed().columnRange(2..<4))
    for weight in [low, .zeros([8, 12])] {
      let peft = try Self.adapted(Self.lora(rank: 3), DenseMatrix(weight))
      for form in [AdapterForm.edora, .loraXS] {
        try peft.refuses(
          "the weight has fewer than 3 singular vectors that A and B could be made of",
          .numericalFailure, at: "layer"
        ) { try peft.convert("first", to: form, as: "new") }
      }
    }
    let peft = try Self.adapted(Self.lora(rank: 3), DenseMatrix(low))
    try peft.convert("first", to: .loraXS, as: "new", rank: 2)
  }

  @Test func describedModels() throws {
    let peft = try Self.adapted(
      Self.lora(), ShapeOnlyMatrix(rows: 8, columns: 12, format: "float32"))
    for form in [AdapterForm.dora, .loraXS] {
      try peft.refuses(
        "this conversion needs the base model's weights", .invalidState, at: "layer"
      ) { try peft.convert("first", to: form, as: "new") }
    }
  }

  /// Layers that are not made of two factors, of LoRA and of others.
  @Test func otherLayers() throws {
    let text = "the adapter's layer is not made of factors that can be converted"
    let fused = try Self.adapted(Self.lora { $0.enabledParts = [true, false] })
    try fused.refuses(text, .unsupported, at: "layer") {
      try fused.convert("first", to: .lora, as: "new")
    }
    try fused.refuses(
      "'use_dora' is not supported together with 'enable_lora'", .unsupported
    ) { try fused.convert("first", to: .dora, as: "new") }
    try fused.refuses("'enable_lora' is not supported by this method", .unsupported) {
      try fused.convert("first", to: .edora, as: "new")
    }

    var registry = GoldenTests.registry
    registry.register(OtherTuner.self)
    try registry.prepend(OtherDispatcher(), to: LoRATuner.self)
    let peft = Self.model(DenseMatrix(Self.weight), registry: registry)
    try peft.add("first", Self.lora())
    try peft.setTrainable(["first"], false)
    try peft.add("other", Self.lora())
    try peft.add("foreign", OtherConfig())
    for (source, name) in [("other", "new"), ("first", "other2")] {
      try peft.refuses(text, .unsupported, at: "layer") {
        try peft.convert(source, to: .lora, as: name)
      }
    }
    try peft.refuses(
      "an adapter of the method TEST_OTHER cannot be converted", .unsupported, at: "foreign"
    ) { try peft.convert("foreign", to: .lora, as: "new") }
  }
}

/// A method of its own, and its layers also for LoRA's adapters that are called so.
private enum OtherTuner: Tuner {
  typealias Config = OtherConfig
  static let peftType = "TEST_OTHER"
  static let modelTypeName = "OtherModel"
  static let dispatchers: [any Dispatcher] = [OtherDispatcher()]
}

private struct OtherConfig: TunerConfig {
  var taskType: String?
  var baseModel: String?
  var targets = TargetSelection(.list(["layer"]))
  var modulesToSave: [String] = []
  var unknownKeys = JSONObject()

  init() {}
  init(_ object: JSONObject) throws(PEFTError) {}
  var object: JSONObject { JSONObject([("peft_type", "TEST_OTHER")] + targets.members) }
}

private struct OtherDispatcher: Dispatcher {
  var supports: String { "Linear" }
  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    site.config is OtherConfig || site.adapter.hasPrefix("other") ? OtherLayer() : nil
  }
}

private final class OtherLayer: TunerLayer {
  let parameters = [AdapterParameter("other", Parameter(.zeros([1])))]
  func contribute(_ call: LayerCall, to sum: inout Tensor) {}
  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {}
  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule { base }
}
