import PEFTSupport

/// A `tokenizer.json` as it stands: the large tables as bytes, all else as JSON values.
struct TokenizerFile {
  let path: String
  /// The members of the file but for the model.
  private(set) var members: [String: JSONValue] = [:]
  /// The members of the model but for vocabulary and merges.
  private(set) var model = JSONObject()
  private(set) var hasModel = false
  /// Whether the model's vocabulary is a list, with scores, and not an object.
  private(set) var hasScores = false
  /// The tokens of the model as they are spelled, and their ids.
  private(set) var tokens = JSONScanner.IntegerTable()
  /// The two halves of each merge as they are spelled, when the model has merges.
  private(set) var merges: JSONScanner.PairTable?

  /// Reads the file at `path`.
  init(_ path: String) throws(PEFTError) {
    self.path = path
    var scanner = JSONScanner(try FileSystem.read(path))
    do {
      try read(&scanner)
      try scanner.expectEnd()
    } catch {
      throw error.located(at: path)
    }
    if !hasModel {
      throw PEFTError(
        .malformedFile, "there is no 'model' in it", at: path,
        remedy: "A tokenizer.json of the Hugging Face tokenizers library is expected.")
    }
  }

  private mutating func read(_ scanner: inout JSONScanner) throws(PEFTError) {
    try scanner.beginObject()
    var key: [UInt8] = []
    var isFirst = true
    while try scanner.nextKey(isFirst: isFirst, appendingTo: &key) {
      isFirst = false
      let name = String(decoding: key, as: UTF8.self)
      key.removeAll()
      if name == "model", scanner.peek() == .object {
        try readModel(&scanner)
      } else {
        members[name] = try scanner.readValue()
      }
    }
  }

  private mutating func readModel(_ scanner: inout JSONScanner) throws(PEFTError) {
    hasModel = true
    try scanner.beginObject()
    var key: [UInt8] = []
    var isFirst = true
    while try scanner.nextKey(isFirst: isFirst, appendingTo: &key) {
      isFirst = false
      let name = String(decoding: key, as: UTF8.self)
      key.removeAll()
      switch (name, scanner.peek()) {
      case ("vocab", .object): tokens = try scanner.readIntegerTable()
      case ("vocab", .array):
        hasScores = true
        try scanner.skipValue()
      case ("merges", .array): merges = try scanner.readPairTable()
      default: model[name] = try scanner.readValue()
      }
    }
  }

  // MARK: Components

  /// The component `key`, if the file has one.
  func component(_ key: String) throws(PEFTError) -> Component? {
    guard let value = members[key], !value.isNull else { return nil }
    return try Component(value, file: path, path: key)
  }

  /// Makes the model.
  ///
  /// - Parameter isByteLevel: Whether pieces reach the model in the byte-level alphabet.
  func makeModel(isByteLevel: Bool) throws(PEFTError) -> Model {
    let component = try Component(.object(model), file: path, path: "model")
    var type = component.type
    if type.isEmpty {
      // Files of early versions do not name the type.
      type = hasScores ? "Unigram" : merges != nil ? "BPE" : "WordPiece"
    }
    if isByteLevel, type != "BPE" {
      throw PEFTError(
        .unsupported, "the model '\(type)' after a ByteLevel pre-tokenizer is not supported",
        at: path)
    }
    switch type {
    case "WordPiece": return .wordPiece(try WordPiece(component, try makeVocabulary(false)))
    case "BPE":
      guard let merges else {
        throw PEFTError(.malformedFile, "'model' lacks the list 'merges'", at: path)
      }
      let vocabulary = try makeVocabulary(isByteLevel)
      return .bpe(try BPE(component, vocabulary, merges, isByteLevel: isByteLevel))
    default: throw try component.replacing(type: type).unsupported("model")
    }
  }

  private func makeVocabulary(_ isByteLevel: Bool) throws(PEFTError) -> Vocabulary {
    if hasScores {
      throw PEFTError(
        .malformedFile, "'model.vocab' is a list, an object was expected", at: path)
    }
    if tokens.values.isEmpty {
      throw PEFTError(.malformedFile, "'model.vocab' is missing or empty", at: path)
    }
    do {
      return try Vocabulary(tokens, isByteLevel: isByteLevel)
    } catch {
      throw error.located(at: path)
    }
  }
}
