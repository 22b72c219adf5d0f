/// A pull parser over the bytes of one JSON text (RFC 8259).
///
/// Configuration files, safetensors headers, tokenizers and data lines all go through it, so an
/// error names the byte offset in each of them. Large tables are read value by value without
/// building a tree; small ones through ``JSONValue``. Whatever throws throws ``PEFTError`` `malformedFile`.
public struct JSONScanner {
  /// How deep arrays and objects may nest; more is refused instead of exhausting the stack.
  public static let maximumDepth = 256

  let bytes: [UInt8]
  var position = 0
  var depth = 0

  /// Creates a scanner at the start of `bytes`.
  public init(_ bytes: [UInt8]) {
    self.bytes = bytes
    // A byte order mark is not JSON, but files written on Windows begin with one.
    if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { position = 3 }
  }

  /// The kind of value that comes next, white space skipped; `nil` at the end.
  public mutating func peek() -> Kind? {
    skipWhitespace()
    guard position < bytes.count else { return nil }
    switch bytes[position] {
    case UInt8(ascii: "{"): return .object
    case UInt8(ascii: "["): return .array
    case UInt8(ascii: "\""): return .string
    case UInt8(ascii: "t"), UInt8(ascii: "f"): return .bool
    case UInt8(ascii: "n"): return .null
    default: return .number
    }
  }

  /// The kind of a JSON value.
  public enum Kind: Sendable { case object, array, string, number, bool, null }

  /// Reads an object, calling `member` with each key once the scanner stands at its value.
  ///
  /// `member` must read or skip exactly one value.
  public mutating func readObject(
    _ member: (_ key: String, _ scanner: inout JSONScanner) throws(PEFTError) -> Void
  ) throws(PEFTError) {
    try beginObject()
    var key: [UInt8] = []
    var isFirst = true
    while try nextKey(isFirst: isFirst, appendingTo: &key) {
      try member(String(decoding: key, as: UTF8.self), &self)
      key.removeAll(keepingCapacity: true)
      isFirst = false
    }
  }

  /// Reads an array, calling `element` with the scanner at each element.
  public mutating func readArray(
    _ element: (_ scanner: inout JSONScanner) throws(PEFTError) -> Void
  ) throws(PEFTError) {
    try beginArray()
    var isFirst = true
    while try nextElement(isFirst: isFirst) {
      try element(&self)
      isFirst = false
    }
  }

  /// Enters an object, for a table that is too large to make a closure call and a `String` of each
  /// member: read its members with ``nextKey(isFirst:appendingTo:)``.
  public mutating func beginObject() throws(PEFTError) {
    try enter(UInt8(ascii: "{"), "an object")
  }

  /// Moves to the value of the next member of the object entered last.
  ///
  /// - Parameters:
  ///   - isFirst: Whether no member of this object was read yet.
  ///   - key: What the member's name, escapes resolved, is appended to as UTF-8.
  /// - Returns: `false` once the object has ended, and the scanner has left it.
  public mutating func nextKey(
    isFirst: Bool, appendingTo key: inout [UInt8]
  ) throws(PEFTError) -> Bool {
    if consume(UInt8(ascii: "}")) {
      leave()
      return false
    }
    if !isFirst, !consume(UInt8(ascii: ",")) { throw unexpected("',' or '}'") }
    skipWhitespace()
    guard position < bytes.count, bytes[position] == UInt8(ascii: "\"") else {
      throw unexpected("a member name in quotes")
    }
    let start = key.count
    try readStringBytes(appendingTo: &key)
    guard consume(UInt8(ascii: ":")) else {
      let name = String(decoding: key[start...], as: UTF8.self)
      throw unexpected("':' after the member name '\(name)'")
    }
    return true
  }

  /// Enters an array: read its elements with ``nextElement(isFirst:)``.
  public mutating func beginArray() throws(PEFTError) {
    try enter(UInt8(ascii: "["), "an array")
  }

  /// Moves to the next element of the array entered last.
  ///
  /// - Parameter isFirst: Whether no element of this array was read yet.
  /// - Returns: `false` once the array has ended, and the scanner has left it.
  public mutating func nextElement(isFirst: Bool) throws(PEFTError) -> Bool {
    if consume(UInt8(ascii: "]")) {
      leave()
      return false
    }
    if !isFirst, !consume(UInt8(ascii: ",")) { throw unexpected("',' or ']'") }
    return true
  }

  /// Reads a string value, escapes resolved.
  public mutating func readString() throws(PEFTError) -> String {
    let utf8 = try readStringBytes()
    return String(decoding: utf8, as: UTF8.self)
  }

  /// Reads a string value as UTF-8 bytes, escapes resolved.
  ///
  /// Vocabularies are keyed by these: `String` equality is canonical and would merge entries that
  /// differ only in Unicode normalisation.
  public mutating func readStringBytes() throws(PEFTError) -> [UInt8] {
    var result: [UInt8] = []
    try readStringBytes(appendingTo: &result)
    return result
  }

