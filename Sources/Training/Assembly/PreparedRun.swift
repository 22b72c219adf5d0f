import BLASKernels
import Models
import NN
import PEFTCore
import PEFTSupport
import Tokenizers

/// A run whose data is read and whose model is built: everything that can be wrong with its input
/// has been found by now, and nothing has been written.
public struct PreparedRun {
  /// The settings, with the task resolved.
  public let configuration: RunConfiguration
  /// The task.
  public let task: TaskType
  /// The name of the adapter's method.
  public let method: String
  /// The base model.
  public let base: LoadedModel
  /// The model with the adapter that is trained.
  public let model: PeftModel
  /// Paths of the modules that the adapter changes or replaces.
  public let targets: TargetReport
  /// The classes, where they have names.
  public let labels: LabelSet?
  /// What the numbers of a sequence classifier are.
  public let problem: ProblemType
  /// The training data.
  public let train: Dataset
  /// The data to evaluate during training.
  public let validation: Dataset?
  /// The data to evaluate the result on.
  public let test: Dataset?
  /// Remarks about settings that have no effect, and the like.
  public let notices: [String]
  private let objective: any Objective

  /// Reads the data and builds the model of a configuration.
  ///
  /// - Parameters:
  ///   - given: The run's configuration.
  ///   - registry: The methods.
  /// - Throws: ``PEFTError`` naming the file, key or line that is wrong.
  public init(_ given: RunConfiguration, registry: TunerRegistry) throws(PEFTError) {
    // Initial values may depend on it.
    if let threads = given.arguments.threads { Parallel.threadCount = threads }
    var configuration = given
    var notices: [String] = []
    let initial = try configuration.initialAdapter.map { (path) throws(PEFTError) in
      try AdapterFolder(path)
    }
    method = try Self.method(configuration, initial, registry)
    try Self.checkOutput(configuration.arguments.outputFolder)
    for (key, value) in try initial?.modelOverrides().members ?? []
    where configuration.modelConfig[key] == nil {
      // The adapter belongs to the model that it was trained on.
      configuration.modelConfig[key] = value
      notices.append(
        "'model_config.\(key)' is \(value.text(.spaced)), as 'init_adapter' was trained with")
    }
    let settings = try ModelConfiguration(
      folder: configuration.model, overrides: configuration.modelConfig)
    let files = try DataFiles(configuration, initialTask: try initial?.task(registry), registry)
    task = try files.task(settings)
    let training = try task.training()
    // Says what is missing before any data is read.
    let limits = try ModelLoader.inputLimits(settings, head: training.head(labelCount: 2))
    problem =
      training.labelling == .sequences
      ? try files.problem(settings, initial: initial, data: configuration.data) : .singleLabel
    let found = try files.labels(
      settings, task: task, labelling: training.labelling, problem: problem, initial: initial,
      columns: configuration.data)
    labels = found.labels
    // What was accepted once has to be again, and other tasks read what they like.
    if given.arguments.resumption == .none, task.behavior == nil {
      do { try settings.checkOverrides(given.modelConfig.keys) } catch {
        throw error.located(at: "'model_config'")
      }
    }

    let tokenizer =
      files.all.contains { $0.format != .tokens } ? try Tokenizer(folder: configuration.model) : nil
    let builder = try DatasetBuilder(
      task: task, configuration: configuration.data, limits: limits, labels: labels,
      problem: problem, targetCount: found.count, tokenizer: tokenizer)
    train = try builder.dataset(files.train)
    validation = try files.validation.map { (file) throws(PEFTError) in
      try builder.dataset(file)
    }
    test = try files.test.map { (file) throws(PEFTError) in try builder.dataset(file) }

    var options = ModelOptions()
    options.precision = configuration.precision
    options.overrides = configuration.modelConfig
    options.randomWeights = configuration.randomWeights
    options.seed = UInt64(configuration.arguments.seed)
    let built = try TaskModel(
      configuration.model, task: task, labelCount: found.count,
      context: TaskContext(labels: labels, problem: problem), options: options, registry: registry)
    base = built.loaded
    model = built.model
    objective = built.objective
    if let initial {
      if !configuration.methodSettings.members.isEmpty {
        notices.append("'\(method)' has no effect: the settings come from 'init_adapter'")
      }
      try model.load(initial.path)
      targets = try model.targetReport(of: "default")
    } else {
      let config = try configuration.adapterConfig(registry: registry, task: task)
      let calibration =
        config.needsCalibration
        ? train.calibration(
          batches: configuration.initializationBatches, configuration.arguments, objective) : nil
      do {
        targets = try model.add(
          "default", any: config, seed: UInt64(configuration.arguments.seed),
          calibration: calibration)
      } catch {
        throw error.located(at: "'\(configuration.method ?? method)'")
      }
    }
    notices += targets.remarks
    if let random = try base.firstRandomParameter(besides: targets.saved) {
      throw PEFTError(
        .missingTensor,
        "has no '\(random.name)', and the adapter does not train it in full: it would stay random",
        at: configuration.model,
        remedy: initial == nil
          ? "Add '\(random.module)' to 'modules_to_save' of '\(method)'."
          : "Begin with an adapter that has '\(random.module)' in its 'modules_to_save'.")
    }
    if let notice = configuration.arguments.warmupNotice { notices.append(notice) }
    if validation == nil, let notice = configuration.arguments.evaluationNotice {
      notices.append(notice)
    }
    if train.truncatedCount > 0 {
      notices.append(
        "\(grouped(train.truncatedCount)) of \(grouped(train.count)) training examples reach the "
          + "length limit and may be cut")
    }
    if initial == nil, !configuration.randomWeights {
      let new = base.newParameters
      if !new.isEmpty { notices.append("new, drawn at random: \(new.joined(separator: ", "))") }
    }
    if let notice = base.unusedNotice { notices.append(notice) }
    configuration.method = method
    configuration.taskType = task.name
    if training.labelling == .sequences { configuration.data.problemType = problem }
    self.configuration = configuration
    self.notices = notices
  }

