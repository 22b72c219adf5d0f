/// The large tables of tokenizer files, in flat arrays.
///
/// They have hundreds of thousands of short strings. Each function reads members of the usual form in
/// one loop over the bytes, and hands all others (escapes, unusual numbers, errors) to the general
/// functions of the scanner.
extension JSONScanner {
  /// An object of integers: the names one after the other, where each ends, and the values.
  public struct IntegerTable: Sendable {
    /// The names as UTF-8, escapes resolved, without separators.
    public var names: [UInt8] = []
    /// Where each name ends in ``names``.
    public var ends: [Int] = []
    /// The value of each name.
    public var values: [Int] = []

    /// Creates an empty table.
    public init() {}
  }

  /// A list of pairs of strings: the strings one after the other, and where the two of each pair end.
  public struct PairTable: Sendable {
    /// The strings as UTF-8, escapes resolved, without separators.
    public var text: [UInt8] = []
    /// Where the first and the second string of each pair end in ``text``.
    public var ends: [(first: Int, second: Int)] = []

    /// Creates an empty table.
    public init() {}
  }

  /// Reads an object whose values are all integers.
  public mutating func readIntegerTable() throws(PEFTError) -> IntegerTable {
    var table = IntegerTable()
    try beginObject()
    var failure: PEFTError?
    let source = bytes
    // Names are no longer than what is left of the text; pages that are not written cost nothing.
    table.names = [UInt8](unsafeUninitializedCapacity: source.count - position) { names, count in
      source.withUnsafeBufferPointer { bytes in
        do throws(PEFTError) {
          while true {
            let isFirst = table.values.isEmpty
            if let member = Self.plainMember(bytes, position, isFirst: isFirst) {
              count = names.append(bytes, member.name, at: count)
              table.values.append(member.value)
              position = member.end
            } else {
              var key: [UInt8] = []
              guard try nextKey(isFirst: isFirst, appendingTo: &key) else { return }
              count = key.withUnsafeBufferPointer { names.append($0, 0..<$0.count, at: count) }
              table.values.append(try readInt())
            }
            table.ends.append(count)
          }
        } catch { failure = error }
      }
    }
    if let failure { throw failure }
    return table
  }

  /// Reads a list of pairs of strings, each written as `["a", "b"]` or as `"a b"`.
  public mutating func readPairTable() throws(PEFTError) -> PairTable {
    var table = PairTable()
    try beginArray()
    var failure: PEFTError?
    let source = bytes
    table.text = [UInt8](unsafeUninitializedCapacity: source.count - position) { text, count in
      source.withUnsafeBufferPointer { bytes in
        do throws(PEFTError) {
          while true {
            let isFirst = table.ends.isEmpty
            let first: Int
            if let pair = Self.plainPair(bytes, position, isFirst: isFirst) {
              first = text.append(bytes, pair.first, at: count)
              count = text.append(bytes, pair.second, at: first)
              position = pair.end
            } else {
              guard try nextElement(isFirst: isFirst) else { return }
              let pair = try readPair()
              first = pair.first.withUnsafeBufferPointer {
                text.append($0, 0..<$0.count, at: count)
              }
              count = pair.second.withUnsafeBufferPointer {
                text.append($0, 0..<$0.count, at: first)
              }
            }
            table.ends.append((first, count))
          }
        } catch { failure = error }
      }
    }
    if let failure { throw failure }
    return table
  }

