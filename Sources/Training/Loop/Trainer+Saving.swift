import BLASKernels
import PEFTCore
import PEFTSupport
import Tensors

/// What a run saves beside the adapter's weights.
public struct RunArtifacts: Sendable {
  /// The resolved settings; those of ``TrainingArguments`` unless given.
  public var settings: JSONObject?
  /// Text of the model card.
  public var card: String?
  /// The names of a classifier's labels.
  public var labels: LabelSet?

  /// Creates a description.
  public init(settings: JSONObject? = nil, card: String? = nil, labels: LabelSet? = nil) {
    self.settings = settings
    self.card = card
    self.labels = labels
  }
}

extension Trainer {
  /// The only adapter that is trained.
  private var adapter: String { model.activeAdapters.first ?? "default" }

  // MARK: Resuming

  /// Restores the state of a checkpoint, where the settings ask for it.
  func resume(_ observe: (TrainingEvent) throws -> Void) throws {
    let folder: String
    switch arguments.resumption {
    case .none: return
    case .checkpoint(let path): folder = path
    case .newest:
      guard let newest = try newestCheckpoint() else {
        try observe(
          .notice("no checkpoint in \(arguments.outputFolder): starting from the beginning"))
        return
      }
      folder = newest
    }
    guard FileSystem.isDirectory(folder) else {
      throw PEFTError(
        .fileNotFound, "no such checkpoint folder ('resume_from_checkpoint')", at: folder,
        remedy: "Name a checkpoint-N folder, or use true for the newest.")
    }
    let saved = try RunRecord(folder: folder)
    try record.check(against: saved, folder: folder)
    let content = try AdapterFolder(folder)
    try checkAdapter(content)
    try checkLabels(folder)
    var loaded = try TrainerState(folder: folder)
    if let best = loaded.bestStep {
      loaded.bestFolder = checkpoints.find(best, ofRun: saved.id, else: loaded.bestFolder)
      if loaded.bestFolder == nil, arguments.loadsBestAtEnd {
        try observe(
          .notice(
            "the best checkpoint so far, that of step \(best), is not in "
              + "\(arguments.outputFolder): the search for the best begins anew"))
        (loaded.bestStep, loaded.bestMetric) = (nil, nil)
      }
    }
    try model.loadTensors(content.tensors, into: adapter)
    try optimizer.load(
      SafetensorsFile(FileSystem.join(folder, CheckpointFolder.optimizerName)))
    state = loaded
    if saved.threads != record.threads {
      try observe(
        .notice(
          "the checkpoint was made with \(saved.threads) threads, now there are "
            + "\(record.threads): rounding may differ"))
    }
    if record.settings["model"] != saved.settings["model"] {
      try observe(
        .notice(
          "'model' is another folder than the checkpoint's: the run goes on as before if it holds "
            + "the same model"))
    }
    // The run's log is in the folder whose last run it was: this one, or the checkpoint's.
    for output in [arguments.outputFolder, FileSystem.join(folder, "..")]
    where formerLog == nil && (try? RunRecord(ofLastRunIn: output))?.id == saved.id {
      formerLog = FileSystem.join(output, MetricsLog.fileName)
    }
    record.id = saved.id
  }

  private func newestCheckpoint() throws -> String? {
    guard let id = try RunRecord(ofLastRunIn: arguments.outputFolder)?.id else { return nil }
    return try checkpoints.steps(ofRun: id).last.map(checkpoints.path)
  }

  /// Refuses a checkpoint whose adapter has other settings.
  private func checkAdapter(_ folder: AdapterFolder) throws(PEFTError) {
    let now = try model.config(adapter).object
    // Through a reading, so that both sides are in the same form.
    let then = try model.registry.config(of: folder).object
    // A key that only the checkpoint has counts too: some are written only where they differ from
    // the default.
    for key in now.keys + then.keys.filter({ now[$0] == nil })
    where !["base_model_name_or_path", "inference_mode", "peft_version"].contains(key)
      && now[key] != then[key]
    {
      throw PEFTError(
        .invalidState,
        "the adapter's '\(key)' is \((now[key] ?? .null).text(.spaced)), the checkpoint was made "
          + "with \((then[key] ?? .null).text(.spaced))", at: folder.path,
        remedy: "Use the checkpoint's value, or begin a new run.")
    }
  }

  private func checkLabels(_ folder: String) throws(PEFTError) {
    let path = FileSystem.join(folder, LabelSet.fileName)
    guard let labels = artifacts.labels, FileSystem.exists(path) else { return }
    if try LabelSet(file: path) != labels {
      throw PEFTError(
        .invalidState, "the labels are not those of the checkpoint", at: path,
        remedy: "Set 'labels' to this file.")
    }
  }

  // MARK: Output

