import PEFTSupport

/// BERT's clean-up: control characters out, white space to spaces, space around Chinese characters,
/// accents stripped, lower case.
struct BertNormalizer: Normalizer {
  private let cleansText: Bool
  private let separatesChinese: Bool
  private let stripsAccents: Bool
  private let lowercases: Bool

  init(_ component: Component) throws(PEFTError) {
    cleansText = try component.bool("clean_text", default: true)
    separatesChinese = try component.bool("handle_chinese_chars", default: true)
    lowercases = try component.bool("lowercase", default: true)
    // Null means: as the lower-casing.
    stripsAccents = try component.bool("strip_accents", default: lowercases)
  }

  func normalize(_ text: inout [UInt8]) {
    if text.isASCII { return normalizeASCII(&text) }
    if cleansText || separatesChinese { cleanAndSeparate(&text) }
    if stripsAccents {
      CanonicalForms.decompose(&text)
      remove(UnicodeClassTable.bertMark, from: &text)
    }
    if lowercases { Lowercase().normalize(&text) }
  }

  private func normalizeASCII(_ text: inout [UInt8]) {
    var write = 0
    for read in text.indices {
      var byte = text[read]
      if cleansText {
        if byte == 0x09 || byte == 0x0A || byte == 0x0D {
          byte = 0x20
        } else if byte < 0x20 || byte == 0x7F {
          continue
        }
      }
      if lowercases, byte >= UInt8(ascii: "A"), byte <= UInt8(ascii: "Z") { byte |= 0x20 }
      text[write] = byte
      write += 1
    }
    text.removeSubrange(write...)
  }

  private func cleanAndSeparate(_ text: inout [UInt8]) {
    rewrite(&text) { value, result in
      if cleansText {
        let classes = ScalarClasses(value)
        // Tab, line feed and carriage return are white space here, other controls are dropped.
        let isBreak = value == 0x09 || value == 0x0A || value == 0x0D
        if value == 0xFFFD || !isBreak && classes.isIn(UnicodeClassTable.bertControl) { return }
        if classes.isIn(ScalarClass.whitespace) { return result.append(0x20) }
      }
      let isSeparated = separatesChinese && Self.isChinese(value)
      if isSeparated { result.append(0x20) }
      result.append(scalar: value)
      if isSeparated { result.append(0x20) }
    }
  }

  /// The blocks of Chinese characters as the fast tokenizers know them; their extension E begins at
  /// U+2B920, where the original Python has U+2B820.
  private static func isChinese(_ scalar: UInt32) -> Bool {
    switch scalar {
    case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F, 0x2B740...0x2B81F,
      0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
      return true
    default: return false
    }
  }
}

/// Removes the scalars of a class.
func remove(_ mask: UInt64, from text: inout [UInt8]) {
  rewrite(&text) { value, result in
    if !ScalarClasses(value).isIn(mask) { result.append(scalar: value) }
  }
}
