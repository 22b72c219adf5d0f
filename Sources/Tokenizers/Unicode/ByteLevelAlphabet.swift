/// The printable alphabet in which byte-level vocabularies are written: one character for each byte.
///
/// Bytes that print in Latin-1 stand for themselves, the other 68 for U+0100 upwards, in order (GPT-2's
/// `bytes_to_unicode`). Vocabularies are translated once, at load, and text never.
enum ByteLevelAlphabet {
  /// The character of each byte.
  static let scalars: [UInt32] = {
    var next: UInt32 = 0x100
    return (0..<256).map { byte in
      switch UInt32(byte) {
      case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: return UInt32(byte)
      default:
        defer { next += 1 }
        return next
      }
    }
  }()

  /// The byte of each character below U+0144, -1 for those outside of the alphabet.
  static let bytes: [Int16] = {
    var result = [Int16](repeating: -1, count: 0x144)
    for (byte, scalar) in scalars.enumerated() { result[Int(scalar)] = Int16(byte) }
    return result
  }()

  /// Writes the bytes that the characters `text[range]` stand for to `result` from `start` on. They
  /// are no more than the characters' own bytes.
  ///
  /// - Parameter alphabet: ``bytes``.
  /// - Returns: Where the bytes end, or `nil` when a character is outside of the alphabet.
  @inline(__always)
  static func decode(
    _ text: Span<UInt8>, _ range: Range<Int>, _ alphabet: Span<Int16>,
    into result: inout MutableSpan<UInt8>, at start: Int
  ) -> Int? {
    precondition(
      range.upperBound <= text.count && start >= 0 && start + range.count <= result.count)
    var place = range.lowerBound
    var end = start
    while place < range.upperBound {
      var value = Int(text[unchecked: place])
      place &+= 1
      if value >= 0x80 {
        // The alphabet ends below U+0800: two bytes at most.
        guard value & 0xE0 == 0xC0, place < range.upperBound else { return nil }
        value = (value & 0x1F) &<< 6 | Int(text[unchecked: place] & 0x3F)
        place &+= 1
      }
      guard value < alphabet.count, alphabet[unchecked: value] >= 0 else { return nil }
      result[unchecked: end] = UInt8(truncatingIfNeeded: alphabet[unchecked: value])
      end &+= 1
    }
    return end
  }

  /// The bytes that characters stand for, or `nil` when one is outside of the alphabet.
  static func decode(_ text: [UInt8]) -> [UInt8]? {
    var result = [UInt8](repeating: 0, count: text.count)
    var span = result.mutableSpan
    guard let end = decode(text.span, 0..<text.count, bytes.span, into: &span, at: 0) else {
      return nil
    }
    result.removeSubrange(end...)
    return result
  }

  /// The characters that stand for `bytes`.
  static func encode(_ bytes: some Sequence<UInt8>) -> [UInt8] {
    var result: [UInt8] = []
    for byte in bytes { result.append(scalar: scalars[Int(byte)]) }
    return result
  }
}
