import PEFTSupport

/// A step that rewrites text before it is split. Text is valid UTF-8 before and after.
protocol Normalizer: Sendable {
  /// Rewrites `text` in place.
  func normalize(_ text: inout [UInt8])
}

/// Makes the steps of a `normalizer` of `tokenizer.json`, sequences flattened.
func makeNormalizers(_ component: Component) throws(PEFTError) -> [any Normalizer] {
  switch component.type {
  case "Sequence":
    var result: [any Normalizer] = []
    for child in try component.children("normalizers") {
      result.append(contentsOf: try makeNormalizers(child))
    }
    return result
  case "BertNormalizer": return [try BertNormalizer(component)]
  case "Prepend": return [Prepend(text: Array(try component.string("prepend").utf8))]
  case "Replace": return [try Replace(component)]
  case "NFC": return [NormalizationForm(form: .composed)]
  case "NFD": return [NormalizationForm(form: .decomposed)]
  case "Lowercase": return [Lowercase()]
  case "StripAccents": return [StripAccents()]
  case "Strip":
    return [
      StripWhitespace(
        left: try component.bool("strip_left", default: true),
        right: try component.bool("strip_right", default: true))
    ]
  default: throw component.unsupported("normalizer")
  }
}