  private mutating func readPair() throws(PEFTError) -> (first: [UInt8], second: [UInt8]) {
    if peek() == .array {
      var parts: [[UInt8]] = []
      try readArray { scanner throws(PEFTError) in parts.append(try scanner.readStringBytes()) }
      if parts.count != 2 { throw error("\(parts.count) strings where a pair was expected") }
      return (parts[0], parts[1])
    }
    let parts = try readStringBytes().split(
      separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
    if parts.count != 2 { throw error("a pair of strings that has not one space in it") }
    return (Array(parts[0]), Array(parts[1]))
  }

  // MARK: The usual forms

  private typealias Bytes = UnsafeBufferPointer<UInt8>

  /// The member `"name": 123` at `start`, unless it has another form.
  @inline(__always)
  private static func plainMember(
    _ bytes: Bytes, _ start: Int, isFirst: Bool
  ) -> (name: Range<Int>, value: Int, end: Int)? {
    var place = start
    guard isFirst || skip(",", bytes, &place), let name = plainString(bytes, &place),
      skip(":", bytes, &place)
    else { return nil }
    skipSpace(bytes, &place)
    var value = 0
    let digits = place
    while place < bytes.count, bytes[place] &- UInt8(ascii: "0") < 10 {
      value = value &* 10 &+ Int(bytes[place] &- UInt8(ascii: "0"))
      place += 1
    }
    // Not the start of a fraction or exponent, and nothing that overflows.
    guard place > digits, place - digits < 18, place < bytes.count,
      bytes[place] == UInt8(ascii: ",") || bytes[place] == UInt8(ascii: "}") || bytes[place] <= 0x20
    else { return nil }
    return (name, value, place)
  }

  /// The element `["a", "b"]` or `"a b"` at `start`, unless it has another form.
  @inline(__always)
  private static func plainPair(
    _ bytes: Bytes, _ start: Int, isFirst: Bool
  ) -> (first: Range<Int>, second: Range<Int>, end: Int)? {
    var place = start
    guard isFirst || skip(",", bytes, &place) else { return nil }
    if skip("[", bytes, &place) {
      guard let first = plainString(bytes, &place), skip(",", bytes, &place),
        let second = plainString(bytes, &place), skip("]", bytes, &place)
      else { return nil }
      return (first, second, place)
    }
    guard let both = plainString(bytes, &place) else { return nil }
    var space: Int?
    for place in both where bytes[place] == 0x20 {
      if space != nil { return nil }
      space = place
    }
    guard let space else { return nil }
    return (both.lowerBound..<space, space + 1..<both.upperBound, place)
  }

  /// The inside of a string without escapes.
  @inline(__always)
  private static func plainString(_ bytes: Bytes, _ place: inout Int) -> Range<Int>? {
    guard skip("\"", bytes, &place) else { return nil }
    let start = place
    while place < bytes.count {
      let byte = bytes[place]
      if byte == UInt8(ascii: "\"") {
        place += 1
        return start..<place - 1
      }
      if byte == UInt8(ascii: "\\") || byte < 0x20 { return nil }
      place += 1
    }
    return nil
  }

  @inline(__always)
  private static func skip(
    _ character: Unicode.Scalar, _ bytes: Bytes, _ place: inout Int
  ) -> Bool {
    skipSpace(bytes, &place)
    guard place < bytes.count, bytes[place] == UInt8(truncatingIfNeeded: character.value) else {
      return false
    }
    place += 1
    return true
  }

  @inline(__always)
  private static func skipSpace(_ bytes: Bytes, _ place: inout Int) {
    while place < bytes.count {
      switch bytes[place] {
      case 0x20, 0x0A, 0x0D, 0x09:
        place += 1
        // Indentation is most of a file that was written to be read.
        while place < bytes.count, bytes[place] == 0x20 { place += 1 }
      default: return
      }
    }
  }
}

extension UnsafeMutableBufferPointer<UInt8> {
  /// Writes `bytes[range]` at `place` and returns where they end.
  ///
  /// The strings of a JSON text are shorter than the text, so they fit a buffer of its size.
  @inline(__always)
  fileprivate func append(
    _ bytes: UnsafeBufferPointer<UInt8>, _ range: Range<Int>, at place: Int
  ) -> Int {
    precondition(place + range.count <= count)
    var target = place
    for source in range {
      self[target] = bytes[source]
      target += 1
    }
    return target
  }
}