  /// Makes the output folder and saves the resolved settings in it. The result of an earlier run stays
  /// as it is until there is a new one.
  func prepareOutput() throws(PEFTError) {
    let output = arguments.outputFolder
    try FileSystem.createDirectory(output)
    try takeResult()
    try checkpoints.removeLeftovers()
    try FileSystem.write(
      FileSystem.join(output, RunRecord.unfinishedName), Self.text(record.object))
  }

  /// Writes the checkpoint of the present step; it is complete or absent.
  func save(_ observe: (TrainingEvent) throws -> Void) throws {
    let path = checkpoints.path(state.step)
    if state.bestStep == state.step { state.bestFolder = path }
    try FileSystem.writeDirectory(path) { folder in
      // A run goes on from the very values that it trains.
      try self.writeAdapter(into: folder, form: .trained)
      try SafetensorsWriter.write(
        self.optimizer.items, to: FileSystem.join(folder, CheckpointFolder.optimizerName))
      try self.writeRecords(into: folder)
    }
    if let limit = arguments.saveTotalLimit {
      try checkpoints.prune(
        ofRun: record.id, keeping: limit, best: state.bestStep, newest: state.step)
    }
    try observe(.saved(path: path))
  }

  private func writeAdapter(
    into folder: String, form: SavedForm = .automatic
  ) throws(PEFTError) {
    if let labels = artifacts.labels {
      try FileSystem.write(
        FileSystem.join(folder, LabelSet.fileName), labels.json.text(.indented) + "\n")
    }
    try model.write(into: folder, adapter: adapter, form: form, card: artifacts.card)
  }

  private func writeRecords(into folder: String) throws(PEFTError) {
    try FileSystem.write(
      FileSystem.join(folder, RunRecord.fileName), Self.text(record.object))
    try FileSystem.write(
      FileSystem.join(folder, TrainerState.fileName), Self.text(state.object(plan, arguments)))
  }

  /// Writes the adapter with its records, complete or not at all, and puts it into the output folder.
  private func writeResult() throws {
    try FileSystem.writeDirectory(checkpoints.resultPath) { folder in
      try AdapterFolder.copyCard(from: self.arguments.outputFolder, to: folder)
      try self.writeRecords(into: folder)
      try self.writeAdapter(into: folder)
    }
    try takeResult()
  }

  /// Puts a complete result in the place of an earlier one. The start of a run does this again: a kill
  /// may have come between two of its files.
  private func takeResult() throws(PEFTError) {
    let output = arguments.outputFolder
    guard FileSystem.isDirectory(checkpoints.resultPath) else { return }
    try FileSystem.moveFiles(
      from: checkpoints.resultPath, to: output, first: RunRecord.fileName,
      last: AdapterFolder.configName,
      replacing: model.registry.fileNames.union([LabelSet.fileName]))
    FileSystem.removeTree(FileSystem.join(output, RunRecord.unfinishedName))
  }

  private static func text(_ object: JSONObject) -> String {
    JSONValue.object(object).text(.indented) + "\n"
  }

  // MARK: Evaluating

  /// Evaluates the present weights and remembers whether they are the best.
  func evaluate(
    _ log: MetricsLog, _ observe: (TrainingEvent) throws -> Void
  ) throws -> EvaluationResult? {
    guard let validation else { return nil }
    let result = try measure(validation, observe)
    let value = result.value(of: metric) ?? result.loss
    let isGreaterBetter = Metric.isGreaterBetter(metric)
    let isBetter = state.bestMetric.map { isGreaterBetter ? value > $0 : value < $0 } ?? true
    if isBetter {
      state.bestMetric = value
      state.bestStep = state.step
      state.bestFolder = nil
    }
    let epoch = plan.epochs(after: state.step)
    let members = [("step", .int(state.step)), ("epoch", .double(epoch))] + result.members("eval")
    try log.append(members)
    state.logHistory.append(.object(JSONObject(members)))
    try observe(.evaluated(result, name: "eval", epoch: epoch, isBest: isBetter))
    return result
  }

  private func measure(
    _ data: Dataset, _ observe: (TrainingEvent) throws -> Void
  ) throws -> EvaluationResult {
    try Evaluator(objective).evaluate(data, batchSize: arguments.evaluationBatchSize) { done in
      try observe(.evaluating(done: done, total: data.count))
    }
  }

  /// Takes the best weights if asked for, evaluates them on the test data and saves the adapter.
  func finish(
    _ summary: inout TrainingSummary, _ log: MetricsLog, _ observe: (TrainingEvent) throws -> Void
  ) throws {
    if arguments.loadsBestAtEnd, state.bestStep != state.step, let folder = state.bestFolder {
      try model.loadTensors(AdapterFolder(folder).tensors, into: adapter)
      summary.loadedBest = folder
    }
    let epoch = plan.epochs(after: state.step)
    if let test {
      let result = try measure(test, observe)
      summary.test = result
      try log.append(
        [("step", .int(state.step)), ("epoch", .double(epoch))] + result.members("test"))
      try observe(.evaluated(result, name: "test", epoch: epoch, isBest: false))
    }
    try writeResult()
  }
}
