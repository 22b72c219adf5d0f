import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import Tokenizers

/// A model with a trained adapter, for evaluation and prediction.
public struct AdaptedModel {
  /// The task.
  public let task: TaskType
  /// The model.
  public let model: PeftModel
  /// The base model.
  public let base: LoadedModel
  /// The classes, where they have names.
  public let labels: LabelSet?
  /// What the numbers of a sequence classifier are.
  public let problem: ProblemType
  /// Columns and lengths as the adapter was trained with, where its folder says.
  public let data: DataConfiguration
  let objective: any Objective
  private let outputCount: Int
  private let folder: String

  /// Loads a model and puts an adapter on it.
  ///
  /// - Parameters:
  ///   - folder: The model's folder.
  ///   - adapter: The adapter's folder; `nil` uses the model as it is.
  ///   - task: The task; the adapter's own unless given, else the model's.
  ///   - precision: What the base model's matrices are kept in.
  ///   - registry: The methods.
  /// - Throws: ``PEFTError`` when a file is missing or malformed, or the two do not fit.
  public init(
    _ folder: String, adapter: String?, task: String? = nil,
    precision: WeightPrecision = .float32, registry: TunerRegistry
  ) throws(PEFTError) {
    let content = try adapter.map { (path) throws(PEFTError) in try AdapterFolder(path) }
    var options = ModelOptions()
    options.precision = precision
    options.overrides = try content?.modelOverrides() ?? JSONObject()
    let settings = try ModelConfiguration(folder: folder, overrides: options.overrides)
    var resolved = try task.map { (name) throws(PEFTError) in try registry.taskType(name) }
    if resolved == nil { resolved = try content?.task(registry) }
    if resolved == nil {
      resolved = registry.taskTypes.type(ofArchitectures: settings.architectures)
    }
    guard let resolved else {
      throw PEFTError(
        .invalidConfiguration, "neither the adapter nor the model says what the task is",
        at: adapter ?? folder,
        remedy: "Give it with --task: \(registry.taskTypes.names.joined(separator: ", ")).")
    }
    self.task = resolved
    data = try content.map { (folder) throws(PEFTError) in try Self.data(folder.path) } ?? .init()
    let count: Int
    if let own = content?.classCount {
      count = own
    } else {
      count = try ModelLoader.labelCount(settings)
    }
    let recorded = try settings.problemType()
    let known = data.problemType ?? recorded
    problem = known ?? (count == 1 ? .regression : .singleLabel)
    let labelling = try resolved.training().labelling
    let hasLabels =
      labelling == .tokens || labelling == .sequences && problem != .regression
    labels = hasLabels ? try Self.labels(settings, content) : nil
    outputCount = labels?.count ?? count
    let built = try TaskModel(
      folder, task: resolved, labelCount: outputCount,
      context: TaskContext(labels: labels, problem: problem), options: options,
      registry: registry)
    base = built.loaded
    model = built.model
    objective = built.objective
    self.folder = folder
    if let content {
      try model.load(content.path)
      let replaced = try model.targetReport(of: "default").saved
      try checkHead(replaced, adapter: content.path)
    } else {
      try checkHead([], adapter: nil)
    }
  }

  /// What was drawn at random and not replaced by the adapter gives meaningless answers: a head, or
  /// a pooler below it.
  private func checkHead(_ replaced: [String], adapter: String?) throws(PEFTError) {
    guard let random = try base.firstRandomParameter(besides: replaced) else { return }
    let isHead = base.outputHeads.contains { TargetMatcher.ends(random.module, with: $0) }
    throw PEFTError(
      .missingTensor, "neither the model nor the adapter holds '\(random.name)'",
      at: adapter ?? folder,
      remedy: adapter == nil
        ? "Use a model that has it, or give an adapter that does."
        : isHead
          ? "The adapter was trained for another task."
          : "Train the adapter with '\(random.module)' in its 'modules_to_save'.")
  }

  /// Columns and lengths in the record that a training run leaves beside its adapter.
  static func data(_ adapter: String) throws(PEFTError) -> DataConfiguration {
    guard let settings = try RunRecord(ifIn: adapter)?.settings else { return .init() }
    let lasting = DataConfiguration.lastingKeys.map { ($0, settings[$0] ?? .null) }
    var reader = SettingsReader(JSONObject(lasting))
    return try DataConfiguration(&reader)
  }

  private static func labels(
    _ settings: ModelConfiguration, _ adapter: AdapterFolder?
  ) throws(PEFTError) -> LabelSet {
    let count = adapter?.classCount
    if let labels = try adapter?.labels() {
      if let count, labels.count != count {
        throw PEFTError(
          .malformedFile, "names \(labels.count) labels, the adapter's classifier has \(count)",
          at: FileSystem.join(adapter!.path, LabelSet.fileName))
      }
      return labels
    }
    if let own = try settings.labels(), count == nil || own.count == count { return own }
    if let count { return try .unnamed(count) }
    return try .unnamed(try ModelLoader.labelCount(settings))
  }

  /// The tokenizer of the model.
  ///
  /// - Throws: ``PEFTError`` when its folder has no tokenizer, or one that is not known.
  public func tokenizer() throws(PEFTError) -> Tokenizer { try Tokenizer(folder: folder) }

  /// Evaluates the model on a data file.
  ///
  /// - Parameters:
  ///   - path: The file.
  ///   - data: Columns and lengths.
  ///   - batchSize: Sequences of a forward pass.
  ///   - progress: Called with the number of examples done and of all.
  /// - Throws: ``PEFTError`` naming the line of a malformed record or an unknown label.
  public func evaluate(
    _ path: String, data: DataConfiguration, batchSize: Int = 32,
    progress: (Int, Int) throws -> Void = { _, _ in }
  ) throws -> EvaluationResult {
    let source = try DataSource(path, data, task: task)
    let builder = try DatasetBuilder(
      task: task, configuration: data, limits: base.model.inputLimits, labels: labels,
      problem: problem, targetCount: outputCount,
      tokenizer: source.format == .tokens ? nil : try tokenizer())
    let dataset = try builder.dataset(source)
    return try Evaluator(objective).evaluate(dataset, batchSize: batchSize) { done in
      try progress(done, dataset.count)
    }
  }
}
