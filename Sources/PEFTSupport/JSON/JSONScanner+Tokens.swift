/// Numbers and escapes, the parts of JSON with a grammar of their own.
extension JSONScanner {
  /// Reads an integer of up to 18 digits without sign, and nothing when another form comes.
  mutating func readPlainInt() -> Int? {
    skipWhitespace()
    var value = 0
    var place = position
    while place < bytes.count, place - position < 18 {
      let byte = bytes[place]
      guard byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { break }
      value = value * 10 + Int(byte - UInt8(ascii: "0"))
      place += 1
    }
    guard place > position else { return nil }
    if bytes[position] == UInt8(ascii: "0"), place > position + 1 { return nil }
    if place < bytes.count {
      switch bytes[place] {
      case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "e"),
        UInt8(ascii: "E"), UInt8(ascii: "+"), UInt8(ascii: "-"):
        return nil
      default: break
      }
    }
    position = place
    return value
  }

  /// Where the number that begins here ends, by the grammar of RFC 8259, and whether it has
  /// neither fraction nor exponent; `nil` when none begins here.
  func endOfNumber() -> (end: Int, isInteger: Bool)? {
    var place = position
    func byte() -> UInt8 { place < bytes.count ? bytes[place] : 0 }
    func isDigit() -> Bool { byte() >= UInt8(ascii: "0") && byte() <= UInt8(ascii: "9") }
    func skipDigits() -> Bool {
      let start = place
      while isDigit() { place += 1 }
      return place > start
    }
    if byte() == UInt8(ascii: "-") { place += 1 }
    if byte() == UInt8(ascii: "0") {
      place += 1
      // A leading zero ends the number; a digit after it belongs to nothing.
      if isDigit() { return nil }
    } else if !skipDigits() {
      return nil
    }
    var isInteger = true
    if byte() == UInt8(ascii: ".") {
      place += 1
      isInteger = false
      if !skipDigits() { return nil }
    }
    if byte() | 0x20 == UInt8(ascii: "e") {
      place += 1
      isInteger = false
      if byte() == UInt8(ascii: "+") || byte() == UInt8(ascii: "-") { place += 1 }
      if !skipDigits() { return nil }
    }
    return (place, isInteger)
  }

  /// Resolves the escape after a backslash and appends its UTF-8 bytes.
  mutating func readEscape(into result: inout [UInt8]) throws(PEFTError) {
    guard position < bytes.count else { throw error("a string that does not end") }
    let byte = bytes[position]
    position += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): result.append(byte)
    case UInt8(ascii: "b"): result.append(0x08)
    case UInt8(ascii: "f"): result.append(0x0C)
    case UInt8(ascii: "n"): result.append(0x0A)
    case UInt8(ascii: "r"): result.append(0x0D)
    case UInt8(ascii: "t"): result.append(0x09)
    case UInt8(ascii: "u"):
      var unit = try readHexUnit()
      if unit >= 0xD800, unit < 0xDC00, position + 1 < bytes.count,
        bytes[position] == UInt8(ascii: "\\"), bytes[position + 1] == UInt8(ascii: "u")
      {
        let mark = position
        position += 2
        let low = try readHexUnit()
        if low >= 0xDC00, low < 0xE000 {
          unit = 0x10000 + (unit - 0xD800) << 10 + (low - 0xDC00)
        } else {
          position = mark
        }
      }
      // A lone surrogate is no scalar; it becomes U+FFFD, as in most readers.
      let scalar = Unicode.Scalar(unit) ?? "\u{FFFD}"
      result.append(contentsOf: Array(String(scalar).utf8))
    default:
      position -= 1
      throw error("an unknown escape")
    }
  }

  private mutating func readHexUnit() throws(PEFTError) -> UInt32 {
    var unit: UInt32 = 0
    for place in position..<position + 4 {
      guard place < bytes.count,
        let digit = Character(Unicode.Scalar(bytes[place])).hexDigitValue
      else { throw error("\\u without four hexadecimal digits") }
      unit = unit << 4 | UInt32(digit)
    }
    position += 4
    return unit
  }
}
