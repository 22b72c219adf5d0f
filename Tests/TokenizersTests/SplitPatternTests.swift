import Foundation
import Testing

@testable import Tokenizers

/// The hand-written splitters against a regular expression engine (ICU's) with the same patterns.
@Suite struct SplitPatternTests {
  private static let common = [
    " ", " ", "  ", "\n", "\r\n", "\t", "\u{A0}", "\u{3000}", "\u{85}", "\u{B}", "'s", "'S", "'T",
    "'re", "'LL", "'vE", "'m", "'D", "'l", "'", "'ſ", "’s", "a", "b", "Ab", "ABC", "abC", "ſ", "1",
    "23", "4567", "²", "!", "?!", "/", "//", "_", "-", "\u{301}", "\u{308}", "ʰ", "中", "א", "ǅ",
    "😀",
  ]

  @Test(arguments: SplitPattern.known.indices) func matchesEngine(_ index: Int) throws {
    let (regex, pattern) = SplitPattern.known[index]
    // The engine's own idea of white space differs between versions.
    let explicit = regex.replacing(#"\S"#, with: #"\P{White_Space}"#)
      .replacing(#"\s"#, with: #"\p{White_Space}"#)
    let engine = try NSRegularExpression(pattern: explicit)
    let splitter = PatternSplit(pattern)
    var generator = SeededGenerator(UInt64(index) + 1)
    var longest = 0
    for round in 0..<1500 {
      let text = generator.text(length: round % 60 + 1, common: Self.common)
      let expected = engine.matches(in: text, range: NSRange(location: 0, length: text.utf16.count))
        .map { (text as NSString).substring(with: $0.range) }
      var list = PieceList()
      list.bytes = Array(text.utf8)
      if !text.isEmpty { list.pieces = [0..<list.bytes.count] }
      splitter.split(&list)
      let found = list.pieces.map { String(decoding: list.bytes[$0], as: UTF8.self) }
      // Compared scalar by scalar: equality of strings is canonical.
      #expect(
        found.map { Array($0.unicodeScalars) } == expected.map { Array($0.unicodeScalars) },
        "\(text.debugDescription)")
      longest = max(longest, found.count)
    }
    #expect(longest > 20)
  }

  /// `it'ſt` as Oniguruma splits it: the long s is an s where case is ignored.
  @Test func longS() {
    #expect(pieces("it'ſt", 1) == ["it", "'ſ", "t"])
    #expect(pieces("it'ſt", 0) == ["it", "'", "ſt"])
  }

  @Test func onlyExactSpellingsAreKnown() {
    #expect(SplitPattern(regex: SplitPattern.known[1].regex) == SplitPattern.known[1].pattern)
    #expect(SplitPattern(regex: SplitPattern.known[1].regex + " ") == nil)
  }

  private func pieces(_ text: String, _ index: Int) -> [String] {
    var list = PieceList()
    list.bytes = Array(text.utf8)
    list.pieces = [0..<list.bytes.count]
    PatternSplit(SplitPattern.known[index].pattern).split(&list)
    return list.pieces.map { String(decoding: list.bytes[$0], as: UTF8.self) }
  }
}
