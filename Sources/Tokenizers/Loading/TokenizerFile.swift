import PEFTSupport

/// The merges of a `tokenizer.json`: the two halves of each, one after the other in an arena.
struct RawMerges {
  var arena: [UInt8] = []
  /// Where the halves of each merge end.
  var ends: [(left: UInt32, right: UInt32)] = []
}

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
  /// Where each token of the vocabulary lies in ``arena``, and its id, in the order of the file.
  private(set) var entries: [(place: Vocabulary.Place, id: Int32)] = []
  private(set) var arena: [UInt8] = []
  /// The merges, when the model has any.
  private(set) var merges: RawMerges?

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
      case ("vocab", .object): try readVocabulary(&scanner)
      case ("vocab", .array):
        hasScores = true
        try scanner.skipValue()
      case ("merges", .array): try readMerges(&scanner)
      default: model[name] = try scanner.readValue()
      }
    }
  }

  private mutating func readVocabulary(_ scanner: inout JSONScanner) throws(PEFTError) {
    entries.removeAll()
    arena.removeAll()
    arena.reserveCapacity(1 << 20)
    try scanner.beginObject()
    var start = 0
    while try scanner.nextKey(isFirst: entries.isEmpty, appendingTo: &arena) {
      let id = try scanner.readInt()
      // Embedding tables have a row for each id: one beyond this is a mistake, and would only
      // exhaust the memory.
      guard id >= 0, id < 1 << 24, arena.count < Int(UInt32.max) else {
        throw scanner.error("the token id \(id) is out of range")
      }
      let length = UInt32(arena.count - start)
      entries.append((Vocabulary.Place(start: UInt32(start), length: length), Int32(id)))
      start = arena.count
    }
  }

  private mutating func readMerges(_ scanner: inout JSONScanner) throws(PEFTError) {
    var merges = RawMerges()
    merges.arena.reserveCapacity(arena.count)
    merges.ends.reserveCapacity(entries.count)
    try scanner.beginArray()
    while try scanner.nextElement(isFirst: merges.ends.isEmpty) {
      if scanner.peek() == .array {
        try Self.readPair(&scanner, &merges)
      } else {
        try Self.readJoinedPair(&scanner, &merges)
      }
    }
    self.merges = merges
  }

  /// A merge written as `["a", "b"]`.
  private static func readPair(
    _ scanner: inout JSONScanner, _ merges: inout RawMerges
  ) throws(PEFTError) {
    try scanner.beginArray()
    var count = 0
    var left = 0
    while try scanner.nextElement(isFirst: count == 0) {
      left = count == 1 ? merges.arena.count : left
      try scanner.readStringBytes(appendingTo: &merges.arena)
      count += 1
    }
    if count != 2 { throw scanner.error("a merge of \(count) parts, two were expected,") }
    merges.ends.append((UInt32(left), UInt32(merges.arena.count)))
  }

  /// A merge written as `"a b"`.
  private static func readJoinedPair(
    _ scanner: inout JSONScanner, _ merges: inout RawMerges
  ) throws(PEFTError) {
    let start = merges.arena.count
    try scanner.readStringBytes(appendingTo: &merges.arena)
    let space = UInt8(ascii: " ")
    guard let left = merges.arena[start...].firstIndex(of: space),
      !merges.arena[(left + 1)...].contains(space)
    else { throw scanner.error("a merge that is not two tokens with a space between") }
    merges.arena.remove(at: left)
    merges.ends.append((UInt32(left), UInt32(merges.arena.count)))
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
  func makeModel(isByteLevel: Bool) throws(PEFTError) -> (Model, RawMerges) {
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
    case "WordPiece":
      return (.wordPiece(try WordPiece(component, try makeVocabulary())), RawMerges())
    case "BPE":
      guard var merges else {
        throw PEFTError(.malformedFile, "'model' lacks the list 'merges'", at: path)
      }
      if isByteLevel { try decode(&merges) }
      let vocabulary =
        isByteLevel ? try makeByteLevelVocabulary() : try makeVocabulary()
      let model = try BPE(component, vocabulary, merges: merges, isByteLevel: isByteLevel)
      return (.bpe(model), merges)
    default: throw try component.replacing(type: type).unsupported("model")
    }
  }

  private func makeVocabulary() throws(PEFTError) -> Vocabulary {
    try requireTokens()
    return Vocabulary(arena: arena, entries: entries)
  }

  private func requireTokens() throws(PEFTError) {
    if hasScores {
      throw PEFTError(
        .malformedFile, "'model.vocab' is a list, an object was expected", at: path)
    }
    if entries.isEmpty {
      throw PEFTError(.malformedFile, "'model.vocab' is missing or empty", at: path)
    }
  }

  /// The vocabulary as raw bytes. Tokens with characters outside of the alphabet cannot occur in
  /// text; they keep their characters, and come last.
  private func makeByteLevelVocabulary() throws(PEFTError) -> Vocabulary {
    try requireTokens()
    var decoded: [UInt8] = []
    decoded.reserveCapacity(arena.count)
    var places: [(place: Vocabulary.Place, id: Int32)] = []
    places.reserveCapacity(entries.count)
    var foreign: [(place: Vocabulary.Place, id: Int32)] = []
    for entry in entries {
      let start = decoded.count
      let range = Int(entry.place.start)..<Int(entry.place.start + entry.place.length)
      let isKnown = ByteLevelAlphabet.decode(arena, range, into: &decoded)
      if !isKnown { decoded.append(contentsOf: arena[range]) }
      let length = UInt32(decoded.count - start)
      let place = Vocabulary.Place(start: UInt32(start), length: length)
      if isKnown { places.append((place, entry.id)) } else { foreign.append((place, entry.id)) }
    }
    return Vocabulary(arena: decoded, entries: places + foreign, unindexed: foreign.count)
  }

  private func decode(_ merges: inout RawMerges) throws(PEFTError) {
    var decoded = RawMerges()
    decoded.arena.reserveCapacity(merges.arena.count)
    decoded.ends.reserveCapacity(merges.ends.count)
    var start = 0
    for (rank, ends) in merges.ends.enumerated() {
      var halves: (UInt32, UInt32) = (0, 0)
      guard ByteLevelAlphabet.decode(merges.arena, start..<Int(ends.left), into: &decoded.arena)
      else { throw notByteLevel(rank) }
      halves.0 = UInt32(decoded.arena.count)
      guard
        ByteLevelAlphabet.decode(
          merges.arena, Int(ends.left)..<Int(ends.right), into: &decoded.arena)
      else { throw notByteLevel(rank) }
      halves.1 = UInt32(decoded.arena.count)
      decoded.ends.append(halves)
      start = Int(ends.right)
    }
    merges = decoded
  }

  private func notByteLevel(_ rank: Int) -> PEFTError {
    PEFTError(
      .malformedFile,
      "'model.merges[\(rank)]' has characters outside of the byte-level alphabet, but the"
        + " pre-tokenizer is ByteLevel", at: path)
  }
}
