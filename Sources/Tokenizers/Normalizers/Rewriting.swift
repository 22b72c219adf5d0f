import PEFTSupport

/// Puts a text before every non-empty text.
struct Prepend: Normalizer {
  let text: [UInt8]

  func normalize(_ text: inout [UInt8]) {
    if !text.isEmpty { text.insert(contentsOf: self.text, at: 0) }
  }
}

/// Replaces every occurrence of a literal text.
struct Replace: Normalizer {
  let pattern: [UInt8]
  let content: [UInt8]

  init(_ component: Component) throws(PEFTError) {
    guard case .literal(let pattern) = try component.pattern() else {
      throw component.unsupportedSetting("pattern", "a regular expression")
    }
    self.init(pattern: Array(pattern.utf8), content: Array(try component.string("content").utf8))
  }

  init(pattern: [UInt8], content: [UInt8]) {
    self.pattern = pattern
    self.content = content
  }

  func normalize(_ text: inout [UInt8]) {
    guard let first = pattern.first, text.contains(first) else { return }
    var result: [UInt8] = []
    result.reserveCapacity(text.count + text.count / 2)
    let rest = pattern.dropFirst()
    var place = 0
    while place < text.count {
      if text[place] == first, text[(place + 1)...].starts(with: rest) {
        result.append(contentsOf: content)
        place += pattern.count
      } else {
        result.append(text[place])
        place += 1
      }
    }
    text = result
  }
}

/// Canonical composition or decomposition.
struct NormalizationForm: Normalizer {
  enum Form { case composed, decomposed }
  let form: Form

  func normalize(_ text: inout [UInt8]) {
    switch form {
    case .composed: CanonicalForms.compose(&text)
    case .decomposed: CanonicalForms.decompose(&text)
    }
  }
}

/// Lower case, scalar by scalar: without the context that a final sigma needs, as in Rust's
/// `char::to_lowercase`, which the published tokenizers use.
struct Lowercase: Normalizer {
  func normalize(_ text: inout [UInt8]) {
    rewrite(&text) { value, result in
      if value < 0x80 {
        let isUpper = value >= 0x41 && value <= 0x5A
        result.append(UInt8(truncatingIfNeeded: isUpper ? value | 0x20 : value))
      } else if value < 0x2000 || !ScalarClasses(value).isIn(Self.caseless),
        let mapping = Unicode.Scalar(value)?.properties.lowercaseMapping
      {
        result.append(contentsOf: mapping.utf8)
      } else {
        result.append(scalar: value)
      }
    }
  }

  /// What has no lower case: most of what is not alphabetic script, at a fraction of the cost.
  private static let caseless =
    UnicodeClassTable.otherLetter | UnicodeClassTable.mark | UnicodeClassTable.punctuation
}

/// Removes marks; usually after a decomposition.
struct StripAccents: Normalizer {
  func normalize(_ text: inout [UInt8]) {
    if !text.isASCII { remove(UnicodeClassTable.accent, from: &text) }
  }
}

/// Removes white space at the ends.
struct StripWhitespace: Normalizer {
  let left: Bool
  let right: Bool

  func normalize(_ text: inout [UInt8]) {
    let source = text
    let span = source.span
    var start = 0
    var end = span.count
    while left, start < end {
      let (value, length) = scalar(in: span, at: start)
      guard ScalarClasses(value).isIn(ScalarClass.whitespace) else { break }
      start += length
    }
    while right, end > start {
      let (value, length) = scalar(in: span, before: end)
      guard ScalarClasses(value).isIn(ScalarClass.whitespace) else { break }
      end -= length
    }
    if start > 0 || end < source.count { text = Array(source[start..<end]) }
  }
}
