import PEFTSupport

/// What a model is trained for, and what that adds to an adapter.
///
/// The six tasks of peft are predefined; a third party may make others and register them, with a
/// ``TaskBehavior`` that says how such a task is trained.
public struct TaskType: Sendable {
  /// peft's name, as `adapter_config.json` has it.
  public let name: String
  /// The class name that peft prints around a model of this task.
  public let modelClassName: String
  /// The end of the class names of models for this task, as config.json's `architectures` have
  /// them: "ForTokenClassification"; empty for the model without a head.
  public let architectureSuffix: String
  /// Modules that are trained and saved in full when the model has them: new heads.
  public let savedModules: [String]
  /// What is minimised, in words; `nil` for a task that has no loss.
  public let loss: String?
  /// The metric by which evaluations are compared unless a run names another.
  public let defaultMetric: String
  /// How it is trained, for tasks that are not peft's.
  public let behavior: (any TaskBehavior)?

  /// Creates a task type.
  public init(
    _ name: String, modelClassName: String, architectureSuffix: String = "",
    savedModules: [String] = [], loss: String? = nil, defaultMetric: String = "loss",
    behavior: (any TaskBehavior)? = nil
  ) {
    self.name = name
    self.modelClassName = modelClassName
    self.architectureSuffix = architectureSuffix
    self.savedModules = savedModules
    self.loss = loss
    self.defaultMetric = defaultMetric
    self.behavior = behavior
  }

  /// Labels for a sequence: one class, several, or numbers.
  public static let sequenceClassification = TaskType(
    "SEQ_CLS", modelClassName: "PeftModelForSequenceClassification",
    architectureSuffix: "ForSequenceClassification", savedModules: ["classifier", "score"],
    loss: "cross-entropy of the class; binary cross-entropy of each label; mean squared error",
    defaultMetric: "accuracy")
  /// Next-token prediction.
  public static let causalLM = TaskType(
    "CAUSAL_LM", modelClassName: "PeftModelForCausalLM", architectureSuffix: "ForCausalLM",
    loss: "cross-entropy of the next token")
  /// Text to text.
  public static let seq2SeqLM = TaskType(
    "SEQ_2_SEQ_LM", modelClassName: "PeftModelForSeq2SeqLM",
    architectureSuffix: "ForConditionalGeneration", loss: "cross-entropy of the target's tokens")
  /// One label for each token.
  public static let tokenClassification = TaskType(
    "TOKEN_CLS", modelClassName: "PeftModelForTokenClassification",
    architectureSuffix: "ForTokenClassification", savedModules: ["classifier", "score"],
    loss: "cross-entropy of each token's class", defaultMetric: "accuracy")
  /// A span of the context.
  public static let questionAnswering = TaskType(
    "QUESTION_ANS", modelClassName: "PeftModelForQuestionAnswering",
    architectureSuffix: "ForQuestionAnswering", savedModules: ["qa_outputs"],
    loss: "mean of the cross-entropies of the first and the last token", defaultMetric: "f1")
  /// Hidden states.
  public static let featureExtraction = TaskType(
    "FEATURE_EXTRACTION", modelClassName: "PeftModelForFeatureExtraction")

  /// The tasks of peft.
  public static let standard: [TaskType] = [
    .sequenceClassification, .seq2SeqLM, .causalLM, .tokenClassification, .questionAnswering,
    .featureExtraction,
  ]
}

/// A task is its name: one that replaces another in a registry is equal to it.
extension TaskType: Hashable {
  /// Whether the names are equal.
  public static func == (one: TaskType, other: TaskType) -> Bool { one.name == other.name }

  /// Hashes the name.
  public func hash(into hasher: inout Hasher) { hasher.combine(name) }
}

/// What a task type brings along for the targets above this one: `Training` asks for its
/// `TrainableTask`, another program may ask for a protocol of its own.
public protocol TaskBehavior: Sendable {}

/// The task types that a program knows. A value, part of ``TunerRegistry``.
public struct TaskTypeRegistry: Sendable {
  private var types: [String: TaskType]

  /// Creates a registry of peft's task types.
  public init() {
    types = Dictionary(uniqueKeysWithValues: TaskType.standard.map { ($0.name, $0) })
  }

  /// Adds a task type, or replaces the one of its name.
  public mutating func register(_ type: TaskType) { types[type.name] = type }

  /// The names of the task types, sorted.
  public var names: [String] { types.keys.sorted() }

  /// The task type of a name.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`, listing the known ones.
  public func type(named name: String) throws(PEFTError) -> TaskType {
    guard let type = types[name] else {
      throw PEFTError(
        .invalidConfiguration, "invalid task type: '\(name)'",
        remedy: "It must be one of \(names.joined(separator: ", ")).")
    }
    return type
  }

  /// The task type of the first class name that ends as one of them does; that with the longest
  /// such end.
  ///
  /// - Parameter architectures: Class names, as config.json's `architectures` list them.
  public func type(ofArchitectures architectures: [String]) -> TaskType? {
    for name in architectures {
      let fitting = types.values.filter {
        !$0.architectureSuffix.isEmpty && name.hasSuffix($0.architectureSuffix)
      }
      if let best = fitting.max(by: {
        ($0.architectureSuffix.count, $1.name) < ($1.architectureSuffix.count, $0.name)
      }) {
        return best
      }
    }
    return nil
  }
}
