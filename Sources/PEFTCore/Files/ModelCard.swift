import PEFTSupport

/// The `README.md` of an adapter folder, with the front matter that the Hub reads.
///
/// The front matter is peft's: the base, the library, the pipeline of a causal language model, and
/// the tags. A card that is there keeps its text and whatever else its front matter says.
struct ModelCard {
  /// The adapter's settings.
  let config: any TunerConfig
  /// Whether the base is a model of transformers.
  let isTransformersModel: Bool
  /// Text after the front matter.
  let body: String?
  /// The card that is to be brought up to date.
  var existing: String?

  var text: String {
    let old = existing.map(Self.parts)
    var members = old?.members ?? []
    for (key, lines) in own {
      // The pipeline is the reader's choice once it is made.
      if let place = members.firstIndex(where: { $0.key == key }) {
        if key != "pipeline_tag" { members[place].lines = lines }
      } else {
        let place = members.firstIndex { $0.key > key } ?? members.count
        members.insert((key, lines), at: place)
      }
    }
    let front = members.flatMap(\.lines).joined(separator: "\n")
    let rest = body ?? old?.body ?? Self.standardBody
    return "---\n\(front)\n---\n\n\(rest)" + (rest.hasSuffix("\n") ? "" : "\n")
  }

  private var own: [(key: String, lines: [String])] {
    var result: [(key: String, lines: [String])] = []
    if let base = config.baseModel { result.append(("base_model", ["base_model: \(yaml(base))"])) }
    result.append(("library_name", ["library_name: peft"]))
    if config.taskType == TaskType.causalLM.name {
      result.append(("pipeline_tag", ["pipeline_tag: text-generation"]))
    }
    var tags: [String] = []
    if let base = config.baseModel { tags.append("base_model:adapter:\(base)") }
    if config.object["peft_type"]?.string == "LORA" { tags.append("lora") }
    if isTransformersModel { tags.append("transformers") }
    if !tags.isEmpty { result.append(("tags", ["tags:"] + tags.sorted().map { "- \(yaml($0))" })) }
    return result
  }

  private static let standardBody = """
    # Adapter

    An adapter in the format of Hugging Face PEFT.

    ### Framework versions

    - swift-peft, in the format of PEFT 0.21
    """

  /// The members of a card's front matter with their lines, and the text after it.
  private static func parts(
    _ card: String
  ) -> (members: [(key: String, lines: [String])], body: String) {
    let lines = card.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    guard lines.first == "---", let end = lines.dropFirst().firstIndex(of: "---") else {
      return ([], card)
    }
    var members: [(key: String, lines: [String])] = []
    for line in lines[1..<end] {
      let first = line.first
      if let colon = line.firstIndex(of: ":"), let first, first != " ", first != "-", first != "#" {
        members.append((String(line[..<colon]), [line]))
      } else if members.isEmpty {
        members.append(("", [line]))
      } else {
        members[members.count - 1].lines.append(line)
      }
    }
    return (members, lines[(end + 1)...].drop { $0.isEmpty }.joined(separator: "\n"))
  }
}

/// A text as a scalar of YAML: plain where that reads back as the same text, else in quotes.
private func yaml(_ text: String) -> String {
  let special = "-?:,[]{}#&*!|>'\"%@` "
  let words = ["null", "true", "false", "yes", "no", "on", "off", "~"]
  let isPlain =
    !text.isEmpty && !special.contains(text.first!) && text.last != ":" && text.last != " "
    && !text.contains(": ") && !text.contains(" #") && !words.contains(text.lowercased())
    && Double(text) == nil && text.unicodeScalars.allSatisfy { $0.value >= 0x20 }
  if isPlain { return text }
  return text.unicodeScalars.allSatisfy { $0.value >= 0x20 }
    ? "'\(text.replacing("'", with: "''"))'" : JSONValue.string(text).text()
}
