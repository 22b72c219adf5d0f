import PEFTSupport
import TestSupport
import Testing

@testable import Tokenizers

/// Ids from the reference files beside the models, which say how they were made.
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
    #expect(tokenizer.vocabularySize == 30522)
    #expect(tokenizer.clsTokenID == 101)
    #expect(tokenizer.sepTokenID == 102)
    #expect(tokenizer.padTokenID == 0)
    #expect(tokenizer.unkTokenID == 100)
    #expect(tokenizer.maskTokenID == 103)
    #expect(tokenizer.bosTokenID == nil)
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
    #expect(!generated.isEmpty)
    #expect(tokenizer.decode(generated) == greedy["text"]?.string)
    #expect(tokenizer.bosTokenID == 1)
    #expect(tokenizer.eosTokenID == 2)
    #expect(tokenizer.unkTokenID == 0)
    #expect(tokenizer.padTokenID == nil)
  }
}

/// A list of ids in a reference file.
func ids(_ value: JSONValue?) -> [Int32] {
  (value?.array ?? []).compactMap { $0.int.map(Int32.init) }
}
