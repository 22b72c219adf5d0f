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
    guard problem == .singleLabel, let labels else {
      throw PEFTError(.unsupported, "the model does not choose one of several labels")
    }
    let values = try numbers(texts, tokenizer: tokenizer, maxLength: maxLength)
    return values.map { Self.prediction($0, labels) }
  }

  /// What a classifier says of texts: a class, several labels, or numbers.
  ///
  /// - Throws: ``PEFTError`` as ``classify(_:tokenizer:maxLength:)``.
  public func judge(
    _ texts: [(text: String, pair: String?)], tokenizer: Tokenizer, maxLength: Int? = nil
  ) throws(PEFTError) -> [Judgement] {
    let values = try numbers(texts, tokenizer: tokenizer, maxLength: maxLength)
    return values.map { row in
      switch (problem, labels) {
      case (.singleLabel, let labels?): return .label(Self.prediction(row, labels))
      case (.multiLabel, let labels?):
        let all = zip(labels.names, row).map { ($0, 1 / (1 + exp(-Double($1)))) }
        return .labels(all.map { LabelProbability(label: $0, probability: $1) })
      default: return .values(row)
      }
    }
  }

  /// The most tokens of an input.
  private func length(_ maxLength: Int?, _ tokenizer: Tokenizer) -> Int {
    let usual = data.maxLength ?? tokenizer.truncation?.maxLength ?? DatasetBuilder.defaultMaxLength
    return min(maxLength ?? usual, base.model.inputLimits.positions ?? .max)
  }

  /// The outputs of a sequence classifier for each text.
  private func numbers(
    _ texts: [(text: String, pair: String?)], tokenizer: Tokenizer, maxLength: Int?
  ) throws(PEFTError) -> [[Float]] {
    guard let classifier = base.model as? any SequenceClassifier else {
      throw PEFTError(
        .unsupported, "the task \(task.name) has no labels to predict",
        remedy: "Use 'peft generate' for language models.")
    }
    let limits = base.model.inputLimits
    var tokenizer = tokenizer
    tokenizer.padding = nil
    let length = length(maxLength, tokenizer)
    var encoder = tokenizer.makeEncoder()
    var examples: [Example] = []
    for (index, (text, pair)) in texts.enumerated() {
      let encoding = encoder.encode(text, pair: pair, maxLength: length)
      let types = limits.hasSegments && pair != nil ? encoding.typeIDs : nil
      let example = Example(tokenIDs: encoding.ids, typeIDs: types, labels: [0])
      try check(example, "text \(index + 1)")
      examples.append(example)
    }
    guard !examples.isEmpty else { return [] }
    let batch = Batch(examples)
    let logits = withoutGradients {
      classifier.logits(batch.tokens, ForwardContext(batch.tokens.layout))
    }
    return Self.rows(of: logits)
  }

  private static func rows(of tensor: Tensor) -> [[Float]] {
    let (values, columns) = (tensor.scalars, tensor.columns)
    return (0..<tensor.rows).map { Array(values[$0 * columns..<($0 + 1) * columns]) }
  }

  private func check(_ example: Example, _ name: String) throws(PEFTError) {
    try base.model.inputLimits.check(example, at: name, isStrict: false)
  }

  private static func softmax(_ logits: [Float]) -> [Double] {
    let largest = Double(logits.max() ?? 0)
    let weights = logits.map { exp(Double($0) - largest) }
    let sum = weights.reduce(0, +)
    return weights.map { $0 / sum }
  }

  private static func prediction(_ logits: [Float], _ labels: LabelSet) -> Prediction {
    let probabilities = softmax(logits)
    let best = logits.indices.max { logits[$0] < logits[$1] } ?? 0
    return Prediction(
      label: labels.names[best], probability: probabilities[best], probabilities: probabilities)
  }

  // MARK: Tokens

  /// The classes of words: those of their first tokens.
  ///
  /// - Parameters:
  ///   - texts: Texts, each split into words.
  ///   - tokenizer: The model's.
  ///   - maxLength: Most tokens of a text.
  /// - Returns: For each text a prediction for each word, `nil` for words beyond the length.
  /// - Throws: ``PEFTError`` when the model is no classifier of tokens.
  public func tag(
    _ texts: [[String]], tokenizer: Tokenizer, maxLength: Int? = nil
  ) throws(PEFTError) -> [[Prediction?]] {
    guard let classifier = base.model as? any TokenClassifier, let labels else {
      throw PEFTError(.unsupported, "the task \(task.name) has no labels for tokens")
    }
    var encoder = WordEncoder(tokenizer, limits: base.model.inputLimits)
    let length = length(maxLength, tokenizer)
    var result: [[Prediction?]] = []
    for (index, words) in texts.enumerated() {
      let (encoded, _) = encoder.encode(words, maxLength: length)
      var predictions = [Prediction?](repeating: nil, count: words.count)
      if !encoded.example.tokenIDs.isEmpty {
        try check(encoded.example, "text \(index + 1)")
        let batch = Batch([encoded.example])
        let logits = withoutGradients {
          classifier.logits(batch.tokens, ForwardContext(batch.tokens.layout))
        }
        for (place, row) in Self.rows(of: logits).enumerated() {
          guard let word = encoded.words[place], predictions[word] == nil else { continue }
          predictions[word] = Self.prediction(row, labels)
        }
      }
      result.append(predictions)
    }
    return result
  }

  /// The answer to a question, from its context.
  ///
  /// A context that is too long is read in windows, and the best answer of all counts.
  ///
  /// - Parameters:
  ///   - question: The question.
  ///   - context: Where the answer is.
  ///   - tokenizer: The model's.
  ///   - maxLength: Most tokens of a window.
  /// - Throws: ``PEFTError`` when the model answers no questions, or the question is too long.
  public func answer(
    _ question: String, context: String, tokenizer: Tokenizer, maxLength: Int? = nil
  ) throws(PEFTError) -> Answer {
    guard let model = base.model as? any QuestionAnswerer else {
      throw PEFTError(.unsupported, "the task \(task.name) answers no questions")
    }
    var encoder = QuestionEncoder(
      tokenizer, maxLength: length(maxLength, tokenizer), stride: data.stride)
    var answer = Answer(text: "", probability: 0)
    var best: AnswerSpan?
    for window in try encoder.windows(question: question, context: context)
    where !window.part.isEmpty {
      let hasTypes = base.model.inputLimits.hasSegments
      let example = Example(
        tokenIDs: window.ids, typeIDs: hasTypes ? window.types : nil, labels: [])
      try check(example, "the question")
      let batch = Batch([example])
      let logits = withoutGradients {
        model.logits(batch.tokens, ForwardContext(batch.tokens.layout)).scalars
      }
      guard let span = AnswerSpan(bestOf: logits, in: window.rows), span.isBetter(than: best)
      else { continue }
      best = span
      let inContext = span.shifted(by: window.part.lowerBound - window.offset)
      let written = encoder.words(of: inContext.tokens, in: context)
      let text = written.map(String.init) ?? tokenizer.decode(Array(window.ids[span.tokens]))
      let starts = Self.softmax(window.ids.indices.map { logits[2 * $0] })
      let ends = Self.softmax(window.ids.indices.map { logits[2 * $0 + 1] })
      let probability = starts[span.tokens.lowerBound] * ends[span.tokens.upperBound - 1]
      answer = Answer(text: text, probability: probability)
    }
    return answer
  }
}

/// A label and how probable it is.
public struct LabelProbability: Sendable, Equatable {
  /// The label.
  public var label: String
  /// Its probability.
  public var probability: Double
}

/// What a sequence classifier says of a text.
public enum Judgement: Sendable, Equatable {
  /// One of the labels.
  case label(Prediction)
  /// All labels, each with its own probability; those above a half apply.
  case labels([LabelProbability])
  /// Numbers.
  case values([Float])
}

/// A part of a context that answers a question.
public struct Answer: Sendable, Equatable {
  /// The words of the context that its tokens belong to.
  public var text: String
  /// The probability of its first token times that of its last one.
  public var probability: Double
}
