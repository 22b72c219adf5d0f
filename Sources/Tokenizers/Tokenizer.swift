import PEFTSupport

/// A tokenizer in the format of `tokenizer.json`: text to token ids and back, with the ids of the
/// Hugging Face `tokenizers` library.
///
/// The vocabulary is immutable and shared: copies are cheap, and one tokenizer serves any number of
/// threads. Every component of the file is either implemented or refused by name at load.
public struct Tokenizer: Sendable {
  let core: TokenizerCore

  /// How inputs are cut; from the file, `nil` for not at all.
  public var truncation: Truncation?
  /// How inputs are filled up; from the file, `nil` for not at all.
  ///
  /// Some files ask for a fixed length, which wastes time where batches are shorter: set this to
  /// `nil` or to ``Padding/Length/longestInBatch`` unless that is wanted.
  public var padding: Padding?

  /// Reads `tokenizer.json` in `folder`, and the names of the special tokens in
  /// `tokenizer_config.json` and `special_tokens_map.json` where present.
  ///
  /// - Throws: ``PEFTError``: `fileNotFound`, `malformedFile`, or `unsupported` with the name of a
  ///   component that is not implemented.
  public init(folder: String) throws(PEFTError) {
    let path = FileSystem.join(folder, "tokenizer.json")
    guard FileSystem.exists(path) else {
      throw PEFTError(
        .fileNotFound, "there is no tokenizer.json in the folder", at: folder,
        remedy: "Save it with tokenizer.save_pretrained() of transformers, or check the path.")
    }
    try self.init(TokenizerCore(file: path, folder: folder))
  }

  /// Reads a `tokenizer.json`, and nothing beside it.
  ///
  /// - Throws: ``PEFTError`` as ``init(folder:)`` does.
  public init(file: String) throws(PEFTError) {
    try self.init(TokenizerCore(file: file, folder: nil))
  }

  private init(_ core: TokenizerCore) throws(PEFTError) {
    self.core = core
    truncation = core.truncation
    padding = core.padding
  }

  // MARK: Encoding

  /// Encodes a text or a pair; see ``Encoder/encode(_:pair:addSpecialTokens:maxLength:)``.
  public func encode(
    _ text: String, pair: String? = nil, addSpecialTokens: Bool = true, maxLength: Int? = nil
  ) -> Encoding {
    var encoder = makeEncoder()
    return encoder.encode(
      text, pair: pair, addSpecialTokens: addSpecialTokens, maxLength: maxLength)
  }

  /// Encodes texts, padded together where ``padding`` says so.
  ///
  /// - Parameters:
  ///   - texts: The texts, or the first ones of pairs.
  ///   - pairs: The second texts, as many as `texts`.
  ///   - addSpecialTokens: Whether the post-processor adds its tokens.
  ///   - maxLength: The largest number of tokens per text, special tokens included, instead of that
  ///     of ``truncation``.
  public func encode(
    batch texts: [String], pairs: [String]? = nil, addSpecialTokens: Bool = true,
    maxLength: Int? = nil
  ) -> [Encoding] {
    precondition(pairs == nil || pairs?.count == texts.count, "as many pairs as texts are needed")
    var encoder = makeEncoder()
    var result: [Encoding] = []
    result.reserveCapacity(texts.count)
    for (place, text) in texts.enumerated() {
      result.append(encoder.encodeUnpadded(text, pairs?[place], addSpecialTokens, maxLength))
    }
    if let padding {
      let target = padding.target(longest: result.reduce(0) { max($0, $1.count) })
      for place in result.indices { result[place].pad(to: target, padding) }
    }
    return result
  }

  /// An encoder for many texts in a row, with the present ``truncation`` and ``padding``.
  public func makeEncoder() -> Encoder { Encoder(self) }

  // MARK: Decoding

  /// The text of token ids; ids without a token are left out.
  ///
  /// - Parameter skipSpecialTokens: Whether special tokens are left out.
  public func decode(_ ids: some Sequence<Int32>, skipSpecialTokens: Bool = true) -> String {
    var decoder = StreamingDecoder(core, skipsSpecialTokens: skipSpecialTokens, isStreaming: false)
    for id in ids { decoder.feed(id) }
    return decoder.finish()
  }

  /// A decoder for ids that come one by one.
  ///
  /// - Parameter skipSpecialTokens: Whether special tokens are left out.
  public func makeDecoder(skipSpecialTokens: Bool = true) -> StreamingDecoder {
    StreamingDecoder(core, skipsSpecialTokens: skipSpecialTokens)
  }

  // MARK: Tokens

  /// The id of a token, by its spelling in `tokenizer.json`: `"##ing"`, `"Ġthe"`, `"▁the"`.
  public func id(of token: String) -> Int32? { core.id(of: Array(token.utf8)) }

  /// The spelling of a token in `tokenizer.json`.
  public func token(for id: Int32) -> String? {
    core.token(for: id).map { String(decoding: $0, as: UTF8.self) }
  }

  /// The number of tokens, added ones included. Embedding tables may have more rows than this.
  public var vocabularySize: Int { core.vocabularySize }

  /// The token that begins a text.
  public var bosTokenID: Int32? { core.special.bos }
  /// The token that ends a text.
  public var eosTokenID: Int32? { core.special.eos }
  /// The token that fills up a batch; many decoder models have none.
  public var padTokenID: Int32? { core.special.pad }
  /// The token for what the vocabulary cannot express.
  public var unkTokenID: Int32? { core.special.unknown }
  /// The token between two texts (BERT).
  public var sepTokenID: Int32? { core.special.separator }
  /// The token whose output classifies the text (BERT).
  public var clsTokenID: Int32? { core.special.classification }
  /// The token that stands for a hidden one (BERT).
  public var maskTokenID: Int32? { core.special.mask }
}
