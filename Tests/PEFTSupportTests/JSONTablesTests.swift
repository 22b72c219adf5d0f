import Testing

@testable import PEFTSupport

/// The tables against the general reader of the same text, in usual and unusual forms.
@Suite struct JSONTablesTests {
  @Test(
    arguments: [
      #"{}"#, #"{"a": 1}"#, #"{"a":1,"b":22,"":3}"#, "{ \n\"a\"\t:\r\n 1 ,\n\"bcd\": 2\n}",
      #"{"\"": 1, "\\": 2, "\u00e9\ud83d\ude00": 3, "ü": 4, "plain": 5}"#,
      #"{"a": -1, "b": 0, "c": 999999999999999999, "d": 9223372036854775807}"#,
    ])
  func integers(_ text: String) throws {
    var scanner = JSONScanner(Array(text.utf8))
    let table = try scanner.readIntegerTable()
    try scanner.expectEnd()
    let members = try JSONValue(parsing: text).object?.members ?? []
    var start = 0
    let names = table.ends.map { end in
      defer { start = end }
      return String(decoding: table.names[start..<end], as: UTF8.self)
    }
    #expect(names == members.map(\.key))
    #expect(table.values == members.map { $0.value.int ?? .min })
  }

  @Test(
    arguments: [
      #"[]"#, #"[["a","b"]]"#, #"["a b", ["c", "d"], "ee ff"]"#,
      "[ [ \"a\" ,\n \"b\" ] , \"c d\" ]",
      #"[["\"", "\\"], "\u00e9 x", ["", ""], [" ", "  "], "a ", " b"]"#,
    ])
  func pairs(_ text: String) throws {
    var scanner = JSONScanner(Array(text.utf8))
    let table = try scanner.readPairTable()
    try scanner.expectEnd()
    var start = 0
    let found = table.ends.map { ends in
      defer { start = ends.second }
      return [start..<ends.first, ends.first..<ends.second].map {
        String(decoding: table.text[$0], as: UTF8.self)
      }
    }
    let expected = (try JSONValue(parsing: text).array ?? []).map { value in
      value.array?.compactMap(\.string)
        ?? value.string?.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
    }
    #expect(found == expected)
  }

  @Test(
    arguments: [
      "", "[", "{", #"{"a"}"#, #"{"a": }"#, #"{"a": 1"#, #"{"a": 1,}"#, #"{"a": 1.5}"#,
      #"{"a": 1e3}"#, #"{"a": "1"}"#, #"{"a": 1 "b": 2}"#, #"{"a": 99999999999999999999}"#,
      #"{"a"#, "{\"a\n\": 1}", #"{a: 1}"#, #"{,"a": 1}"#, #"{"\x": 1}"#,
    ])
  func malformedIntegers(_ text: String) {
    let error = #expect(throws: PEFTError.self) {
      var scanner = JSONScanner(Array(text.utf8))
      _ = try scanner.readIntegerTable()
    }
    #expect(error?.code == .malformedFile)
  }

  @Test(
    arguments: [
      "", "[", "{}", #"[["a"]]"#, #"[["a", "b", "c"]]"#, #"["ab"]"#, #"["a b c"]"#, #"[1]"#,
      #"[["a", 1]]"#, #"[["a", "b"],]"#, #"[["a", "b"] ["c", "d"]]"#, #"[["a", "b""#, #"["a b"#,
    ])
  func malformedPairs(_ text: String) {
    let error = #expect(throws: PEFTError.self) {
      var scanner = JSONScanner(Array(text.utf8))
      _ = try scanner.readPairTable()
    }
    #expect(error?.code == .malformedFile)
  }

  /// Reading by hand, name by name and element by element.
  @Test func pulling() throws {
    var scanner = JSONScanner(Array(#"{"a": [1, 2], "b": {"c": [{}, "x"]}, "d": 3}"#.utf8))
    var names: [UInt8] = []
    try scanner.beginObject()
    #expect(try scanner.nextKey(isFirst: true, appendingTo: &names))
    try scanner.beginArray()
    #expect(try scanner.nextElement(isFirst: true))
    #expect(try scanner.readInt() == 1)
    #expect(try scanner.nextElement(isFirst: false))
    #expect(try scanner.readInt() == 2)
    #expect(try !scanner.nextElement(isFirst: false))
    #expect(try scanner.nextKey(isFirst: false, appendingTo: &names))
    try scanner.skipValue()
    #expect(try scanner.nextKey(isFirst: false, appendingTo: &names))
    #expect(try scanner.readInt() == 3)
    #expect(try !scanner.nextKey(isFirst: false, appendingTo: &names))
    try scanner.expectEnd()
    #expect(names == Array("abd".utf8))
  }
}
