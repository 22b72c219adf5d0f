import PEFT
import Training

/// The task of a command and the head of the model that serves it.
struct TaskChoice {
  let task: TaskType
  let head: ModelHead

  /// Decides: the given name, else the task of the first adapter that has one, else the
  /// architecture in config.json.
  ///
  /// - Throws: ``PEFTError`` for a task that is unknown or not supported.
  init(
    _ configuration: ModelConfiguration, adapters: [AdapterFolder], name: String?,
    registry: TunerRegistry
  ) throws(PEFTError) {
    let recorded = adapters.lazy.compactMap { $0.config["task_type"]?.string }.first
    guard let chosen = name ?? recorded else {
      head = try ModelLoader.defaultHead(configuration)
      task = Self.task(of: head)
      return
    }
    let place = name == nil ? adapters.first?.configPath ?? "--task" : "--task"
    do { task = try registry.taskType(chosen) } catch { throw error.located(at: place) }
    switch task {
    case .sequenceClassification:
      head = .sequenceClassification(labels: try Self.labels(configuration, adapters))
    case .causalLM: head = .causalLM
    case .featureExtraction:
      // An adapter for hidden states may have been made on a model with a head; its keys tell.
      let prefix = "base_model.model.\(try ModelLoader.basePrefix(configuration))."
      let hasHead =
        name == nil
        && adapters.contains { $0.tensors.names.contains { $0.hasPrefix(prefix) } }
      head = hasHead ? try ModelLoader.defaultHead(configuration) : .none
    default:
      throw PEFTError(
        .unsupported, "the task \(task.name) is not supported", at: place,
        remedy: "Supported: SEQ_CLS, CAUSAL_LM, FEATURE_EXTRACTION.")
    }
  }

  /// The task that a head is for.
  static func task(of head: ModelHead) -> TaskType {
    switch head {
    case .none: return .featureExtraction
    case .sequenceClassification: return .sequenceClassification
    case .causalLM: return .causalLM
    }
  }

  /// The number of labels: that of an adapter's own classifier, else config.json's.
  private static func labels(
    _ configuration: ModelConfiguration, _ adapters: [AdapterFolder]
  ) throws(PEFTError) -> Int {
    if let count = adapters.lazy.compactMap(\.classCount).first { return count }
    return try ModelLoader.labelCount(configuration)
  }
}
