import PEFTSupport
import TestSupport
import Testing

@testable import Tokenizers

/// Ids and texts that `tokenizers` 0.23.3 gives (Tests/Goldens/tokenizers/make_tokenizer_goldens.py).
@Suite struct GoldenTests {
  static let published = [
    "minilm": "minilm-l6-v2", "stories260k": "stories260k", "gpt2": "tokenizers/gpt2",
    "roberta": "tokenizers/roberta-base", "qwen2.5": "tokenizers/qwen2.5",
  ]
  static let small = [
    "bert-added", "gemma", "llama3", "metaspace", "metaspace-words", "o200k", "qwen3.5", "runs",
    "tekken", "words",
  ]

  @Test(arguments: published.keys.sorted()) func publishedTokenizer(_ name: String) throws {
    let folder = try #require(Self.published[name])
    guard let path = TestData.path("\(folder)/tokenizer.json") else { return }
    try compare(name, Tokenizer(file: path))
  }

  @Test(arguments: small) func smallTokenizer(_ name: String) throws {
    try compare(name, Tokenizer(file: Goldens.path("small/\(name).json")))
  }

  private func compare(_ name: String, _ loaded: Tokenizer) throws {
    var tokenizer = loaded
    tokenizer.padding = nil
    tokenizer.truncation = nil
    let golden = try Goldens.read("\(name).json")
    var texts = try Goldens.texts("corpus.json")
    if name == "bert-added" { texts += try Goldens.texts("added-texts.json") }
    let encode = try #require(golden["encode"]?.array)
    #expect(encode.count == texts.count)
    // One encoder for all: what it remembers must not change anything.
    var encoder = tokenizer.makeEncoder()
    for (text, expected) in zip(texts, encode) {
      let wanted = ids(expected["ids"])
      #expect(tokenizer.encode(text).ids == wanted, "\(text)")
      let again = encoder.encode(text)
      #expect(again.ids == wanted, "\(text)")
      #expect(again.typeIDs.count == wanted.count && again.specialTokensMask.count == wanted.count)
      decode(tokenizer, wanted, expected["text"]?.string, skip: false)
      decode(tokenizer, wanted, expected["skipped"]?.string, skip: true)
    }
    let batch = tokenizer.encode(batch: texts)
    #expect(batch.map(\.ids) == encode.map { ids($0["ids"]) })
    for plain in try #require(golden["plain"]?.array) {
      let text = texts[try #require(plain["at"]?.int)]
      #expect(tokenizer.encode(text, addSpecialTokens: false).ids == ids(plain["ids"]), "\(text)")
    }
    for pair in try #require(golden["pairs"]?.array) {
      let place = try #require(pair["at"]?.int)
      let encoding = tokenizer.encode(texts[place], pair: texts[place + 1])
      #expect(encoding.ids == ids(pair["ids"]), "\(texts[place])")
      #expect(encoding.typeIDs == ids(pair["types"]), "\(texts[place])")
      #expect(encoding.specialTokensMask == ids(pair["special"]).map { $0 == 1 })
      let bare = tokenizer.encode(texts[place], pair: texts[place + 1], addSpecialTokens: false)
      #expect(bare.typeIDs == ids(pair["bareTypes"]))
    }
    for list in try #require(golden["decode"]?.array) {
      let text = tokenizer.decode(ids(list["ids"]), skipSpecialTokens: false)
      #expect(text == list["text"]?.string, "\(ids(list["ids"]))")
    }
  }

  /// Decodes at once and in a stream.
  private func decode(_ tokenizer: Tokenizer, _ ids: [Int32], _ expected: String?, skip: Bool) {
    #expect(tokenizer.decode(ids, skipSpecialTokens: skip) == expected)
    var decoder = tokenizer.makeDecoder(skipSpecialTokens: skip)
    var text = ""
    for id in ids { text += decoder.append(id) }
    text += decoder.finish()
    #expect(text == expected)
  }

  @Test func truncation() throws {
    guard let path = TestData.path("minilm-l6-v2/tokenizer.json") else { return }
    var tokenizer = try Tokenizer(file: path)
    tokenizer.padding = nil
    for item in try #require(Goldens.read("settings.json")["truncation"]?.array) {
      let length = try #require(item["maxLength"]?.int)
      let strategies: [String: Truncation.Strategy] = [
        "longest_first": .longestFirst, "only_first": .onlyFirst, "only_second": .onlySecond,
      ]
      let strategy = try #require(item["strategy"]?.string.flatMap { strategies[$0] })
      tokenizer.truncation = Truncation(
        maxLength: length, strategy: strategy, side: item["side"]?.string == "left" ? .left : .right
      )
      for pair in try #require(item["pairs"]?.array) {
        let texts = (pair["texts"]?.array ?? []).compactMap(\.string)
        let encoding = tokenizer.encode(texts[0], pair: texts[1])
        #expect(encoding.ids == ids(pair["ids"]), "\(item["strategy"]?.string ?? "") \(length)")
        #expect(encoding.typeIDs == ids(pair["types"]))
      }
    }
  }

  @Test func padding() throws {
    guard let path = TestData.path("minilm-l6-v2/tokenizer.json") else { return }
    var tokenizer = try Tokenizer(file: path)
    tokenizer.truncation = nil
    let golden = try Goldens.read("settings.json")
    let texts = (golden["texts"]?.array ?? []).compactMap(\.string)
    for item in try #require(golden["padding"]?.array) {
      tokenizer.padding = Padding(
        length: item["length"]?.int.map { .fixed($0) } ?? .longestInBatch,
        multiple: item["multiple"]?.int, side: item["side"]?.string == "left" ? .left : .right,
        tokenID: 7, typeID: 3)
      let encodings = tokenizer.encode(batch: texts)
      #expect(encodings.map(\.ids) == item["ids"]?.array?.map(ids))
      #expect(encodings.map(\.typeIDs) == item["types"]?.array?.map(ids))
      let masks = encodings.map { $0.attentionMask.map { $0 ? Int32(1) : 0 } }
      #expect(masks == item["attention"]?.array?.map(ids))
      let special = encodings.map { $0.specialTokensMask.map { $0 ? Int32(1) : 0 } }
      #expect(special == item["special"]?.array?.map(ids))
    }
  }
}

/// The committed files of expected results.
enum Goldens {
  static func path(_ name: String) -> String {
    let tests = #filePath.split(separator: "/").dropLast(2).joined(separator: "/")
    return "/\(tests)/Goldens/tokenizers/\(name)"
  }

  static func read(_ name: String) throws -> JSONValue { try FileSystem.readJSON(path(name)) }

  static func texts(_ name: String) throws -> [String] {
    try (read(name).array ?? []).compactMap(\.string)
  }
}
