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

  /// Reads `input_ids` and, where present, `attention_mask`, `token_type_ids` and `labels`.
  ///
  /// - Throws: ``PEFTError`` naming the file and the tensor: missing, of another type or shape.
  init(_ path: String) throws(PEFTError) {
    self.path = path
    let file = try SafetensorsFile(path)
    let known = ["input_ids", "attention_mask", "token_type_ids", "labels"]
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
    labels = file["labels"] == nil ? nil : try file.integers("labels")
  }

  /// All places of the rectangle as rows, hidden ones included: their outputs are written too.
  ///
  /// Positions are column numbers, whatever the mask says, as transformers counts them.
  var rectangle: TokenBatch {
    batch { _ in width }
  }

  /// The rows that decide about a class.
  ///
  /// Hidden places at the end are left out, so that a decoder's last row is the last visible token
  /// and no work is done for padding.
  ///
  /// - Parameter paddingToken: Found at the end of a sequence, it is padding; for inputs without a
  ///   mask.
  func trimmed(paddingToken: Int32?) -> TokenBatch {
    batch { row in
      let places = row * width..<(row + 1) * width
      let last = places.last { place in
        if let mask { return mask[place] != 0 }
        return paddingToken.map { ids[place] != $0 } ?? true
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
