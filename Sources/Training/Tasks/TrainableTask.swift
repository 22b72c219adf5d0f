import Models
import PEFTCore
import PEFTSupport
import Tensors

/// How a task is trained: the head that it needs, its data and its loss.
///
/// peft's tasks have theirs here. A third party's ``PEFTCore/TaskType`` brings one along as its
/// `behavior` and is then trained, evaluated and saved like the others once it is registered.
public protocol TrainableTask: TaskBehavior {
  /// What its data files may hold besides token ids; the first is assumed.
  var formats: [DataConfiguration.Format] { get }
  /// What its labels are attached to.
  var labelling: TaskLabelling { get }

  /// The head that it needs.
  ///
  /// - Parameter labelCount: Number of labels.
  func head(labelCount: Int) -> ModelHead

  /// Builds the model; the default loads the one with ``head(labelCount:)``.
  func loadModel(
    _ folder: String, labelCount: Int, options: ModelOptions
  ) throws(PEFTError) -> LoadedModel

  /// What is minimised, and what evaluations count.
  ///
  /// - Throws: ``PEFTError`` when the model has no head for it.
  func makeObjective(
    _ model: any TransformerModel, _ context: TaskContext
  ) throws(PEFTError) -> any Objective

  /// The examples of a file.
  ///
  /// - Throws: ``PEFTError`` with the line of what is wrong.
  func dataset(_ source: DataSource, _ builder: DatasetBuilder) throws(PEFTError) -> Dataset
}

extension TrainableTask {
  /// Loads the model with ``head(labelCount:)``; a head of another shape is replaced by a new one.
  ///
  /// - Throws: ``PEFTError`` as `ModelLoader.load(_:head:options:)`.
  public func loadModel(
    _ folder: String, labelCount: Int, options: ModelOptions
  ) throws(PEFTError) -> LoadedModel {
    var options = options
    options.replacesHead = true
    return try ModelLoader.load(folder, head: head(labelCount: labelCount), options: options)
  }
}

/// What the labels of a task are attached to.
public enum TaskLabelling: Sendable {
  /// There are none, or they are tokens.
  case none
  /// A sequence has a label, several, or numbers.
  case sequences
  /// Each token has a label.
  case tokens
}

/// What a task's loss may depend on besides the model.
public struct TaskContext: Sendable {
  /// The names of the labels, if they have names.
  public var labels: LabelSet?
  /// What a sequence classifier's numbers are.
  public var problem: ProblemType

  /// Creates a context.
  public init(labels: LabelSet? = nil, problem: ProblemType = .singleLabel) {
    self.labels = labels
    self.problem = problem
  }
}

extension TaskType {
  /// How it is trained.
  ///
  /// - Throws: ``PEFTError`` `unsupported` for a task that has no loss.
  func training() throws(PEFTError) -> any TrainableTask {
    if let own = behavior as? any TrainableTask { return own }
    switch self {
    case .sequenceClassification: return SequenceClassificationTask()
    case .tokenClassification: return TokenClassificationTask()
    case .questionAnswering: return QuestionAnsweringTask()
    case .causalLM: return CausalLMTask()
    case .seq2SeqLM: return Seq2SeqTask()
    default:
      throw PEFTError(
        .unsupported, "the task \(name) has no loss: it cannot be trained or evaluated",
        remedy: "Use another task, such as SEQ_CLS, TOKEN_CLS, QUESTION_ANS or CAUSAL_LM; "
          + "'peft forward' gives hidden states.")
    }
  }

  /// The head that a model needs for the task.
  ///
  /// - Parameter labelCount: Number of labels, for classifiers.
  /// - Throws: ``PEFTError`` `unsupported` for a third party's task that cannot be trained.
  public func head(labelCount: Int) throws(PEFTError) -> ModelHead {
    if self == .featureExtraction { return .none }
    return try training().head(labelCount: labelCount)
  }
}

/// SEQ_CLS.
struct SequenceClassificationTask: TrainableTask {
  var formats: [DataConfiguration.Format] { [.classification] }
  var labelling: TaskLabelling { .sequences }

  func head(labelCount: Int) -> ModelHead { .sequenceClassification(labels: labelCount) }

  func makeObjective(
    _ model: any TransformerModel, _ context: TaskContext
  ) throws(PEFTError) -> any Objective {
    guard let model = model as? any SequenceClassifier else {
      throw missing(model, .sequenceClassification)
    }
    switch context.problem {
    case .singleLabel: return ClassificationObjective(model)
    case .multiLabel: return MultiLabelObjective(model)
    case .regression: return RegressionObjective(model)
    }
  }