  /// The adapter's method; the settings must not speak of another one than the initial adapter has.
  private static func method(
    _ configuration: RunConfiguration, _ initial: AdapterFolder?, _ registry: TunerRegistry
  ) throws(PEFTError) -> String {
    let wanted = configuration.resolvedMethod(registry)
    guard let initial else { return wanted }
    let method: String
    do { method = try registry.methodName(of: initial) } catch {
      throw error.located(at: initial.configPath)
    }
    if configuration.method != nil, wanted != method {
      throw PEFTError(
        .invalidConfiguration,
        "'method' is \(wanted), but the adapter in 'init_adapter' is of the method \(method)",
        remedy: "Remove 'method' and its settings: they come from the adapter.")
    }
    return method
  }

  /// Refuses a model's folder, whose files the run's would be mistaken for.
  private static func checkOutput(_ output: String) throws(PEFTError) {
    func has(_ name: String) -> Bool { FileSystem.exists(FileSystem.join(output, name)) }
    guard has("config.json"),
      ![AdapterFolder.configName, RunRecord.fileName, RunRecord.unfinishedName].contains(where: has)
    else { return }
    throw PEFTError(
      .invalidConfiguration, "'output_dir' is the folder of a model", at: output,
      remedy: "Choose another folder.")
  }

  /// The trainer of the run.
  ///
  /// - Throws: ``PEFTError`` for settings that contradict the data.
  public func makeTrainer() throws(PEFTError) -> Trainer {
    // Before the card: an optimiser may freeze parameters, and the card counts them.
    let optimizer = try configuration.arguments.makeOptimizer(for: model)
    return try Trainer(
      model, objective: objective, arguments: configuration.arguments, train: train,
      validation: validation, test: test, metric: task.defaultMetric,
      artifacts: RunArtifacts(
        settings: configuration.object, card: card, labels: labels),
      optimizer: optimizer)
  }

  /// The text of the adapter's model card.
  private var card: String {
    let arguments = configuration.arguments
    var lines = [
      "# \(task.name) adapter", "",
      "Trained with swift-peft on \(grouped(train.count)) examples; the files are those of Hugging "
        + "Face PEFT.", "",
      "* Base model: `\(configuration.model)`",
      "* Learning rate \(JSONValue.double(arguments.learningRate).text()), "
        + "\(arguments.schedule.rawValue); batches of "
        + "\(arguments.trainBatchSize * arguments.accumulationSteps); seed \(arguments.seed)",
      "* \(model.trainableParametersReport)",
    ]
    if labels != nil { lines.append("* Label names by id: `\(LabelSet.fileName)`") }
    return lines.joined(separator: "\n")
  }
}

/// The data files of a run, and what they say about its task and labels.
private struct DataFiles {
  let train: DataSource
  let validation: DataSource?
  let test: DataSource?
  private let given: TaskType?
  private let registry: TunerRegistry

