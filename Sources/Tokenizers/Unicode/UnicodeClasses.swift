/// A scalar's set of classes, in the numbering of ``UnicodeClassTable``.
struct ScalarClasses {
  /// The number of the set of classes, below 64. A class is a mask with a bit for each number.
  let number: UInt8

  /// The set with the given number.
  init(number: UInt8) { self.number = number }

  /// Looks up `scalar`, which must be a Unicode scalar value.
  @inline(__always)
  init(_ scalar: UInt32) {
    typealias Table = UnicodeClassTable
    guard scalar < Table.tableEnd else {
      number = Self.beyondTable(scalar)
      return
    }
    // The table is a constant string: these two reads stay inside it for every scalar below its
    // end, which the test of all scalars covers.
    let stage = Table.blockNumbers.utf8Start + Int(scalar &>> Table.blockShift) * 2
    let block = Int(stage[0] &- Table.zero) * 64 + Int(stage[1] &- Table.zero)
    let place = block << Int(Table.blockShift) + Int(scalar & ((1 &<< Table.blockShift) &- 1))
    number = Table.blocks.utf8Start[place] &- Table.zero
  }

  private static func beyondTable(_ scalar: UInt32) -> UInt8 {
    for range in UnicodeClassTable.ranges where scalar <= range.last {
      return range.number
    }
    return 0
  }

  /// Whether the scalar belongs to the class `mask`, or to any of several joined by `|`.
  @inline(__always)
  func isIn(_ mask: UInt64) -> Bool { (mask &>> UInt64(number)) & 1 != 0 }
}

/// The classes that splitters and normalizers ask for.
enum ScalarClass {
  /// `\p{L}`.
  static let letter =
    UnicodeClassTable.upper | UnicodeClassTable.lower | UnicodeClassTable.title
    | UnicodeClassTable.modifier | UnicodeClassTable.otherLetter
  /// `\p{M}`.
  static let mark = UnicodeClassTable.mark
  /// `\p{N}`.
  static let number = UnicodeClassTable.number
  /// `\p{P}`.
  static let punctuation = UnicodeClassTable.punctuation
  /// `\s`: the property White_Space.
  static let whitespace = UnicodeClassTable.whitespace
  /// `\w`: alphabetic, marks, decimal digits, connectors and joiners.
  static let word = UnicodeClassTable.word
}

/// The scalar that starts at `place` in valid UTF-8.
@inline(__always)
func scalar(in text: Span<UInt8>, at place: Int) -> (value: UInt32, length: Int) {
  let first = UInt32(text[place])
  if first < 0x80 { return (first, 1) }
  let second = UInt32(text[place + 1]) & 0x3F
  if first < 0xE0 { return ((first & 0x1F) &<< 6 | second, 2) }
  let third = UInt32(text[place + 2]) & 0x3F
  if first < 0xF0 { return ((first & 0x0F) &<< 12 | second &<< 6 | third, 3) }
  let fourth = UInt32(text[place + 3]) & 0x3F
  return ((first & 0x07) &<< 18 | second &<< 12 | third &<< 6 | fourth, 4)
}

/// The scalar that ends before `place` in valid UTF-8.
func scalar(in text: Span<UInt8>, before place: Int) -> (value: UInt32, length: Int) {
  var start = place - 1
  while text[start] & 0xC0 == 0x80 { start -= 1 }
  return scalar(in: text, at: start)
}

/// Builds valid UTF-8 text anew, scalar by scalar; `body` appends what each becomes.
@inline(__always)
func rewrite(
  _ text: inout [UInt8], _ body: (_ scalar: UInt32, _ result: inout [UInt8]) -> Void
) {
  let source = text
  var result: [UInt8] = []
  result.reserveCapacity(source.count)
  let span = source.span
  var place = 0
  while place < span.count {
    let (value, length) = scalar(in: span, at: place)
    place += length
    body(value, &result)
  }
  text = result
}

extension [UInt8] {
  /// Appends the UTF-8 form of a scalar value.
  @inline(__always)
  mutating func append(scalar: UInt32) {
    if scalar < 0x80 {
      append(UInt8(truncatingIfNeeded: scalar))
    } else if scalar < 0x800 {
      append(UInt8(truncatingIfNeeded: 0xC0 | scalar &>> 6))
      append(UInt8(truncatingIfNeeded: 0x80 | scalar & 0x3F))
    } else {
      if scalar < 0x10000 {
        append(UInt8(truncatingIfNeeded: 0xE0 | scalar &>> 12))
      } else {
        append(UInt8(truncatingIfNeeded: 0xF0 | scalar &>> 18))
        append(UInt8(truncatingIfNeeded: 0x80 | scalar &>> 12 & 0x3F))
      }
      append(UInt8(truncatingIfNeeded: 0x80 | scalar &>> 6 & 0x3F))
      append(UInt8(truncatingIfNeeded: 0x80 | scalar & 0x3F))
    }
  }

  /// Whether all bytes are ASCII.
  var isASCII: Bool { allSatisfy { $0 < 0x80 } }
}
