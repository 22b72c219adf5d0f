import PEFTSupport
import Testing

@testable import Tokenizers

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Files that must be refused, and what the message says.
@Suite struct ErrorTests {
  private static let words = #"{"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0, "b": 1}}"#
  private static let bytes = #""pre_tokenizer": {"type": "ByteLevel"}, "model": "#

  static let refused: [(json: String, code: PEFTError.Code, words: [String])] = [
    ("", .malformedFile, ["not valid JSON"]),
    (#"{"model": {"vocab": {"a": 0"#, .malformedFile, ["not valid JSON", "byte 27"]),
    (#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"}]}"#, .malformedFile, []),
    (#"{"version": "1.0"}"#, .malformedFile, ["no 'model'"]),
    (
      #"{"model": {"type": "WordLevel", "vocab": {"a": 0}}}"#, .unsupported, ["model", "WordLevel"]
    ),
    (#"{"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}"#, .unsupported, ["Unigram"]),
    (#"{"model": {"unk_id": 0, "vocab": [["a", 0.5]]}}"#, .unsupported, ["Unigram"]),
    (#"{"model": {"type": "WordPiece", "vocab": {}}}"#, .malformedFile, ["vocab", "empty"]),
    (#"{"model": {"type": "WordPiece", "vocab": {"a": -1}}}"#, .malformedFile, ["out of range"]),
    (
      #"{"model": {"type": "WordPiece", "vocab": {"a": 9999999}}}"#, .malformedFile,
      ["out of range"]
    ),
    (#"{"model": {"type": "WordPiece", "vocab": {"a": 1.5}}}"#, .malformedFile, ["an integer"]),
    (
      #"{"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 0}}}"#, .malformedFile,
      ["'a'", "'b'", "same id 0"]
    ),
    (
      #"{"model": {"type": "WordPiece", "unk_token": "x", "vocab": {"a": 0}}}"#, .malformedFile,
      ["unk_token", "'x'"]
    ),
    (#"{"model": {"type": "BPE", "vocab": {"a": 0}}}"#, .malformedFile, ["merges"]),
    (
      #"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}"#, .malformedFile,
      ["merges[0]", "'a'", "'b'"]
    ),
    (
      #"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b", "c"]]}}"#,
      .malformedFile,
      ["3 strings"]
    ),
    (#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}"#, .malformedFile, ["space"]),
    (
      #"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}}"#, .unsupported,
      ["model.dropout", "0.1"]
    ),
    (
      #"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}}"#,
      .unsupported, ["end_of_word_suffix", "</w>"]
    ),
    (
      "{" + bytes + #"{"type": "BPE", "vocab": {"▁": 0}, "merges": [["▁", "▁"]]}}"#, .malformedFile,
      ["merges[0]"]
    ),
    ("{" + bytes + words + "}", .unsupported, ["WordPiece", "ByteLevel"]),
    (
      #"{"normalizer": {"type": "Nmt"}, "model": "# + words + "}", .unsupported,
      ["normalizer 'Nmt'"]
    ),
    (
      #"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Odd"}]}, "#
        + #""model": "# + words + "}", .unsupported, ["'Odd'", "normalizer.normalizers[1]"]
    ),
    (
      #"{"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}, "model": "#
        + words + "}", .unsupported, ["normalizer.pattern"]
    ),
    (
      #"{"normalizer": 3, "model": "# + words + "}", .malformedFile, ["'normalizer'", "an integer"]
    ),
    (
      #"{"pre_tokenizer": {"type": "UnicodeScripts"}, "model": "# + words + "}", .unsupported,
      ["pre-tokenizer 'UnicodeScripts'"]
    ),
    (
      #"{"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": "x+"}}, "#
        + #""model": "# + words + "}", .unsupported, ["x+", "pre_tokenizer.pattern"]
    ),
    (
      #"{"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "odd"}, "model": "# + words + "}",
      .unsupported, ["prepend_scheme", "odd"]
    ),
    (
      #"{"pre_tokenizer": {"type": "Metaspace", "replacement": "__"}, "model": "# + words + "}",
      .malformedFile, ["replacement", "one character"]
    ),
    (
      #"{"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, "#
        + #"{"type": "Digits"}]}, "model": "# + words + "}", .unsupported,
      ["'Digits'", "after ByteLevel"]
    ),
    (
      #"{"decoder": {"type": "CTC"}, "model": "# + words + "}", .unsupported, ["decoder 'CTC'"]
    ),
    (
      #"{"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "#
        + #""pattern": {"String": "a"}, "content": "b"}]}, "model": "# + words + "}", .unsupported,
      ["'Replace'", "after Fuse"]
    ),
    (
      #"{"post_processor": {"type": "Odd"}, "model": "# + words + "}", .unsupported,
      ["post-processor 'Odd'"]
    ),
    (
      #"{"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": "#
        + #"{"id": "[X]", "type_id": 0}}], "pair": [], "special_tokens": {}}, "model": "# + words
        + "}", .malformedFile, ["single[0]", "[X]"]
    ),
    (
      #"{"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": "#
        + #"{"id": "B", "type_id": 0}}], "pair": []}, "model": "# + words + "}", .malformedFile,
      ["single[0]", "'B'"]
    ),
    (
      #"{"post_processor": {"type": "BertProcessing", "cls": ["a", 0]}, "model": "# + words + "}",
      .malformedFile, ["post_processor.sep"]
    ),
    (
      #"{"truncation": {"max_length": 8, "strategy": "Odd"}, "model": "# + words + "}",
      .unsupported, ["truncation.strategy", "Odd"]
    ),
    (
      #"{"padding": {"strategy": {"Fixed": -4}}, "model": "# + words + "}", .malformedFile,
      ["padding.strategy"]
    ),
    (
      #"{"added_tokens": [{"id": 1}], "model": "# + words + "}", .malformedFile, ["added_tokens[0]"]
    ),
    (
      #"{"added_tokens": [{"content": "x"}], "model": "# + words + "}", .malformedFile,
      ["added_tokens[0]", "'id'"]
    ),
  ]

  @Test(arguments: refused.indices) func refuses(_ index: Int) throws {
    let (json, code, words) = Self.refused[index]
    let path = "\(Self.temporary)-\(index).json"
    try FileSystem.write(path, json)
    defer { FileSystem.removeTree(path) }
    let error = try #require(throws: PEFTError.self) { try Tokenizer(file: path) }
    #expect(error.code == code, "\(error)")
    #expect(error.location == path)
    for word in words { #expect(error.description.contains(word), "\(error)") }
  }

  @Test func missingFiles() throws {
    let missing = "\(Self.temporary)-missing"
    let noFolder = try #require(throws: PEFTError.self) { try Tokenizer(folder: missing) }
    #expect(noFolder.code == .fileNotFound)
    #expect(noFolder.description.contains("tokenizer.json"))
    let noFile = try #require(throws: PEFTError.self) { try Tokenizer(file: missing) }
    #expect(noFile.code == .fileNotFound)
    #expect(noFile.location == missing)
  }

  @Test func malformedConfiguration() throws {
    let folder = "\(Self.temporary)-folder"
    try FileSystem.createDirectory(folder)
    defer { FileSystem.removeTree(folder) }
    try FileSystem.write("\(folder)/tokenizer.json", #"{"model": "# + Self.words + "}")
    #expect(try Tokenizer(folder: folder).unkTokenID == 0)
    try FileSystem.write("\(folder)/tokenizer_config.json", #"{"eos_token": {"content": "b"}}"#)
    #expect(try Tokenizer(folder: folder).eosTokenID == 1)
    try FileSystem.write("\(folder)/tokenizer_config.json", "{")
    let error = try #require(throws: PEFTError.self) { try Tokenizer(folder: folder) }
    #expect(error.code == .malformedFile)
    #expect(error.location == "\(folder)/tokenizer_config.json")
  }

  /// The smallest file of all.
  @Test func acceptsAMinimalFile() throws {
    let path = "\(Self.temporary)-minimal.json"
    try FileSystem.write(path, #"{"model": "# + Self.words + "}")
    defer { FileSystem.removeTree(path) }
    let tokenizer = try Tokenizer(file: path)
    #expect(tokenizer.encode("b").ids == [1])
    #expect(tokenizer.decode([1, 0]) == "b a")
  }

  private static let temporary = "/tmp/tokenizer-tests-\(getpid())"
}
