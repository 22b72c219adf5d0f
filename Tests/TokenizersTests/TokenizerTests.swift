import PEFTSupport
import TestSupport
import Testing

@testable import Tokenizers

/// The interface: tokens, special tokens, settings, streaming.
@Suite struct TokenizerTests {
  /// What the folders' own files say, and where they are silent the conventions of the family.
  @Test func specialTokens() throws {
    let expected: [(String, [Int32?])] = [
      // bos, eos, pad, unk, sep, cls, mask
      ("minilm-l6-v2", [nil, nil, 0, 100, 102, 101, 103]),
      ("stories260k", [1, 2, nil, 0, nil, nil, nil]),
      ("tokenizers/gpt2", [50256, 50256, nil, nil, nil, nil, nil]),
      ("tokenizers/roberta-base", [0, 2, 1, 3, 2, 0, 50264]),
      ("tokenizers/qwen2.5", [nil, 151645, 151643, nil, nil, nil, nil]),
    ]
    for (folder, ids) in expected {
      guard let path = TestData.path(folder) else { continue }
      let tokenizer = try Tokenizer(folder: path)
      let found = [
        tokenizer.bosTokenID, tokenizer.eosTokenID, tokenizer.padTokenID, tokenizer.unkTokenID,
        tokenizer.sepTokenID, tokenizer.clsTokenID, tokenizer.maskTokenID,
      ]
      #expect(found == ids, "\(folder)")
    }
  }

  @Test func vocabularySizes() throws {
    // len() of the tokenizers in Python.
    let expected = [
      ("minilm-l6-v2", 30522), ("stories260k", 512), ("tokenizers/gpt2", 50257),
      ("tokenizers/roberta-base", 50265), ("tokenizers/qwen2.5", 151665),
    ]
    for (folder, size) in expected {
      guard let path = TestData.path(folder) else { continue }
      #expect(try Tokenizer(folder: path).vocabularySize == size)
    }
  }

  @Test(arguments: GoldenTests.small) func idsAndTokens(_ name: String) throws {
    let tokenizer = try Tokenizer(file: Goldens.path("small/\(name).json"))
    let file = try Goldens.read("small/\(name).json")
    for (token, id) in try #require(file["model"]?["vocab"]?.object?.members) {
      let id = try #require(id.int.map(Int32.init))
      #expect(tokenizer.id(of: token) == id)
      #expect(tokenizer.token(for: id).map { Array($0.utf8) } == Array(token.utf8))
    }
    for token in file["added_tokens"]?.array ?? [] {
      let content = try #require(token["content"]?.string)
      let id = try #require(tokenizer.id(of: content))
      #expect(tokenizer.token(for: id) == content)
    }
    #expect(tokenizer.id(of: "no such token") == nil)
    #expect(tokenizer.token(for: -1) == nil)
    #expect(tokenizer.token(for: 1 << 20) == nil)
    #expect(tokenizer.decode([-1, 1 << 20]) == "")
  }

  @Test func truncationOfACall() throws {
    guard let path = TestData.path("minilm-l6-v2") else { return }
    var tokenizer = try Tokenizer(folder: path)
    let text = "one two three four five six"
    #expect(tokenizer.encode(text).count == 128)
    tokenizer.padding = nil
    let all = tokenizer.encode(text).ids
    #expect(all.count == 8)
    #expect(tokenizer.encode(text, maxLength: 5).ids == all.prefix(4) + [102])
    #expect(tokenizer.encode(text, addSpecialTokens: false, maxLength: 2).ids == Array(all[1...2]))
    // Special tokens stay when there is room for nothing else.
    #expect(tokenizer.encode(text, maxLength: 0).ids == [101, 102])
    let long = String(repeating: "a ", count: 300)
    #expect(tokenizer.encode(long).count == 128)
    #expect(tokenizer.encode(long, maxLength: 200).count == 200)
    tokenizer.truncation = nil
    #expect(tokenizer.encode(long).count == 302)
    #expect(tokenizer.encode(batch: [long, text], maxLength: 9).map(\.count) == [9, 8])
  }

  @Test func streamingHoldsBackIncompleteCharacters() throws {
    let tokenizer = try Tokenizer(file: Goldens.path("small/o200k.json"))
    let bytes = Array("é🎈".utf8)
    let ids = try bytes.map { byte in
      try #require(
        tokenizer.id(of: String(decoding: ByteLevelAlphabet.encode([byte]), as: UTF8.self)))
    }
    var decoder = tokenizer.makeDecoder()
    #expect(ids.map { decoder.append($0) } == ["", "é", "", "", "", "🎈"])
    #expect(decoder.finish() == "")
    // Cut off in the middle: one replacement character for what is there of the character.
    for id in ids.dropLast() { _ = decoder.append(id) }
    #expect(decoder.finish() == "\u{FFFD}")
  }

  @Test func streamingByteFallback() throws {
    let tokenizer = try Tokenizer(file: Goldens.path("small/metaspace.json"))
    let ids = try Array("🎈".utf8).map { byte in
      try #require(tokenizer.id(of: "<0x\(String(byte, radix: 16, uppercase: true))>"))
    }
    var decoder = tokenizer.makeDecoder()
    #expect(ids.map { decoder.append($0) } == ["", "", "", "🎈"])
    #expect(ids.dropLast().map { decoder.append($0) } == ["", "", ""])
    #expect(decoder.finish() == "\u{FFFD}\u{FFFD}\u{FFFD}")
  }

  /// One tokenizer, several tasks at once.
  @Test func sharedBetweenTasks() async throws {
    let tokenizer = try Tokenizer(file: Goldens.path("small/qwen3.5.json"))
    let texts = try Goldens.texts("corpus.json")
    let expected = tokenizer.encode(batch: texts)
    await withTaskGroup(of: [Tokenizer.Encoding].self) { group in
      for _ in 0..<4 { group.addTask { tokenizer.encode(batch: texts) } }
      for await found in group { #expect(found == expected) }
    }
  }
}
