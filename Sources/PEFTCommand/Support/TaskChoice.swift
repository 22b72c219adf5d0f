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
    let source = adapters.first { $0.config["task_type"]?.string != nil }
    guard let chosen = name ?? source?.config["task_type"]?.string else {
      head = try ModelLoader.defaultHead(configuration)
      task = Self.task(of: head)
      return
    }
    let place = name == nil ? source?.configPath ?? "--task" : "--task"
    let type: TaskType
    do { type = try registry.taskType(chosen) } catch { throw error.located(at: place) }
    guard type == .featureExtraction else {
      task = type
      do { head = try type.head(labelCount: Self.labels(configuration, adapters)) } catch {
        throw error.located(at: place)
      }
      return
    }
    // An adapter for hidden states may have been made on a model with a head: then its keys have
    // the name of the base before them. As in peft the head's outputs are those of the model; where
    // hidden states are asked for, it is there for the names' sake.
    let prefix = FileKey.key("\(try ModelLoader.basePrefix(configuration)).")
    let hasHead = adapters.contains { $0.tensors.names.contains { $0.hasPrefix(prefix) } }
    head = hasHead ? try ModelLoader.defaultHead(configuration) : .none
    task = name == nil ? Self.task(of: head) : type
  }

  /// The task that a head is for.
  static func task(of head: ModelHead) -> TaskType {
    switch head {
    case .none: return .featureExtraction
    case .sequenceClassification: return .sequenceClassification
    case .tokenClassification: return .tokenClassification
    case .questionAnswering: return .questionAnswering
    case .causalLM: return .causalLM
    case .seq2SeqLM: return .seq2SeqLM
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
