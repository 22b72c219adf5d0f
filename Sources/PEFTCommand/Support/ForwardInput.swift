import PEFT

/// The tensors that `peft forward` runs on, checked.
struct ForwardInput {
  /// The file.
  let path: String
  /// Number of sequences.
  let batch: Int
  /// Columns of the rectangle.
  let width: Int
  /// `[batch, width]`.
  let ids: [Int32]
  /// `[batch, width]`, 0 for places that are not to be attended to.
  let mask: [Int32]?
  /// `[batch, width]`.
  let types: [Int32]?
  /// `[batch]` or `[batch, width]`.
  let labels: (shape: [Int], values: [Int32])?
  /// `labels` as numbers, `[batch, labels]`, of several labels or of a regression.
  let targets: Tensor?
  /// `start_positions` and `end_positions`, `[batch]`.
  let answers: (starts: [Int32], ends: [Int32])?

  /// Reads `input_ids` and, where present, `attention_mask`, `token_type_ids`, and `labels` or
  /// `start_positions` and `end_positions`.
  ///
  /// - Throws: ``PEFTError`` naming the file and the tensor: missing, of another type or shape.
  init(_ path: String) throws(PEFTError) {
    self.path = path
    let file = try SafetensorsFile(path)
    let known = [
      "input_ids", "attention_mask", "token_type_ids", "labels", "start_positions",
      "end_positions",
    ]
    if let other = file.names.first(where: { !known.contains($0) }) {
      throw PEFTError(
        .unexpectedTensor, "the tensor '\(other)' is not an input", at: path,
        remedy: Spelling.suggestion(for: other, among: known))
    }
    let (shape, ids) = try file.integers("input_ids")
    guard shape.count == 2, shape[0] > 0, shape[1] > 0 else {
      throw PEFTError(
        .shapeMismatch, "'input_ids' has shape \(shape), [batch, tokens] was expected", at: path)
    }
    func rectangle(_ name: String) throws(PEFTError) -> [Int32]? {
      guard file[name] != nil else { return nil }
      let tensor = try file.integers(name)
      guard tensor.shape == shape else {
        throw PEFTError(
          .shapeMismatch, "'\(name)' has shape \(tensor.shape), that of 'input_ids' is \(shape)",
          at: path)
      }
      return tensor.values
    }
    (batch, width) = (shape[0], shape[1])
    self.ids = ids
    mask = try rectangle("attention_mask")
    types = try rectangle("token_type_ids")
    if file["labels"]?.type == .float32 {
      (labels, targets) = (nil, try file.tensor("labels"))
    } else {
      (labels, targets) = (file["labels"] == nil ? nil : try file.integers("labels"), nil)
    }
    let answerKeys = ["start_positions", "end_positions"].filter { file[$0] != nil }
    if answerKeys.count == 1 {
      throw PEFTError(
        .missingTensor, "'\(answerKeys[0])' needs the other end of the answers beside it", at: path)
    }
    var places: [[Int32]] = []
    for key in answerKeys {
      let tensor = try file.integers(key)
      guard tensor.shape == [shape[0]] else {
        throw PEFTError(
          .shapeMismatch, "'\(key)' has shape \(tensor.shape), [\(shape[0])] was expected", at: path
        )
      }
      if let negative = tensor.values.first(where: { $0 < 0 }) {
        throw PEFTError(
          .invalidData, "'\(key)' holds \(negative), places from 0 were expected", at: path,
          remedy: "Places beyond the last token are not counted.")
      }
      places.append(tensor.values)
    }
    answers = places.count == 2 ? (places[0], places[1]) : nil
  }

  /// Whether there is anything to compute a loss from.
  var hasLabels: Bool { labels != nil || targets != nil || answers != nil }

  /// All places of the rectangle as rows, hidden ones included: their outputs are written too.
  ///
  /// Positions are column numbers, whatever the mask says, as transformers counts them.
  var rectangle: TokenBatch {
    batch { _ in width }
  }

