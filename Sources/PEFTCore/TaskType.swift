/// What a model is trained for, and what that adds to an adapter.
///
/// The six tasks of peft are predefined; a third party may make others and register them.
public struct TaskType: Sendable, Hashable {
  /// peft's name, as `adapter_config.json` has it.
  public let name: String
  /// The class name that peft prints around a model of this task.
  public let modelClassName: String
  /// Modules that are trained and saved in full when the model has them: new heads.
  public let savedModules: [String]
  /// The metric by which evaluations are compared unless a run names another.
  public let defaultMetric: String

  /// Creates a task type.
  public init(
    _ name: String, modelClassName: String, savedModules: [String] = [],
    defaultMetric: String = "loss"
  ) {
    self.name = name
    self.modelClassName = modelClassName
    self.savedModules = savedModules
    self.defaultMetric = defaultMetric
  }

  /// One label for a sequence.
  public static let sequenceClassification = TaskType(
    "SEQ_CLS", modelClassName: "PeftModelForSequenceClassification",
    savedModules: ["classifier", "score"], defaultMetric: "accuracy")
  /// Next-token prediction.
  public static let causalLM = TaskType("CAUSAL_LM", modelClassName: "PeftModelForCausalLM")
  /// Text to text.
  public static let seq2SeqLM = TaskType("SEQ_2_SEQ_LM", modelClassName: "PeftModelForSeq2SeqLM")
  /// One label for each token.
  public static let tokenClassification = TaskType(
    "TOKEN_CLS", modelClassName: "PeftModelForTokenClassification",
    savedModules: ["classifier", "score"], defaultMetric: "accuracy")
  /// A span of the context.
  public static let questionAnswering = TaskType(
    "QUESTION_ANS", modelClassName: "PeftModelForQuestionAnswering",
    savedModules: ["qa_outputs"], defaultMetric: "f1")
  /// Hidden states.
  public static let featureExtraction = TaskType(
    "FEATURE_EXTRACTION", modelClassName: "PeftModelForFeatureExtraction")

  /// The tasks of peft.
  public static let standard: [TaskType] = [
    .sequenceClassification, .seq2SeqLM, .causalLM, .tokenClassification, .questionAnswering,
    .featureExtraction,
  ]
}
