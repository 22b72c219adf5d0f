import Testing

@testable import Tokenizers

#if !canImport(Darwin)
  @_spi(_Unicode) import Swift
#endif

@Suite struct UnicodeTests {
  /// The generated table against the standard library, which has data of a version of its own: only
  /// scalars that both have had for long are compared, and all are looked up.
  @Test func classesOfAllScalars() {
    var different: [UInt32] = []
    for value in UInt32(0)...0x10FFFF {
      guard let scalar = Unicode.Scalar(value) else { continue }
      let found = ScalarClasses(value)
      // U+0295 became a lower case letter in Unicode 17.
      guard let age = scalar.properties.age, age.major <= 15, value != 0x295 else { continue }
      let properties = scalar.properties
      let expected: UInt64
      switch properties.generalCategory {
      case .uppercaseLetter: expected = UnicodeClassTable.upper
      case .lowercaseLetter: expected = UnicodeClassTable.lower
      case .titlecaseLetter: expected = UnicodeClassTable.title
      case .modifierLetter: expected = UnicodeClassTable.modifier
      case .otherLetter: expected = UnicodeClassTable.otherLetter
      case .nonspacingMark, .spacingMark, .enclosingMark: expected = ScalarClass.mark
      case .decimalNumber, .letterNumber, .otherNumber: expected = ScalarClass.number
      case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation,
        .initialPunctuation, .finalPunctuation, .otherPunctuation:
        expected = ScalarClass.punctuation
      default: expected = 0
      }
      let all = ScalarClass.letter | ScalarClass.mark | ScalarClass.number | ScalarClass.punctuation
      let isRight =
        (expected == 0 ? !found.isIn(all) : found.isIn(expected) && !found.isIn(all & ~expected))
        && found.isIn(ScalarClass.whitespace) == properties.isWhitespace
        && found.isIn(ScalarClass.word)
          == (properties.isAlphabetic || found.isIn(ScalarClass.mark)
            || properties.generalCategory == .decimalNumber
            || properties.generalCategory == .connectorPunctuation
            || properties.isJoinControl)
      if !isRight { different.append(value) }
    }
    #expect(different.map { String($0, radix: 16) } == [])
  }

  #if !canImport(Darwin)
    /// Normalisation by runs against normalisation of the whole text.
    @Test func canonicalForms() {
      var generator = SeededGenerator(5)
      let common = [
        "e", "\u{301}", "\u{327}", "é", "\u{AC00}", "\u{11A8}", "か", "\u{3099}", "ṩ", "a",
      ]
      var changed = 0
      for round in 0..<3000 {
        let text = generator.text(length: round % 30, common: common)
        var composed = Array(text.utf8)
        CanonicalForms.compose(&composed)
        var decomposed = Array(text.utf8)
        CanonicalForms.decompose(&decomposed)
        let whole = (bytes(text._nfc), bytes(text._nfd))
        #expect(composed == whole.0 && decomposed == whole.1, "\(text.debugDescription)")
        if composed != decomposed { changed += 1 }
      }
      #expect(changed > 1000)
    }

    private func bytes(_ scalars: some Sequence<Unicode.Scalar>) -> [UInt8] {
      var result: [UInt8] = []
      for scalar in scalars { result.append(scalar: scalar.value) }
      return result
    }
  #endif

  @Test func byteLevelAlphabet() {
    // Values of GPT-2's bytes_to_unicode.
    #expect(String(decoding: ByteLevelAlphabet.encode([0x20, 0x0A, 0x41]), as: UTF8.self) == "ĠĊA")
    #expect(String(decoding: ByteLevelAlphabet.encode([0xE4, 0xAD]), as: UTF8.self) == "äŃ")
    let all = (0...255).map(UInt8.init)
    #expect(ByteLevelAlphabet.decode(ByteLevelAlphabet.encode(all)) == all)
    #expect(ByteLevelAlphabet.decode(Array("a b".utf8)) == nil)
    #expect(ByteLevelAlphabet.decode(Array("▁".utf8)) == nil)
    #expect(ByteLevelAlphabet.decode([0xC4]) == nil)
  }
}
