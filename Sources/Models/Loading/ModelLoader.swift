import NN
import PEFTSupport
import Tensors

/// What a model is built for; decides its head.
public enum ModelHead: Sendable, Equatable {
  /// The base model alone.
  case none
  /// A classifier of sequences with so many labels.
  case sequenceClassification(labels: Int)
  /// A classifier of tokens with so many labels.
  case tokenClassification(labels: Int)
  /// The first and the last token of an answer.
  case questionAnswering
  /// The output head of a language model.
  case causalLM
  /// The output head of an encoder-decoder.
  case seq2SeqLM

  /// The number of labels, of a classifier.
  public var labelCount: Int? {
    switch self {
    case .sequenceClassification(let labels), .tokenClassification(let labels): return labels
    default: return nil
    }
  }

  /// peft's name of the task that it serves.
  public var taskName: String {
    switch self {
    case .none: return "FEATURE_EXTRACTION"
    case .sequenceClassification: return "SEQ_CLS"
    case .tokenClassification: return "TOKEN_CLS"
    case .questionAnswering: return "QUESTION_ANS"
    case .causalLM: return "CAUSAL_LM"
    case .seq2SeqLM: return "SEQ_2_SEQ_LM"
    }
  }

  /// The error for an architecture without this head.
  func missing(_ kind: String, at path: String, heads: String) -> PEFTError {
    if self == .seq2SeqLM {
      return PEFTError(
        .unsupported,
        "\(kind) has no SEQ_2_SEQ_LM head: that takes an encoder-decoder, such as T5, and no "
          + "encoder-decoder architecture is implemented yet", at: path, remedy: "Use \(heads).")
    }
    return PEFTError(
      .unsupported, "\(kind) has no \(taskName) head", at: path, remedy: "Use \(heads).")
  }
}

/// How a model is built.
public struct ModelOptions: Sendable {
  /// What the matrices are kept in.
  public var precision: WeightPrecision = .float32
  /// Members that replace those of config.json.
  public var overrides = JSONObject()
  /// Whether all weights are drawn at random, so that config.json is enough.
  public var randomWeights = false
  /// Seed of random weights and of a new head.
  public var seed: UInt64 = 0
  /// Whether a head in the weights is left out, and one drawn at random instead, when its shape is
  /// another, as for another number of labels.
  public var replacesHead = false

  /// Creates the default options.
  public init() {}
}

/// Builds models from Hugging Face folders.
public enum ModelLoader {
  /// Builds a model from a folder's config.json and weights.
  ///
  /// A head that the weights lack is initialised at random, as transformers does.
  ///
  /// - Parameters:
  ///   - folder: The folder.
  ///   - head: The head; `nil` takes the one that `architectures` names.
  ///   - options: Precision, overrides, random weights.
  /// - Throws: ``PEFTError``: a missing or malformed file, an unknown model type, a tensor that is
  ///   missing or of the wrong shape.
  public static func load(
    _ folder: String, head: ModelHead? = nil, options: ModelOptions = ModelOptions()
  ) throws(PEFTError) -> LoadedModel {
    let configuration = try ModelConfiguration(folder: folder, overrides: options.overrides)
    let family = try family(configuration)
    let head = if let head { head } else { try defaultHead(configuration) }
    let deviation = Float(try configuration.double("initializer_range", default: 0.02))
    let random = RandomSource(
      seed: options.seed, deviation: deviation, precision: options.precision)
    var checkpoint: CheckpointSource?
    if !options.randomWeights {
      checkpoint = CheckpointSource(
        try ModelWeights(folder: folder), precision: options.precision,
        basePrefix: family.basePrefix(head), storedPrefixes: [family.basePrefix(.none)],
        randomPrefixes: ["bert.pooler", "pooler"],
        headPrefixes: ["classifier", "score", "qa_outputs"], replacesHead: options.replacesHead,
        fallback: random)
    }
    let source: any ParameterSource = checkpoint ?? random
    let model = try family.build(configuration, head, ModuleBuilder(source))
    return LoadedModel(
      model: model, head: head, folder: folder, newParameters: checkpoint?.initialized ?? [],
      unusedTensors: checkpoint?.unused.filter { !UnusedTensors.areExpected($0) } ?? [],
      outputHeads: family.outputHeads(head))
  }

  /// Builds a model from config.json alone, without values: for printing and counting.
  ///
  /// Takes no time and no memory, however large the model. It must not be run.
  ///
  /// - Parameters:
  ///   - folder: The folder.
  ///   - head: The head; `nil` takes the one that `architectures` names.
  ///   - overrides: Members that replace those of config.json.
  /// - Throws: ``PEFTError``: a missing or malformed config.json, or an unknown model type.
  public static func describe(
    _ folder: String, head: ModelHead? = nil, overrides: JSONObject = JSONObject()
  ) throws(PEFTError) -> LoadedModel {
    let configuration = try ModelConfiguration(folder: folder, overrides: overrides)
    let family = try family(configuration)
    let head = if let head { head } else { try defaultHead(configuration) }
    let model = try family.build(configuration, head, ModuleBuilder(ShapeSource()))
    return LoadedModel(
      model: model, head: head, folder: folder, newParameters: [],
      outputHeads: family.outputHeads(head))
  }