  /// Reads a string value and appends its UTF-8 bytes, escapes resolved.
  public mutating func readStringBytes(appendingTo result: inout [UInt8]) throws(PEFTError) {
    skipWhitespace()
    guard position < bytes.count, bytes[position] == UInt8(ascii: "\"") else {
      throw unexpected("a string")
    }
    position += 1
    while true {
      appendPlainText(to: &result)
      guard position < bytes.count else { throw error("a string that does not end") }
      switch bytes[position] {
      case UInt8(ascii: "\""):
        position += 1
        return
      case UInt8(ascii: "\\"):
        position += 1
        try readEscape(into: &result)
      default: throw error("a control character inside a string")
      }
    }
  }

  /// Reads a number as a ``JSONValue``: `int` when it has neither fraction nor exponent and fits.
  public mutating func readNumber() throws(PEFTError) -> JSONValue {
    skipWhitespace()
    guard let (end, isInteger) = endOfNumber() else {
      // Python's json module writes these three although they are not JSON.
      if consumeWord("NaN") { return .double(.nan) }
      if consumeWord("Infinity") { return .double(.infinity) }
      if consumeWord("-Infinity") { return .double(-.infinity) }
      throw unexpected("a value")
    }
    let text = String(decoding: bytes[position..<end], as: UTF8.self)
    if isInteger, let value = Int(text) {
      position = end
      return .int(value)
    }
    guard let value = Double(text) else { throw unexpected("a value") }
    position = end
    return .double(value)
  }

  /// Reads an integer that fits `Int`.
  public mutating func readInt() throws(PEFTError) -> Int {
    if let value = readPlainInt() { return value }
    let start = position
    guard case .int(let value) = try readNumber() else {
      position = start
      throw unexpected("an integer")
    }
    return value
  }

  /// Reads any value as a tree.
  public mutating func readValue() throws(PEFTError) -> JSONValue {
    switch peek() {
    case nil: throw unexpected("a value")
    case .object:
      var members: [(String, JSONValue)] = []
      try readObject { (key, scanner) throws(PEFTError) in
        members.append((key, try scanner.readValue()))
      }
      return .object(JSONObject(members))
    case .array:
      var elements: [JSONValue] = []
      try readArray { scanner throws(PEFTError) in elements.append(try scanner.readValue()) }
      return .array(elements)
    case .string: return .string(try readString())
    case .number: return try readNumber()
    case .bool:
      if consumeWord("true") { return .bool(true) }
      if consumeWord("false") { return .bool(false) }
      throw unexpected("a value")
    case .null:
      if consumeWord("null") { return .null }
      throw unexpected("a value")
    }
  }

  /// Skips one value.
  public mutating func skipValue() throws(PEFTError) {
    switch peek() {
    case .object:
      var key: [UInt8] = []
      try beginObject()
      var isFirst = true
      while try nextKey(isFirst: isFirst, appendingTo: &key) {
        try skipValue()
        key.removeAll(keepingCapacity: true)
        isFirst = false
      }
    case .array: try readArray { scanner throws(PEFTError) in try scanner.skipValue() }
    default: _ = try readValue()
    }
  }

  /// Reads one value that must be the whole text.
  public mutating func readDocument() throws(PEFTError) -> JSONValue {
    let value = try readValue()
    try expectEnd()
    return value
  }

  /// Throws unless only white space is left.
  public mutating func expectEnd() throws(PEFTError) {
    skipWhitespace()
    if position < bytes.count { throw unexpected("the end of the JSON text") }
  }

  /// An error at the current place.
  public func error(_ message: String) -> PEFTError {
    PEFTError(.malformedFile, "not valid JSON: \(message) at byte \(position)")
  }

  // MARK: Pieces

  private mutating func enter(_ bracket: UInt8, _ what: String) throws(PEFTError) {
    guard consume(bracket) else { throw unexpected(what) }
    depth += 1
    if depth > Self.maximumDepth { throw error("more than \(Self.maximumDepth) nested levels") }
  }

  private mutating func leave() { depth -= 1 }

  @inline(__always)
  mutating func skipWhitespace() {
    if position < bytes.count, bytes[position] <= 0x20 { skipWhitespaceRun() }
  }

  private mutating func skipWhitespaceRun() {
    let start = position
    position = bytes.withUnsafeBufferPointer { buffer in
      var place = start
      while place < buffer.count {
        switch buffer[place] {
        case 0x20, 0x0A, 0x0D, 0x09: place += 1
        default: return place
        }
      }
      return place
    }
  }

  private mutating func consume(_ byte: UInt8) -> Bool {
    skipWhitespace()
    guard position < bytes.count, bytes[position] == byte else { return false }
    position += 1
    return true
  }

  /// Appends what comes before the next quote, backslash, control character or the end.
  private mutating func appendPlainText(to result: inout [UInt8]) {
    let start = position
    position = bytes.withUnsafeBufferPointer { buffer in
      var place = start
      while place < buffer.count {
        let byte = buffer[place]
        if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") || byte < 0x20 { break }
        place += 1
      }
      result.append(contentsOf: UnsafeBufferPointer(rebasing: buffer[start..<place]))
      return place
    }
  }

  private mutating func consumeWord(_ word: String) -> Bool {
    guard bytes[position...].starts(with: word.utf8) else { return false }
    position += word.utf8.count
    return true
  }

  private func unexpected(_ wanted: String) -> PEFTError {
    guard position < bytes.count else { return error("expected \(wanted), found the end") }
    let rest = bytes[position..<min(position + 12, bytes.count)]
    let found = String(decoding: rest, as: UTF8.self)
    return error("expected \(wanted), found '\(found)'")
  }
}