  /// The rows that decide about a class.
  ///
  /// Places at the end that decide nothing are left out: no work is done for padding.
  ///
  /// - Parameter paddingToken: Where there is one, it alone says what padding is, as in
  ///   transformers; else the mask does.
  func trimmed(paddingToken: Int32?) -> TokenBatch {
    batch { row in
      let places = row * width..<(row + 1) * width
      let last = places.last { place in
        if let paddingToken { return ids[place] != paddingToken }
        return mask.map { $0[place] != 0 } ?? true
      }
      return last.map { $0 - places.lowerBound + 1 } ?? 1
    }
  }

  private func batch(_ length: (_ row: Int) -> Int) -> TokenBatch {
    var places: [Int] = []
    var lengths: [Int] = []
    for row in 0..<batch {
      lengths.append(length(row))
      places += row * width..<row * width + lengths[row]
    }
    let plain = SequenceLayout(lengths: lengths)
    let layout = SequenceLayout(
      offsets: plain.offsets, positions: plain.positions,
      keyMask: mask.map { mask in places.map { mask[$0] == 0 ? 0 : 1 } })
    return TokenBatch(
      tokenIDs: places.map { ids[$0] },
      tokenTypeIDs: types.map { types in places.map { types[$0] } },
      layout: layout)
  }

  /// The label of each sequence, for a classifier.
  ///
  /// - Parameter classes: Number of labels.
  /// - Throws: ``PEFTError`` for another shape or a label that is no class.
  func classLabels(_ classes: Int) throws(PEFTError) -> [Int32]? {
    guard let labels else { return nil }
    guard labels.shape == [batch] else { throw wrongLabels("[\(batch)]") }
    try check(classes)
    return labels.values
  }

  /// The numbers of each sequence, for several labels or a regression; integers count too.
  ///
  /// - Parameter count: How many a sequence has.
  /// - Throws: ``PEFTError`` for another shape.
  func numbers(_ count: Int) throws(PEFTError) -> [Float]? {
    let shape: [Int]
    let values: [Float]
    if let targets {
      (shape, values) = (targets.shape, targets.scalars)
    } else if let labels {
      (shape, values) = (labels.shape, labels.values.map(Float.init))
    } else {
      return nil
    }
    guard shape == [batch, count] || count == 1 && shape == [batch] else {
      throw PEFTError(
        .shapeMismatch,
        "'labels' has shape \(shape), [\(batch), \(count)] was expected for this task", at: path)
    }
    return values
  }

  /// The label of each row of the rectangle, for a classifier of tokens.
  ///
  /// - Parameter classes: Number of labels.
  /// - Throws: ``PEFTError`` for another shape or a label that is no class.
  func tokenLabels(_ classes: Int) throws(PEFTError) -> [Int32]? {
    guard let labels else { return nil }
    guard labels.shape == [batch, width] else { throw wrongLabels("[\(batch), \(width)]") }
    try check(classes)
    return labels.values
  }

  /// The ends of the answers; those beyond the rectangle do not count, as in transformers.
  var answerRows: (starts: [Int32], ends: [Int32])? {
    answers.map { answers in
      func valid(_ places: [Int32]) -> [Int32] {
        places.map { Int($0) < width ? $0 : ignoredLabel }
      }
      return (valid(answers.starts), valid(answers.ends))
    }
  }

  /// For each row of the rectangle the label of the next one, for a language model.
  ///
  /// - Parameter classes: Size of the vocabulary.
  /// - Throws: ``PEFTError`` for another shape or a label that is no token.
  func nextTokenLabels(_ classes: Int) throws(PEFTError) -> [Int32]? {
    guard let labels else { return nil }
    guard labels.shape == [batch, width] else { throw wrongLabels("[\(batch), \(width)]") }
    try check(classes)
    return (0..<batch * width).map { place in
      (place + 1) % width == 0 ? ignoredLabel : labels.values[place + 1]
    }
  }

  private func wrongLabels(_ expected: String) -> PEFTError {
    PEFTError(
      .shapeMismatch,
      "'labels' has shape \(labels?.shape ?? []), \(expected) was expected for this task", at: path)
  }

  private func check(_ classes: Int) throws(PEFTError) {
    let wrong = labels?.values.first { $0 != ignoredLabel && ($0 < 0 || Int($0) >= classes) }
    if let wrong, classes > 1 {
      throw PEFTError(
        .invalidData, "'labels' holds \(wrong), the model has \(classes) classes", at: path,
        remedy: "Labels that are not to count are \(ignoredLabel).")
    }
  }
}
