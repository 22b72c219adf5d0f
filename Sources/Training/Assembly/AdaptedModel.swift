import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import Tokenizers

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// A model with a trained adapter, for evaluation and prediction.
public struct AdaptedModel {
  /// The task.
  public let task: TaskType
  /// The model.
  public let model: PeftModel
  /// The base model.
  public let base: LoadedModel
  /// The classes, for SEQ_CLS.
  public let labels: LabelSet?
  /// Columns and lengths as the adapter was trained with, where its folder says.
  public let data: DataConfiguration
  let objective: any Objective
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
    let settings = try ModelConfiguration(folder: folder)
    let content = try adapter.map { (path) throws(PEFTError) in try AdapterFolder(path) }
    var resolved = try task.map { (name) throws(PEFTError) in try registry.taskType(name) }
    if resolved == nil { resolved = try content?.task(registry) }
    if resolved == nil {
      for name in settings.architectures where resolved == nil {
        if name.hasSuffix("ForCausalLM") { resolved = .causalLM }
        if name.hasSuffix("ForSequenceClassification") { resolved = .sequenceClassification }
      }
    }
    guard let resolved else {
      throw PEFTError(
        .invalidConfiguration, "neither the adapter nor the model says what the task is",
        at: adapter ?? folder, remedy: "Give --task SEQ_CLS or --task CAUSAL_LM.")
    }
    self.task = resolved
    labels =
      resolved == .sequenceClassification ? try Self.labels(settings, content) : nil
    var options = ModelOptions()
    options.precision = precision
    let built = try TaskModel(
      folder, task: resolved, labelCount: labels?.count ?? 0, options: options,
      registry: registry)
    base = built.loaded
    model = built.model
    objective = built.objective
    self.folder = folder
    data = try content.map { (folder) throws(PEFTError) in try Self.data(folder.path) } ?? .init()
    if let content {
      try model.load(content.path)
      let replaced = try model.targetReport(of: "default").saved
      try checkHead(replaced, adapter: content.path)
    } else {
      try checkHead([], adapter: nil)
    }
  }

  /// A head that was drawn at random and not replaced by the adapter gives meaningless answers.
  private func checkHead(_ replaced: [String], adapter: String?) throws(PEFTError) {
    for name in base.newParameters {
      let module = name.split(separator: ".").dropLast().joined(separator: ".")
      let isHead = base.outputHeads.contains { module == $0 || module.hasSuffix(".\($0)") }
      if isHead, !replaced.contains(module) {
        throw PEFTError(
          .missingTensor, "neither the model nor the adapter holds '\(name)'",
          at: adapter ?? folder, remedy: "The adapter was trained for another task.")
      }
    }
  }

  /// Columns and lengths in the record that a training run leaves beside its adapter.
  private static func data(_ adapter: String) throws(PEFTError) -> DataConfiguration {
    guard FileSystem.exists(FileSystem.join(adapter, RunRecord.fileName)) else { return .init() }
    let settings = try RunRecord(folder: adapter).settings
    let keys = ["text_column", "text_pair_column", "label_column", "max_length"]
    var reader = SettingsReader(JSONObject(keys.map { ($0, settings[$0] ?? .null) }))
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
      task: task, configuration: data, limits: InputLimits(base.model.configuration),
      labels: labels, tokenizer: source.format == .tokens ? nil : try tokenizer())
    let dataset = try builder.dataset(source)
    return try Evaluator(objective).evaluate(dataset, batchSize: batchSize) { done in
      try progress(done, dataset.count)
    }
  }
}

/// The answer of a classifier to one text.
public struct Prediction: Sendable, Equatable {
  /// The most probable class.
  public var label: String
  /// Its probability.
  public var probability: Double
  /// The probabilities of all classes by id.
  public var probabilities: [Double]
}

extension AdaptedModel {
  /// The classes of texts.
  ///
  /// - Parameters:
  ///   - texts: The texts, each alone or with the second one of a pair.
  ///   - tokenizer: The model's; see ``tokenizer()``.
  ///   - maxLength: Most tokens of a text; that of the training, else the tokenizer's, unless given.
  /// - Throws: ``PEFTError`` when the model is no classifier or a text cannot be tokenised.
  public func classify(
    _ texts: [(text: String, pair: String?)], tokenizer: Tokenizer, maxLength: Int? = nil
  ) throws(PEFTError) -> [Prediction] {
    guard let classifier = base.model as? any SequenceClassifier, let labels else {
      throw PEFTError(
        .unsupported, "the task \(task.name) has no labels to predict",
        remedy: "Use 'peft generate' for language models.")
    }
    let limits = try InputLimits(base.model.configuration)
    var tokenizer = tokenizer
    tokenizer.padding = nil
    let usual = data.maxLength ?? tokenizer.truncation?.maxLength ?? DatasetBuilder.defaultMaxLength
    let length = min(maxLength ?? usual, limits.positions)
    var encoder = tokenizer.makeEncoder()
    var examples: [Example] = []
    for (index, (text, pair)) in texts.enumerated() {
      let encoding = encoder.encode(text, pair: pair, maxLength: length)
      let types = limits.types > 1 && pair != nil ? encoding.typeIDs : nil
      let example = Example(tokenIDs: encoding.ids, typeIDs: types, labels: [0])
      try limits.check(example, at: "text \(index + 1)")
      examples.append(example)
    }
    guard !examples.isEmpty else { return [] }
    let batch = Batch(examples)
    let logits = withoutGradients {
      classifier.logits(batch.tokens, ForwardContext(batch.tokens.layout))
    }
    let values = logits.scalars
    let count = labels.count
    return texts.indices.map { index in
      Self.prediction(Array(values[index * count..<(index + 1) * count]), labels)
    }
  }

  private static func prediction(_ logits: [Float], _ labels: LabelSet) -> Prediction {
    let largest = Double(logits.max() ?? 0)
    let weights = logits.map { exp(Double($0) - largest) }
    let sum = weights.reduce(0, +)
    let probabilities = weights.map { $0 / sum }
    let best = logits.indices.max { logits[$0] < logits[$1] } ?? 0
    return Prediction(
      label: labels.names[best], probability: probabilities[best], probabilities: probabilities)
  }
}
