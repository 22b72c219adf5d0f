import PEFTSupport

/// What turns a piece of text into token ids.
enum Model: Sendable {
  case wordPiece(WordPiece)
  case bpe(BPE)

  /// The model's tokens, without those added beside it.
  var vocabulary: Vocabulary {
    switch self {
    case .wordPiece(let model): return model.vocabulary
    case .bpe(let model): return model.vocabulary
    }
  }

  /// The token for what the model does not know.
  var unknownID: Int32? {
    switch self {
    case .wordPiece(let model): return model.unknownID
    case .bpe(let model): return model.unknownID
    }
  }

  /// Whether the vocabulary holds raw bytes, translated from the byte-level alphabet.
  var isByteLevel: Bool {
    if case .bpe(let model) = self { return model.isByteLevel }
    return false
  }

  /// Appends the ids of every piece to `ids`.
  func encode(_ list: PieceList, _ scratch: inout Scratch, into ids: inout [Int32]) {
    switch self {
    case .wordPiece(let model):
      encode(list, &scratch, into: &ids) { text, piece, _, ids in
        model.encode(text, piece, into: &ids)
      }
    case .bpe(let model):
      encode(list, &scratch, into: &ids) { text, piece, buffers, ids in
        model.encode(text, piece, &buffers, into: &ids)
      }
    }
  }

  /// Encodes pieces through the cache.
  @inline(__always)
  private func encode(
    _ list: PieceList, _ scratch: inout Scratch, into ids: inout [Int32],
    _ encodePiece: (
      _ text: Span<UInt8>, _ piece: Range<Int>, _ buffers: inout MergeBuffers,
      _ ids: inout [Int32]
    ) -> Void
  ) {
    let text = list.bytes.span
    for piece in list.pieces {
      guard let key = PieceKey(text, piece) else {
        encodePiece(text, piece, &scratch.merging, &ids)
        continue
      }
      if scratch.cache.append(key, to: &ids) { continue }
      let start = ids.count
      encodePiece(text, piece, &scratch.merging, &ids)
      scratch.cache.insert(key, ids, from: start)
    }
  }
}

/// What an encoder keeps from piece to piece: buffers and results.
struct Scratch {
  var cache = PieceCache()
  var merging = MergeBuffers()
}