  init(
    _ configuration: RunConfiguration, initialTask: TaskType?, _ registry: TunerRegistry
  ) throws(PEFTError) {
    let data = configuration.data
    guard let trainFile = data.trainFile else {
      throw PEFTError(.invalidConfiguration, "the key 'train_file' is missing")
    }
    let task = try configuration.taskType.map { (name) throws(PEFTError) in
      try registry.taskType(name)
    }
    if let task, let initialTask, task != initialTask {
      throw PEFTError(
        .invalidConfiguration,
        "'task_type' is \(task.name), but the adapter in 'init_adapter' is for \(initialTask.name)")
    }
    given = task ?? initialTask
    self.registry = registry
    train = try DataSource(trainFile, data, task: given)
    let implied = given ?? train.impliedTask
    validation = try data.validationFile.map { (path) throws(PEFTError) in
      try DataSource(path, data, task: implied)
    }
    test = try data.testFile.map { (path) throws(PEFTError) in
      try DataSource(path, data, task: implied)
    }
  }

  var all: [DataSource] { [train] + [validation, test].compactMap { $0 } }

  /// The task: as configured, else as the data says, else as config.json's `architectures` says.
  func task(_ settings: ModelConfiguration) throws(PEFTError) -> TaskType {
    if let task = given ?? train.impliedTask { return task }
    if let task = registry.taskTypes.type(ofArchitectures: settings.architectures) { return task }
    throw PEFTError(
      .invalidConfiguration, "neither the data nor the model says what the task is",
      remedy: "Set 'task_type' to one of \(registry.taskTypes.names.joined(separator: ", ")).")
  }

  /// What the labels of sequences are: as configured, else as the initial adapter was trained, else
  /// as config.json has it, else as the first record shows.
  func problem(
    _ settings: ModelConfiguration, initial: AdapterFolder?, data: DataConfiguration
  ) throws(PEFTError) -> ProblemType {
    if let problem = data.problemType { return problem }
    if let initial, let problem = try initial.problemType() {
      return problem
    }
    return try settings.problemType() ?? train.impliedProblem
  }

  /// The classes and their number: as configured, else those of the initial adapter, else those of
  /// the model when they are the data's, else those of the data.
  func labels(
    _ settings: ModelConfiguration, task: TaskType, labelling: TaskLabelling,
    problem: ProblemType, initial: AdapterFolder?, columns: DataConfiguration
  ) throws(PEFTError) -> (labels: LabelSet?, count: Int) {
    if labelling == .none { return (nil, 2) }
    if labelling == .sequences, problem == .regression {
      return (nil, try train.records.first?.numbers(train.labelColumn).count ?? 1)
    }
    let labels = try unchecked(settings, initial, columns, ofTokens: labelling == .tokens)
    if labels.count == 0 {
      throw PEFTError(
        .invalidData, "there is no label", at: train.path, remedy: "Check 'label_column'.")
    }
    if labels.count < 2, problem == .singleLabel {
      throw PEFTError(
        .invalidData,
        "there is only one label, '\(labels.names.first ?? "")'; a classifier needs "
          + "two or more", at: train.path, remedy: "Check 'label_column'.")
    }
    return (labels, labels.count)
  }

  private func unchecked(
    _ settings: ModelConfiguration, _ initial: AdapterFolder?, _ columns: DataConfiguration,
    ofTokens: Bool
  ) throws(PEFTError) -> LabelSet {
    switch columns.labels {
    case .list(let names)?:
      do { return try LabelSet(names) } catch { throw error.located(at: "'labels'") }
    case .file(let path)?: return try LabelSet(file: path)
    case nil: break
    }
    if let labels = try initial?.labels() { return labels }
    let own = try settings.labels()
    if let count = initial?.classCount {
      return own?.count == count ? own! : try .unnamed(count)
    }
    var columns = columns
    if train.format == .tokens {
      columns.labelColumn = ofTokens ? "labels" : train.labelColumn
      if let largest = try train.largestLabel(columns.labelColumn) {
        if let own, own.count > largest { return own }
        if let count = settings["num_labels"]?.int, count > largest {
          return try .unnamed(count)
        }
        return try .unnamed(largest + 1)
      }
    }
    let found = LabelSet(occurring: try train.labelNames(columns))
    if let own, Set(own.names) == Set(found.names) { return own }
    return found
  }
}
