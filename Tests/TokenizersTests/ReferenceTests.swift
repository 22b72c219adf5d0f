import PEFTSupport
import TestSupport
import Testing

@testable import Tokenizers

/// Ids from the reference files beside the published tokenizers, which say how they were made.
@Suite struct ReferenceTests {
  @Test func miniLM() throws {
    guard let folder = TestData.path("minilm-l6-v2") else { return }
    var tokenizer = try Tokenizer(folder: folder)
    #expect(tokenizer.truncation == Truncation(maxLength: 128))
    #expect(tokenizer.padding == Padding(length: .fixed(128)))
    tokenizer.padding = nil
    let reference = try FileSystem.readJSON("\(folder)/reference.json")
    let items = try #require(reference["items"]?.array)
    #expect(items.count == 8)
    for item in items {
      let text = try #require(item["text"]?.string)
      #expect(tokenizer.encode(text).ids == ids(item["ids"]), "\(text)")
    }
  }

  @Test func stories() throws {
    guard let folder = TestData.path("stories260k") else { return }
    let tokenizer = try Tokenizer(folder: folder)
    let reference = try FileSystem.readJSON("\(folder)/reference.json")
    let items = try #require(reference["encode"]?.array)
    #expect(items.count == 8)
    for item in items {
      let text = try #require(item["text"]?.string)
      #expect(tokenizer.encode(text).ids == ids(item["ids"]), "\(text)")
    }
    let greedy = try #require(reference["greedy"])
    let generated = ids(greedy["ids"])
    #expect(generated.count > 100)
    #expect(tokenizer.decode(generated) == greedy["text"]?.string)
  }

  /// Texts and ids of llama.cpp's tests.
  @Test(
    arguments: [
      ("gpt-2", "tokenizers/gpt2"), ("roberta-bpe", "tokenizers/roberta-base"),
      ("qwen2", "tokenizers/qwen2.5"), ("bert-bge", "minilm-l6-v2"),
    ])
  func ggufVocabulary(_ name: String, _ folder: String) throws {
    guard let file = TestData.path("\(folder)/tokenizer.json"),
      let input = TestData.path("gguf-vocab/ggml-vocab-\(name).gguf.inp"),
      let output = TestData.path("gguf-vocab/ggml-vocab-\(name).gguf.out")
    else { return }
    let tokenizer = try Tokenizer(file: file)
    var encoder = tokenizer.makeEncoder()
    let texts = split(try FileSystem.read(input), at: Array("\n__ggml_vocab_test__\n".utf8))
    let lines = split(try FileSystem.read(output), at: [0x0A])
    #expect(texts.count == 46)
    for (text, line) in zip(texts, lines) {
      let expected = line.split(separator: " ").compactMap { Int32($0) }
      #expect(encoder.ids(of: text) == expected, "\(text.debugDescription)")
    }
  }

  /// Ids of swift-transformers' tests, made with transformers. (Their decoded texts have been through
  /// the clean-up of transformers, which is no part of a tokenizer.json.)
  @Test(
    arguments: [
      ("bert-base-uncased", "minilm-l6-v2"), ("google-bert/bert-base-uncased", "minilm-l6-v2"),
      ("distilgpt2", "tokenizers/gpt2"),
    ])
  func vectors(_ name: String, _ folder: String) throws {
    guard let file = TestData.path("\(folder)/tokenizer.json"),
      let path = TestData.path("tokenizer-vectors/tokenizer_tests.json")
    else { return }
    var tokenizer = try Tokenizer(file: file)
    tokenizer.padding = nil
    let items = try #require(try FileSystem.readJSON(path)[name]?.array)
    #expect(items.count == 18)
    for item in items {
      let text = try #require(item["input"]?.string)
      let expected = try #require(item["encoded"])
      let encoding = tokenizer.encode(text)
      #expect(encoding.ids == ids(expected["input_ids"]), "\(text)")
      if expected["token_type_ids"] != nil {
        #expect(encoding.typeIDs == ids(expected["token_type_ids"]))
      }
    }
  }

  /// Questions as WordPiece ids: their text gives the ids again, as it does with `tokenizers`.
  @Test func questions() throws {
    guard let file = TestData.path("minilm-l6-v2/tokenizer.json"),
      let path = TestData.path("tokenizer-vectors/tokenized_questions.json")
    else { return }
    let tokenizer = try Tokenizer(file: file)
    var encoder = tokenizer.makeEncoder()
    let questions = try #require(try FileSystem.readJSON(path).array)
    #expect(questions.count == 10570)
    let wrong = questions.prefix(2000).filter {
      encoder.ids(of: tokenizer.decode(ids($0))) != ids($0)
    }
    #expect(wrong.isEmpty)
  }

  private func split(_ bytes: [UInt8], at separator: [UInt8]) -> [String] {
    var parts: [String] = []
    var start = 0
    var place = 0
    while place < bytes.count {
      if bytes[place...].starts(with: separator) {
        parts.append(String(decoding: bytes[start..<place], as: UTF8.self))
        place += separator.count
        start = place
      } else {
        place += 1
      }
    }
    if start < bytes.count { parts.append(String(decoding: bytes[start...], as: UTF8.self)) }
    return parts
  }
}

/// A list of ids in a reference file.
func ids(_ value: JSONValue?) -> [Int32] {
  (value?.array ?? []).compactMap { $0.int.map(Int32.init) }
}
