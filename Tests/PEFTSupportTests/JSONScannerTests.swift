import PEFTSupport
import Testing

/// JSON reading against RFC 8259, and against what Python's json module accepts beyond it.
struct JSONScannerTests {
  @Test func readsAllKindsInFileOrder() throws {
    let value = try JSONValue(
      parsing: #" {"z": [1, -2.5e3, true, false, null], "a": {"é": "x\n\"\/\\"}, "m": []} "#)
    #expect(value.object?.keys == ["z", "a", "m"])
    #expect(value["z"] == [1, -2500.0, true, false, nil])
    #expect(value["a"]?["é"]?.string == "x\n\"/\\")
    #expect(value["m"]?.array?.isEmpty == true)
    #expect(value["absent"] == nil)
  }

  @Test func keepsIntegersApartFromFloats() throws {
    #expect(try JSONValue(parsing: "7") == .int(7))
    #expect(try JSONValue(parsing: "-0") == .int(0))
    #expect(try JSONValue(parsing: "7.0") == .double(7))
    #expect(try JSONValue(parsing: "7e0") == .double(7))
    #expect(try JSONValue(parsing: "9223372036854775807") == .int(.max))
    #expect(try JSONValue(parsing: "9223372036854775808") == .double(9_223_372_036_854_775_808))
    #expect(try JSONValue(parsing: "7.0").int == 7)
    #expect(try JSONValue(parsing: "7.5").int == nil)
    #expect(try JSONValue(parsing: "1e300").int == nil)
  }

  @Test func repeatedKeyKeepsLastValueAtFirstPlace() throws {
    let object = try #require(try JSONValue(parsing: #"{"a":1,"b":2,"a":3}"#).object)
    #expect(object.keys == ["a", "b"])
    #expect(object["a"] == 3)
  }

  @Test func byteOrderMarkIsSkipped() throws {
    #expect(try JSONValue(parsing: [0xEF, 0xBB, 0xBF] + Array("[1]".utf8)) == [1])
  }

  /// `json.loads('[NaN, Infinity, -Infinity]')` reads them, and `json.dumps` writes them.
  @Test func readsPythonsNonFiniteNumbers() throws {
    let values = try #require(try JSONValue(parsing: "[NaN, Infinity, -Infinity]").array)
    #expect(values[0].double?.isNaN == true)
    #expect(values[1].double == .infinity)
    #expect(values[2].double == -.infinity)
    #expect(JSONValue.array(values).text(.spaced) == "[NaN, Infinity, -Infinity]")
  }

  @Test(arguments: [
    (#""\ud83d\ude00""#, "😀"), (#""\uD83D\uDE00!""#, "😀!"), (#""\u00e9""#, "é"),
    (#""\ud83d""#, "\u{FFFD}"), (#""\ude00""#, "\u{FFFD}"),
    (#""\ud83dx""#, "\u{FFFD}x"), (#""\ud83d\u0041""#, "\u{FFFD}A"),
    (#""\ud83d\ud83d\ude00""#, "\u{FFFD}😀"), (#""\b\f\n\r\t""#, "\u{8}\u{C}\n\r\t"),
  ])
  func resolvesEscapes(_ text: String, _ expected: String) throws {
    #expect(try JSONValue(parsing: text).string == expected)
  }

  @Test(arguments: [
    ("", "expected a value, found the end at byte 0"),
    ("  ", "expected a value, found the end at byte 2"),
    ("{", "expected a member name in quotes, found the end at byte 1"),
    (#"{"a""#, "expected ':' after the member name 'a', found the end at byte 4"),
    (#"{"a":}"#, "expected a value, found '}' at byte 5"),
    (#"{"a":1,}"#, "expected a member name in quotes, found '}' at byte 7"),
    (#"{"a":1 "b":2}"#, #"expected ',' or '}', found '"b":2}' at byte 7"#),
    (#"{,}"#, "expected a member name in quotes, found ',}' at byte 1"),
    ("[1,]", "expected a value, found ']' at byte 3"),
    ("[1 2]", "expected ',' or ']', found '2]' at byte 3"),
    ("[1", "expected ',' or ']', found the end at byte 2"),
    ("1 x", "expected the end of the JSON text, found 'x' at byte 2"),
    ("tru", "expected a value, found 'tru' at byte 0"),
    ("nul", "expected a value, found 'nul' at byte 0"),
    ("'a'", "expected a value, found ''a'' at byte 0"),
    (#""abc"#, "a string that does not end at byte 4"),
    (#""ab\"#, "a string that does not end at byte 4"),
    ("\"a\u{1}b\"", "a control character inside a string at byte 2"),
    ("\"a\nb\"", "a control character inside a string at byte 2"),
    (#""\x41""#, "an unknown escape at byte 2"),
    (#""\u12""#, #"\u without four hexadecimal digits at byte 3"#),
    (#""\u+123""#, #"\u without four hexadecimal digits at byte 3"#),
    ("01", "expected a value, found '01' at byte 0"),
    ("-", "expected a value, found '-' at byte 0"),
    ("+1", "expected a value, found '+1' at byte 0"),
    (".5", "expected a value, found '.5' at byte 0"),
    ("-.5", "expected a value, found '-.5' at byte 0"),
    ("1.", "expected a value, found '1.' at byte 0"),
    ("1e", "expected a value, found '1e' at byte 0"),
    ("1e+", "expected a value, found '1e+' at byte 0"),
    ("[--1]", "expected a value, found '--1]' at byte 1"),
    ("1-2", "expected the end of the JSON text, found '-2' at byte 1"),
  ])
  func malformedTextNamesTheByte(_ text: String, _ message: String) {
    let error = #expect(throws: PEFTError.self) { try JSONValue(parsing: text) }
    #expect(error?.code == .malformedFile)
    #expect(error?.message == "not valid JSON: \(message)")
  }

  @Test func nestingIsLimited() throws {
    let limit = JSONScanner.maximumDepth
    func nested(_ depth: Int) -> String {
      String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
    }
    _ = try JSONValue(parsing: nested(limit))
    let error = #expect(throws: PEFTError.self) { try JSONValue(parsing: nested(limit + 1)) }
    #expect(error?.message == "not valid JSON: more than 256 nested levels at byte 257")
    // Siblings do not add up.
    _ = try JSONValue(
      parsing: "[" + Array(repeating: "[[]]", count: 300).joined(separator: ",") + "]")
    #expect(throws: PEFTError.self) {
      var scanner = JSONScanner(Array(nested(100_000).utf8))
      try scanner.skipValue()
    }
  }

  @Test func pullsValuesWithoutATree() throws {
    var scanner = JSONScanner(Array(#"{"skip": [1, {"x": "]"}], "ids": [5, 010], "n": 3}"#.utf8))
    var seen: [String] = []
    let error = #expect(throws: PEFTError.self) {
      try scanner.readObject { (key, scanner) throws(PEFTError) in
        seen.append(key)
        if key == "ids" {
          try scanner.readArray { (scanner) throws(PEFTError) in _ = try scanner.readInt() }
        } else {
          try scanner.skipValue()
        }
      }
    }
    #expect(seen == ["skip", "ids"])
    #expect(error?.message == "not valid JSON: expected a value, found '010], \"n\": 3' at byte 37")
  }

  @Test func integersAreReadWithSignAndRefusedWithFraction() throws {
    func int(_ text: String) throws -> Int {
      var scanner = JSONScanner(Array(text.utf8))
      return try scanner.readInt()
    }
    #expect(try int(" 12") == 12)
    #expect(try int("-12") == -12)
    #expect(try int("9223372036854775807") == .max)
    #expect(throws: PEFTError.self) { try int("1.5") }
    #expect(throws: PEFTError.self) { try int("9223372036854775808") }
    #expect(throws: PEFTError.self) { try int("\"1\"") }
  }

  @Test func stringBytesKeepNormalisation() throws {
    // "é" composed and decomposed are equal Strings, but different vocabulary entries.
    var scanner = JSONScanner(Array("[\"\u{E9}\", \"e\u{301}\"]".utf8))
    var entries: Set<[UInt8]> = []
    try scanner.readArray { (scanner) throws(PEFTError) in
      entries.insert(try scanner.readStringBytes())
    }
    #expect(entries.count == 2)
  }
}
