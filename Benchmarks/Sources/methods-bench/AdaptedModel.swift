import BenchClock
import PEFT

/// Members of an adapter's settings.
typealias Members = KeyValuePairs<String, JSONValue>

/// The base with random weights, and how each method adapts it.
struct AdaptedModel {
  let settings: Settings
  let clock: BenchClock
  let loaded: LoadedModel
  let model: PeftModel

  init(_ settings: Settings) throws {
    self.settings = settings
    clock = settings.processor ? .processor : .monotonic
    var options = ModelOptions()
    options.precision = settings.precision
    options.randomWeights = true
    loaded = try ModelLoader.load(settings.folder, head: settings.task.head, options: options)
    model = PeftModel(loaded)
  }

  /// A method's settings: the same rank, alpha and targets for all.
  func config(_ method: String, adding members: Members = [:]) throws -> any TunerConfig {
    let modules = (settings.modules ?? settings.task.modules).split(separator: ",")
    var object = JSONObject([
      ("r", .int(settings.rank)), ("lora_alpha", .int(4 * settings.rank)),
      ("task_type", .string(settings.task.name)),
      ("target_modules", .array(modules.map { .string(String($0)) })),
    ])
    for (key, value) in members { object[key] = value }
    return try model.registry.config(model.registry.members(object, ofMethod: method))
  }
}
