// The only file that depends on where canonical normalisation comes from: the standard library's
// own tables on Linux, Foundation on Apple's systems, whose SDK does not show them.
#if canImport(Darwin)
  import Foundation
#else
  @_spi(_Unicode) import Swift
#endif

/// Canonical composition and decomposition (Unicode Standard Annex 15).
enum CanonicalForms {
  /// Replaces valid UTF-8 text by its normalisation form C.
  static func compose(_ text: inout [UInt8]) {
    if isUnchanged(text, UnicodeClassTable.composed) { return }
    let string = String(decoding: text, as: UTF8.self)
    text.removeAll(keepingCapacity: true)
    #if canImport(Darwin)
      text.append(contentsOf: string.precomposedStringWithCanonicalMapping.utf8)
    #else
      for scalar in string._nfc { text.append(scalar: scalar.value) }
    #endif
  }

  /// Replaces valid UTF-8 text by its normalisation form D.
  static func decompose(_ text: inout [UInt8]) {
    if isUnchanged(text, UnicodeClassTable.decomposed) { return }
    let string = String(decoding: text, as: UTF8.self)
    text.removeAll(keepingCapacity: true)
    #if canImport(Darwin)
      text.append(contentsOf: string.decomposedStringWithCanonicalMapping.utf8)
    #else
      for scalar in string._nfd { text.append(scalar: scalar.value) }
    #endif
  }

  /// Whether every scalar is of a class that the form leaves as it is, in any context.
  private static func isUnchanged(_ text: [UInt8], _ inert: UInt64) -> Bool {
    let span = text.span
    var place = 0
    while place < span.count {
      if span[place] < 0x80 {
        place += 1
        continue
      }
      let (value, length) = scalar(in: span, at: place)
      if !ScalarClasses(value).isIn(inert) { return false }
      place += length
    }
    return true
  }
}
