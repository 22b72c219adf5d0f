import NN
import PEFTSupport
import Tensors

@testable import PEFTCore

/// A tuner as a third party writes it: a full change of the weight, ΔW = gain·D.
enum DeltaTuner: Tuner {
  typealias Config = DeltaConfig

  static let peftType = "TEST_DELTA"
  static let modelTypeName = "DeltaModel"
  static let dispatchers: [any Dispatcher] = [DeltaDispatcher(label: "default")]

  static func defaultTargets(modelType: String) -> TargetModules? {
    modelType == "tiny" ? .list(["up"]) : nil
  }
}

struct DeltaConfig: TunerConfig {
  var gain: Double
  var taskType: String?
  var baseModel: String?
  var targets: TargetSelection
  var modulesToSave: [String] = []
  var unknownKeys = JSONObject()

  init(
    _ modules: TargetModules?, gain: Double = 1, layers: [Int]? = nil, taskType: String? = nil,
    modulesToSave: [String] = []
  ) {
    self.gain = gain
    self.taskType = taskType
    self.modulesToSave = modulesToSave
    targets = TargetSelection(modules, layers: layers)
  }

  init(_ object: JSONObject) throws(PEFTError) {
    var reader = ConfigReader(object)
    _ = reader.value("peft_type")
    _ = reader.value("inference_mode")
    taskType = try reader.string("task_type")
    baseModel = try reader.string("base_model_name_or_path")
    targets = try TargetSelection(&reader)
    modulesToSave = try reader.strings("modules_to_save") ?? []
    gain = try reader.double("gain") ?? 1
    try reader.refuse("secret", unless: false)
    unknownKeys = reader.rest
    try validate()
  }

  var object: JSONObject {
    JSONObject(
      [
        ("peft_type", "TEST_DELTA"), ("task_type", taskType.map { .string($0) } ?? .null),
        ("base_model_name_or_path", baseModel.map { .string($0) } ?? .null),
        ("gain", .double(gain)),
        ("modules_to_save", .array(modulesToSave.map { .string($0) })),
      ] + targets.members + unknownKeys.members.map { ($0.key, $0.value) })
  }

  func validate() throws(PEFTError) {
    if gain < 0 {
      throw PEFTError(.invalidConfiguration, "'gain' is \(gain), it was to be positive")
    }
  }
}

/// Makes layers for linear hosts whose input is not `refused` wide.
struct DeltaDispatcher: Dispatcher {
  var label: String
  var handles: Int?
  var supports: String { "Linear (\(label))" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.host is Linear, let config = site.config as? DeltaConfig else { return nil }
    if let handles, site.host.outputFeatures != handles { return nil }
    return DeltaLayer(site, config, label)
  }
}

final class DeltaLayer: TunerLayer {
  let delta: Parameter
  let label: String
  private let gain: Float

  init(_ site: AdapterSite, _ config: DeltaConfig, _ label: String) {
    gain = Float(config.gain)
    self.label = label
    delta = Parameter(
      .normal(
        [site.host.outputFeatures, site.host.inputFeatures], deviation: 0.1,
        key: DropoutKey(seed: site.seed, stream: siteID(site.path))))
  }

  var parameters: [AdapterParameter] { [AdapterParameter("test_delta.weight", delta)] }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .features(let x) = call.input else { preconditionFailure() }
    sum.addProduct(x, delta.tensor, scale: gain)
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    let own = delta.value.rowRange(rows).scaled(by: gain).scalars
    block.withMutableSlice { for (i, value) in own.enumerated() { $0[i] += value } }
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    PrintedModule(
      "delta.Linear",
      children: [("base_layer", base)] + layers.map { ($0.adapter, PrintedModule("Delta")) })
  }
}

/// embed → up → silu → down, and a classifier on it.
final class TinyModel: Module {
  let embed: Embedding
  let up: Linear
  let down: Linear
  let classifier: Linear

  init(_ precision: WeightPrecision = .float32) throws {
    let builder = ModuleBuilder(RandomSource(seed: 1, deviation: 0.5, precision: precision))
    embed = try builder.embedding("embed", 9, 4)
    up = try builder.linear("mlp.up", 4, 6, bias: true)
    down = try builder.linear("mlp.down", 6, 4, bias: false)
    classifier = try builder.linear("classifier", 4, 3, bias: true)
  }

  func callAsFunction(_ ids: [Int32], _ context: ForwardContext) -> Tensor {
    let hidden = down(Activation.silu(up(embed(ids, context), context)), context)
    return classifier(hidden, context)
  }

  final class MLP: Module {
    let owner: TinyModel
    init(_ owner: TinyModel) { self.owner = owner }
    var typeName: String { "MLP" }
    var children: [(name: String, module: any Module)] {
      [("up", owner.up), ("act", Inert("SiLU")), ("down", owner.down)]
    }
  }

  var typeName: String { "TinyModel" }
  var children: [(name: String, module: any Module)] {
    [("embed", embed), ("mlp", MLP(self)), ("classifier", classifier)]
  }
}

/// A tiny model with a registry that knows the tuner of this file.
struct Fixture {
  let model: TinyModel
  let peft: PeftModel

  init(_ precision: WeightPrecision = .float32, registry: TunerRegistry? = nil) throws {
    model = try TinyModel(precision)
    var own = TunerRegistry()
    own.register(DeltaTuner.self)
    peft = PeftModel(
      model,
      info: BaseModelInfo(modelType: "tiny", nameOrPath: "tiny/model", outputHeads: ["classifier"]),
      registry: registry ?? own)
  }

  static let lengths = [3, 1, 2]
  static let ids: [Int32] = [1, 8, 0, 4, 2, 2]

  var context: ForwardContext { ForwardContext(SequenceLayout(lengths: Self.lengths)) }

  /// The output for a fixed batch.
  func output() -> [Float] {
    withoutGradients { model(Self.ids, context).scalars }
  }

  /// The output for the same batch with an adapter for each sequence.
  func output(_ adapters: [String]) throws -> [Float] {
    var context = context
    context.sequenceAdapters = try peft.sequenceAdapters(adapters)
    return withoutGradients { model(Self.ids, context).scalars }
  }
}

/// The largest difference of two lists.
func difference(_ a: [Float], _ b: [Float]) -> Float {
  a.count == b.count ? zip(a, b).map { abs($0 - $1) }.max() ?? 0 : .infinity
}
