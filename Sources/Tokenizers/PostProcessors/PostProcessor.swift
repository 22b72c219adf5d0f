import PEFTSupport

/// How one or two sequences and special tokens make the input of a model.
///
/// Every post-processor of the supported families is such a pair of templates.
struct PostProcessor: Sendable {
  /// A part of the result.
  enum Item: Sendable {
    /// The tokens of the first (0) or second (1) text.
    case sequence(Int, typeID: Int32)
    /// Special tokens.
    case tokens([Int32], typeID: Int32)
  }

  var single: [Item]
  var pair: [Item]

  /// The texts without special tokens, the second of type 1.
  static let plain = PostProcessor(
    single: [.sequence(0, typeID: 0)], pair: [.sequence(0, typeID: 0), .sequence(1, typeID: 1)])

  /// How many special tokens the result has besides the texts.
  func specialCount(isPair: Bool) -> Int {
    (isPair ? pair : single).reduce(0) { count, item in
      if case .tokens(let ids, _) = item { return count + ids.count }
      return count
    }
  }
}

/// Makes the templates of a `post_processor` of `tokenizer.json`.
func makePostProcessor(_ component: Component) throws(PEFTError) -> PostProcessor {
  switch component.type {
  case "TemplateProcessing": return try makeTemplate(component)
  // Changes offsets only.
  case "ByteLevel": return .plain
  case "BertProcessing": return try makeClassification(component, isRoBERTa: false)
  case "RobertaProcessing": return try makeClassification(component, isRoBERTa: true)
  case "Sequence":
    let steps = try component.children("processors").filter { $0.type != "ByteLevel" }
    if steps.count > 1 { throw steps[1].unsupported("second post-processor") }
    return try steps.first.map(makePostProcessor) ?? .plain
  default: throw component.unsupported("post-processor")
  }
}

/// BERT: `[CLS] A [SEP]` and `B [SEP]` of type 1. RoBERTa: `<s> A </s>` and `</s> B </s>`, all of
/// type 0.
private func makeClassification(
  _ component: Component, isRoBERTa: Bool
) throws(PEFTError) -> PostProcessor {
  let start = try token(component, "cls")
  let separator = try token(component, "sep")
  let second: Int32 = isRoBERTa ? 0 : 1
  let single: [PostProcessor.Item] = [
    .tokens([start], typeID: 0), .sequence(0, typeID: 0), .tokens([separator], typeID: 0),
  ]
  var pair = single
  if isRoBERTa { pair.append(.tokens([separator], typeID: 0)) }
  pair.append(.sequence(1, typeID: second))
  pair.append(.tokens([separator], typeID: second))
  return PostProcessor(single: single, pair: pair)
}

/// A token written as `["</s>", 2]`.
private func token(_ component: Component, _ key: String) throws(PEFTError) -> Int32 {
  guard let value = component.value(key)?.array, value.count == 2, let id = value[1].int, id >= 0,
    id < 1 << 24
  else {
    throw PEFTError(
      .malformedFile, "'\(component.path).\(key)' is not a token and its id", at: component.file)
  }
  return Int32(id)
}

private func makeTemplate(_ component: Component) throws(PEFTError) -> PostProcessor {
  var tokens: [String: [Int32]] = [:]
  for (name, token) in component.value("special_tokens")?.object?.members ?? [] {
    var ids: [Int32] = []
    for value in token["ids"]?.array ?? [] {
      guard let id = value.int, id >= 0, id < 1 << 24 else {
        throw component.wrong("special_tokens.\(name).ids", value, "a token id")
      }
      ids.append(Int32(id))
    }
    tokens[name] = ids
  }
  return PostProcessor(
    single: try makeItems(component, "single", tokens),
    pair: try makeItems(component, "pair", tokens))
}

private func makeItems(
  _ component: Component, _ key: String, _ tokens: [String: [Int32]]
) throws(PEFTError) -> [PostProcessor.Item] {
  guard let list = component.value(key)?.array else {
    throw PEFTError(
      .malformedFile, "'\(component.path)' lacks the list '\(key)'", at: component.file)
  }
  var items: [PostProcessor.Item] = []
  for (offset, value) in list.enumerated() {
    let place = "\(key)[\(offset)]"
    let member = value["Sequence"] ?? value["SpecialToken"]
    guard let name = member?["id"]?.string, let type = member?["type_id"]?.int, type >= 0,
      type <= Int(Int32.max)
    else { throw component.wrong(place, value, "a Sequence or SpecialToken with id and type_id") }
    if value["Sequence"] != nil {
      guard name == "A" || name == "B" && key == "pair" else {
        throw PEFTError(
          .malformedFile, "'\(component.path).\(place)' names the sequence '\(name)'",
          at: component.file, remedy: "The sequences are A and, in a pair, B.")
      }
      items.append(.sequence(name == "A" ? 0 : 1, typeID: Int32(type)))
    } else if let ids = tokens[name] {
      items.append(.tokens(ids, typeID: Int32(type)))
    } else {
      throw PEFTError(
        .malformedFile,
        "'\(component.path).\(place)' is the special token '\(name)', which is not among"
          + " 'special_tokens'", at: component.file)
    }
  }
  return items
}
