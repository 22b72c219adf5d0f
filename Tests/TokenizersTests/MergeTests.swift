import PEFTSupport
import Testing

@testable import Tokenizers

/// Byte-pair encoding against its definition: merge the leftmost pair of the lowest rank, until none
/// is left. Pieces are long enough for both the scan and the heap.
@Suite struct MergeTests {
  @Test func matchesDefinition() throws {
    let tokenizer = try Tokenizer(file: Goldens.path("small/o200k.json"))
    let model = try #require(try Goldens.read("small/o200k.json")["model"])
    var ranks: [[String]: Int] = [:]
    for (rank, merge) in (model["merges"]?.array ?? []).enumerated() {
      ranks[(merge.array ?? []).compactMap(\.string)] = rank
    }
    #expect(ranks.count > 100)
    var generator = SeededGenerator(3)
    var buffers = MergeBuffers()
    guard case .bpe(let bpe) = tokenizer.core.model else {
      Issue.record("not a BPE model")
      return
    }
    for round in 0..<300 {
      let count = round < 150 ? round : 2 * round
      // Frequent letters, so that there is much to merge.
      let text = (0..<count).map { _ in
        Array("etaoinshrdlu e".utf8).randomElement(using: &generator) ?? 0x20
      }
      var found: [Int32] = []
      bpe.encode(text.span, 0..<text.count, &buffers, into: &found)
      let expected = Self.encode(text, ranks).map { tokenizer.id(of: $0) }
      #expect(found.map { Optional($0) } == expected, "\(count) bytes")
    }
  }

  private static func encode(_ bytes: [UInt8], _ ranks: [[String]: Int]) -> [String] {
    var symbols = bytes.map { String(decoding: ByteLevelAlphabet.encode([$0]), as: UTF8.self) }
    while true {
      var best: (rank: Int, place: Int)?
      for place in symbols.indices.dropLast() {
        guard let rank = ranks[[symbols[place], symbols[place + 1]]] else { continue }
        if rank < best?.rank ?? .max { best = (rank, place) }
      }
      guard let best else { return symbols }
      symbols[best.place] += symbols.remove(at: best.place + 1)
    }
  }

  /// A cut before words must not change anything: the same model with and without.
  @Test func cutWordsAreExact() throws {
    // Trained on words, and on whole texts: the merges of the second go across words.
    let words = try Tokenizer(file: Goldens.path("small/metaspace-words.json"))
    let texts = try Tokenizer(file: Goldens.path("small/metaspace.json"))
    guard case .bpe(let bpe) = words.core.model, case .bpe(let other) = texts.core.model else {
      Issue.record("not BPE models")
      return
    }
    #expect(bpe.canCutWords)
    #expect(!other.canCutWords)
    #expect(texts.core.preTokenizers.count == 1)
    var buffers = MergeBuffers()
    for text in try Goldens.texts("corpus.json") {
      let bytes = Array(text.replacing(" ", with: "▁").utf8)
      var whole: [Int32] = []
      bpe.encode(bytes.span, 0..<bytes.count, &buffers, into: &whole)
      var list = PieceList()
      list.bytes = bytes
      list.pieces = bytes.isEmpty ? [] : [0..<bytes.count]
      WordMarkerSplit(marker: BPE.wordMarker, cutsInside: false).split(&list)
      var cut: [Int32] = []
      for piece in list.pieces { bpe.encode(bytes.span, piece, &buffers, into: &cut) }
      #expect(cut == whole, "\(text)")
    }
  }

  /// More pieces than the cache holds, with repetitions.
  @Test func cacheForgetsWithoutError() throws {
    let tokenizer = try Tokenizer(file: Goldens.path("small/tekken.json"))
    var encoder = tokenizer.makeEncoder()
    for round in 0..<2 {
      for number in stride(from: 0, to: 80_000, by: 97) {
        let word = "w\(String(number, radix: 36, uppercase: false)) x"
        #expect(encoder.ids(of: word) == tokenizer.encode(word).ids, "\(round)")
      }
    }
    var cache = PieceCache()
    for number in 0..<100_000 {
      let text = Array("\(number)".utf8)
      let found = try #require(key(text, 0..<text.count))
      cache.insert(found, [Int32(number)], from: 0)
      var ids: [Int32] = []
      #expect(cache.append(found, to: &ids) && ids == [Int32(number)])
    }
  }

  @Test func pieceKeys() throws {
    let text = Array("abcdefghijklmnopqrstuvwxyz0123456789".utf8)
    #expect(key(text, 0..<0) == nil)
    #expect(key(text, 0..<16) == nil)
    // The same bytes give the same key, wherever they are; others do not.
    for count in 1...15 {
      let found = try #require(key(text, 3..<3 + count))
      let alone = Array(text[3..<3 + count])
      let same = try #require(key(alone, 0..<count))
      #expect(found.low == same.low && found.high == same.high)
      let other = try #require(key(text, 4..<4 + count))
      #expect(found.low != other.low || found.high != other.high)
    }
    // A trailing zero byte is not the same as none.
    let zeros: [UInt8] = [0x61, 0, 0]
    let two = try #require(key(zeros, 0..<2))
    let three = try #require(key(zeros, 0..<3))
    #expect(two.high != three.high)
  }

  private func key(_ bytes: [UInt8], _ range: Range<Int>) -> PieceKey? {
    PieceKey(bytes.span, range)
  }
}