  func dataset(_ source: DataSource, _ builder: DatasetBuilder) throws(PEFTError) -> Dataset {
    source.format == .tokens
      ? try builder.tokens(source) { (record, example) throws(PEFTError) in
        try builder.label(&example, with: record, column: source.labelColumn, byName: false)
      }
      : try builder.sequences(source)
  }
}

/// TOKEN_CLS.
struct TokenClassificationTask: TrainableTask {
  var formats: [DataConfiguration.Format] { [.tokenClassification] }
  var labelling: TaskLabelling { .tokens }

  func head(labelCount: Int) -> ModelHead { .tokenClassification(labels: labelCount) }

  func makeObjective(
    _ model: any TransformerModel, _ context: TaskContext
  ) throws(PEFTError) -> any Objective {
    guard let model = model as? any TokenClassifier else {
      throw missing(model, .tokenClassification)
    }
    return TokenClassificationObjective(model, labels: context.labels)
  }

  func dataset(_ source: DataSource, _ builder: DatasetBuilder) throws(PEFTError) -> Dataset {
    source.format == .tokens
      ? try builder.tokens(source, labelsAreTokens: true) { (record, example) throws(PEFTError) in
        guard let labels = record.values["labels"]?.array else {
          throw record.missing("labels", setBy: "data_format")
        }
        guard labels.count == example.tokenIDs.count else {
          throw PEFTError(
            .invalidData,
            "'labels' has \(labels.count) elements, 'input_ids' has \(example.tokenIDs.count)",
            at: record.location)
        }
        example.labels = try builder.classes(
          labels, at: record.location, byName: false, allowsIgnored: true)
      }
      : try builder.words(source)
  }
}

/// QUESTION_ANS.
struct QuestionAnsweringTask: TrainableTask {
  var formats: [DataConfiguration.Format] { [.questionAnswering] }
  var labelling: TaskLabelling { .none }

  func head(labelCount: Int) -> ModelHead { .questionAnswering }

  func makeObjective(
    _ model: any TransformerModel, _ context: TaskContext
  ) throws(PEFTError) -> any Objective {
    guard let model = model as? any QuestionAnswerer else {
      throw missing(model, .questionAnswering)
    }
    return QuestionAnsweringObjective(model)
  }

  func dataset(_ source: DataSource, _ builder: DatasetBuilder) throws(PEFTError) -> Dataset {
    source.format == .tokens
      ? try builder.tokens(source) { (record, example) throws(PEFTError) in
        example.labels = try record.answerTokens(count: example.tokenIDs.count)
      }
      : try builder.questions(source)
  }
}

/// CAUSAL_LM.
struct CausalLMTask: TrainableTask {
  var formats: [DataConfiguration.Format] { [.text] }
  var labelling: TaskLabelling { .none }

  func head(labelCount: Int) -> ModelHead { .causalLM }

  func makeObjective(
    _ model: any TransformerModel, _ context: TaskContext
  ) throws(PEFTError) -> any Objective {
    guard let model = model as? any CausalLanguageModel else { throw missing(model, .causalLM) }
    return LanguageModelObjective(model)
  }

  func dataset(_ source: DataSource, _ builder: DatasetBuilder) throws(PEFTError) -> Dataset {
    guard source.format == .tokens else { return try builder.text(source) }
    let data = try builder.tokens(source, labelsAreTokens: true) {
      (record, example) throws(PEFTError) in
      let count = example.tokenIDs.count
      // Without labels of its own, padding is not learnt.
      example.labels =
        try record.integers("labels", count: count)
        ?? example.mask.map { zip(example.tokenIDs, $0).map { $1 == 0 ? ignoredLabel : $0 } }
        ?? example.tokenIDs
      try builder.checkLabels(example, at: record.location)
    }
    try builder.requireTargets(data.examples, source)
    return data
  }
}

/// SEQ_2_SEQ_LM: complete but for an architecture, which building the model says.
struct Seq2SeqTask: TrainableTask {
  var formats: [DataConfiguration.Format] { [.text] }
  var labelling: TaskLabelling { .none }

  func head(labelCount: Int) -> ModelHead { .seq2SeqLM }

  func makeObjective(
    _ model: any TransformerModel, _ context: TaskContext
  ) throws(PEFTError) -> any Objective {
    throw missing(model, .seq2SeqLM)
  }

  func dataset(_ source: DataSource, _ builder: DatasetBuilder) throws(PEFTError) -> Dataset {
    throw PEFTError(
      .unsupported, "no encoder-decoder architecture is implemented yet", at: source.path)
  }
}

/// The error for a model without a task's head.
private func missing(_ model: any TransformerModel, _ task: TaskType) -> PEFTError {
  PEFTError(.unsupported, "\(model.typeName) has no head for the task \(task.name)")
}
