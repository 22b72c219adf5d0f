// The only file that depends on where canonical normalisation comes from: the standard library's
// own tables on Linux, Foundation on Apple's systems, whose SDK does not show them.
#if canImport(Darwin)
  import Foundation
#else
  @_spi(_Unicode) import Swift
#endif

/// Canonical composition and decomposition (Unicode Standard Annex 15).
///
/// Most scalars are left alone by a form whatever stands around them. Only the runs of others are
/// normalised, which is exact: such a scalar has combining class 0, so that nothing is reordered
/// across it, and composes with nothing before it.
enum CanonicalForms {
  /// Replaces valid UTF-8 text by its normalisation form C.
  static func compose(_ text: inout [UInt8]) {
    // What follows may compose with the scalar before the run, so that belongs to it.
    rewriteRuns(&text, inert: UnicodeClassTable.composed, takesPrevious: true) { run, result in
      #if canImport(Darwin)
        result.append(contentsOf: run.precomposedStringWithCanonicalMapping.utf8)
      #else
        for scalar in run._nfc { result.append(scalar: scalar.value) }
      #endif
    }
  }

  /// Replaces valid UTF-8 text by its normalisation form D.
  static func decompose(_ text: inout [UInt8]) {
    rewriteRuns(&text, inert: UnicodeClassTable.decomposed, takesPrevious: false) { run, result in
      #if canImport(Darwin)
        result.append(contentsOf: run.decomposedStringWithCanonicalMapping.utf8)
      #else
        for scalar in run._nfd { result.append(scalar: scalar.value) }
      #endif
    }
  }

  private static func rewriteRuns(
    _ text: inout [UInt8], inert: UInt64, takesPrevious: Bool,
    _ normalize: (_ run: String, _ result: inout [UInt8]) -> Void
  ) {
    let source = text
    let span = source.span
    var result: [UInt8] = []
    // How much of the source is in the result, and where the scalar before `place` begins.
    var done = 0
    var previous = 0
    var place = 0
    while place < span.count {
      let (isInert, length) = isInert(span, place, inert)
      if isInert {
        previous = place
        place += length
        continue
      }
      let start = takesPrevious ? max(previous, done) : place
      var end = place + length
      while end < span.count {
        let next = Self.isInert(span, end, inert)
        if next.isInert { break }
        end += next.length
      }
      if done == 0 { result.reserveCapacity(source.count + source.count / 4) }
      result.append(contentsOf: source[done..<start])
      normalize(String(decoding: source[start..<end], as: UTF8.self), &result)
      done = end
      previous = end
      place = end
    }
    if done == 0 { return }
    result.append(contentsOf: source[done...])
    text = result
  }

  @inline(__always)
  private static func isInert(
    _ text: Span<UInt8>, _ place: Int, _ inert: UInt64
  ) -> (isInert: Bool, length: Int) {
    // ASCII is inert in both forms.
    if text[place] < 0x80 { return (true, 1) }
    let (value, length) = scalar(in: text, at: place)
    return (ScalarClasses(value).isIn(inert), length)
  }
}
