import PEFTSupport

/// Everything that a tokenizer is made of, immutable after loading and shared by all its users.
final class TokenizerCore: Sendable {
  let normalizers: [any Normalizer]
  let preTokenizers: [any PreTokenizer]
  let model: Model
  let postProcessor: PostProcessor
  let decoderStages: [any DecoderStage]
  /// Whether the stages take tokens as raw bytes and not as they are spelled.
  let decodesBytes: Bool
  /// Without a decoder the reference joins tokens by spaces.
  let hasDecoder: Bool
  let added: AddedTokens
  let special: SpecialTokenIDs
  let vocabularySize: Int
  let truncation: Truncation?
  let padding: Padding?

  /// Reads a `tokenizer.json` and, beside it in `folder`, the files that name the special tokens.
  init(file path: String, folder: String?) throws(PEFTError) {
    let file = try TokenizerFile(path)
    normalizers = try file.component("normalizer").mapChecked(makeNormalizers) ?? []
    var splits: [any PreTokenizer] = []
    var isByteLevel = false
    if let component = try file.component("pre_tokenizer") {
      splits = try makePreTokenizers(component, isByteLevel: &isByteLevel)
    }
    let model = try file.makeModel(isByteLevel: isByteLevel)
    self.model = model
    if case .bpe(let bpe) = model, bpe.canCutWords, Self.leavesTextWhole(splits) {
      // SentencePiece takes a whole text as one piece: words are cheaper, and remembered.
      splits.append(WordMarkerSplit(marker: BPE.wordMarker, cutsInside: false))
    }
    preTokenizers = splits
    postProcessor = try file.component("post_processor").mapChecked(makePostProcessor) ?? .plain
    let decoder = try file.component("decoder")
    hasDecoder = decoder != nil
    var isJoined = false
    var stages: [any DecoderStage] = []
    if let decoder { stages = try makeDecoderStages(decoder, isJoined: &isJoined) }
    // Tokens at byte level are kept as bytes: no need to spell them and to read them again.
    decodesBytes = model.isByteLevel && stages.first is ByteLevelDecoder
    decoderStages = decodesBytes ? Array(stages.dropFirst()) : stages
    truncation = try file.component("truncation").mapChecked(Truncation.init)
    padding = try file.component("padding").mapChecked(Padding.init)

    var tokens: [AddedToken] = []
    for (place, value) in (file.members["added_tokens"]?.array ?? []).enumerated() {
      tokens.append(
        try AddedToken(Component(value, file: path, path: "added_tokens[\(place)]")))
    }
    added = AddedTokens(tokens, normalizers: normalizers)
    vocabularySize =
      model.vocabulary.count
      + added.contents.keys.count { model.vocabulary.range(of: $0) == nil }
    special = try SpecialTokenIDs(file: file, folder: folder, added: added, model: model)
  }
}

extension Optional {
  /// `map` for functions that throw ``PEFTError``.
  fileprivate func mapChecked<Result>(
    _ transform: (Wrapped) throws(PEFTError) -> Result
  ) throws(PEFTError) -> Result? {
    guard let self else { return nil }
    return try transform(self)
  }
}

extension TokenizerCore {
  /// Whether words reach the model uncut.
  private static func leavesTextWhole(_ steps: [any PreTokenizer]) -> Bool {
    guard let last = steps.last else { return true }
    return (last as? Metaspace)?.cutsWords == false
  }

  /// The id of a token, by its spelling in `tokenizer.json`.
  func id(of token: [UInt8]) -> Int32? { Self.id(of: token, added, model) }

  static func id(of token: [UInt8], _ added: AddedTokens, _ model: Model) -> Int32? {
    if let id = added.ids[token] { return id }
    if !model.isByteLevel { return model.vocabulary.id(of: token) }
    if let raw = ByteLevelAlphabet.decode(token) { return model.vocabulary.id(of: raw) }
    // Tokens that are not byte-level text are few, and looked for by hand only.
    let vocabulary = model.vocabulary
    return vocabulary.foreignIDs.first { vocabulary.bytes(of: $0) == token }
  }

  /// The spelling of a token in `tokenizer.json`.
  func token(for id: Int32) -> [UInt8]? {
    if let content = added.contents[id] { return content }
    guard let bytes = model.vocabulary.bytes(of: id) else { return nil }
    let isRaw = model.isByteLevel && !model.vocabulary.foreignIDs.contains(id)
    return isRaw ? ByteLevelAlphabet.encode(bytes) : bytes
  }

  /// A token as the decoder stages take it.
  func decoderInput(for id: Int32) -> [UInt8]? {
    if let spelling = added.spellings[id] {
      return decodesBytes ? ByteLevelDecoder.bytes(of: spelling) : spelling
    }
    if !decodesBytes { return token(for: id) }
    return model.vocabulary.bytes(of: id)
  }
}