  /// The attribute under which a model with a head holds its base: "bert", "model".
  ///
  /// - Throws: ``PEFTError`` for an unknown model type.
  public static func basePrefix(_ configuration: ModelConfiguration) throws(PEFTError) -> String {
    try family(configuration).basePrefix(.none)
  }

  private static func family(_ configuration: ModelConfiguration) throws(PEFTError) -> ModelFamily {
    guard let family = ModelFamily.all.first(where: { $0.modelType == configuration.modelType })
    else {
      throw PEFTError(
        .unsupported, "the model type '\(configuration.modelType)' is not supported",
        at: configuration.path,
        remedy: "Supported: \(ModelFamily.all.map(\.modelType).sorted().joined(separator: ", ")).")
    }
    return family
  }

  /// The head that config.json's `architectures` name.
  ///
  /// - Throws: ``PEFTError`` when the number of labels is malformed.
  public static func defaultHead(
    _ configuration: ModelConfiguration
  ) throws(PEFTError) -> ModelHead {
    for name in configuration.architectures {
      if name.hasSuffix("ForCausalLM") { return .causalLM }
      if name.hasSuffix("ForQuestionAnswering") { return .questionAnswering }
      if name.hasSuffix("ForConditionalGeneration") { return .seq2SeqLM }
      if name.hasSuffix("ForSequenceClassification") {
        return .sequenceClassification(labels: try labelCount(configuration))
      }
      if name.hasSuffix("ForTokenClassification") {
        return .tokenClassification(labels: try labelCount(configuration))
      }
    }
    return .none
  }

  /// What a model of a configuration can take as input, without building anything large.
  ///
  /// - Throws: ``PEFTError`` for an unknown model type, or one without such a head.
  public static func inputLimits(
    _ configuration: ModelConfiguration, head: ModelHead
  ) throws(PEFTError) -> InputLimits {
    try family(configuration).build(configuration, head, ModuleBuilder(ShapeSource())).inputLimits
  }

  /// The number of labels that config.json speaks of: the size of `id2label`, else `num_labels`.
  ///
  /// - Throws: ``PEFTError`` when `num_labels` is not a positive integer.
  public static func labelCount(_ configuration: ModelConfiguration) throws(PEFTError) -> Int {
    if let labels = configuration["id2label"]?.object { return labels.members.count }
    return try configuration.int("num_labels", default: 2)
  }
}

/// A model with what was learnt while building it.
public struct LoadedModel {
  /// The model: a ``SequenceClassifier``, a ``TokenClassifier``, a ``QuestionAnswerer``, a
  /// ``CausalLanguageModel`` or a bare base.
  public let model: any TransformerModel
  /// Its head.
  public let head: ModelHead
  /// The folder that it came from.
  public let folder: String
  /// Parameters that the files lacked and that were drawn at random.
  public let newParameters: [String]
  /// Tensors in the files that no module asked for, but for those of other heads and of buffers: the
  /// model is another one than config.json describes.
  public let unusedTensors: [String]
  /// Paths of the output heads, which `all-linear` leaves out.
  public let outputHeads: [String]

  /// Describes a model, for tasks that build theirs themselves.
  public init(
    model: any TransformerModel, head: ModelHead, folder: String, newParameters: [String] = [],
    unusedTensors: [String] = [], outputHeads: [String] = []
  ) {
    self.model = model
    self.head = head
    self.folder = folder
    self.newParameters = newParameters
    self.unusedTensors = unusedTensors
    self.outputHeads = outputHeads
  }

  /// What to tell of ``unusedTensors``, if there are any.
  public var unusedNotice: String? {
    guard let first = unusedTensors.first else { return nil }
    let more = unusedTensors.count > 1 ? " and \(unusedTensors.count - 1) more" : ""
    return "\(folder) holds '\(first)'\(more), which the model of its config.json does not have"
  }
}

/// What files may hold besides the parameters of a model with some head.
private enum UnusedTensors {
  /// Heads, and the pooler that some models are used without.
  private static let heads: Set<String> = [
    "classifier", "cls", "lm_head", "pooler", "qa_outputs", "score",
  ]
  /// What old versions of transformers saved along.
  private static let buffers = ["position_ids", "token_type_ids", "rotary_emb.inv_freq"]

  static func areExpected(_ name: String) -> Bool {
    let parts = name.split(separator: ".").prefix(2)
    return parts.contains { heads.contains(String($0)) }
      || buffers.contains { name.hasSuffix($0) }
  }
}

/// An architecture: its `model_type` and how it is built.
struct ModelFamily: Sendable {
  let modelType: String
  /// The attribute that holds the base in a model with a head.
  let basePrefix: @Sendable (ModelHead) -> String
  let outputHeads: @Sendable (ModelHead) -> [String]
  let build:
    @Sendable (ModelConfiguration, ModelHead, ModuleBuilder) throws(PEFTError)
      -> any TransformerModel

  static let all: [ModelFamily] = [.bert, .llama, .qwen2]
}
