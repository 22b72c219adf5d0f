import PEFTSupport
import Testing

/// JSON writing; the expected texts are those of Python's `json.dumps` (`ensure_ascii=False`).
struct JSONWriterTests {
  let value: JSONValue = ["b": [1, 2.5, "x"], "a": ["c": nil, "d": true], "e": [], "f": [:]]

  @Test func layoutsEqualPythons() {
    #expect(value.text() == #"{"b":[1,2.5,"x"],"a":{"c":null,"d":true},"e":[],"f":{}}"#)
    #expect(
      value.text(.spaced) == #"{"b": [1, 2.5, "x"], "a": {"c": null, "d": true}, "e": [], "f": {}}"#
    )
    #expect(
      value.text(.indented, sortedKeys: true) == """
        {
          "a": {
            "c": null,
            "d": true
          },
          "b": [
            1,
            2.5,
            "x"
          ],
          "e": [],
          "f": {}
        }
        """)
  }

  @Test func escapesOnlyWhatMustBe() {
    let text = JSONValue.string("\"\\/\n\r\t\u{1}\u{1F}\u{7F}é😀").text()
    #expect(text == "\"\\\"\\\\/\\n\\r\\t\\u0001\\u001f\u{7F}é😀\"")
  }

  @Test(arguments: [0.1, 1e-5, 1e16, 2.5e-308, 1.797_693_134_862_315_7e308, -0.0, 1.0 / 3.0])
  func floatsReadBackToTheBit(_ number: Double) throws {
    let text = JSONValue.double(number).text()
    guard case .double(let back) = try JSONValue(parsing: text) else {
      Issue.record("\(text) is no float")
      return
    }
    #expect(back.bitPattern == number.bitPattern)
  }

  @Test func objectsCompareWithoutOrderAndRemoveMembers() {
    var object = JSONObject([("a", 1), ("b", 2), ("c", 3)])
    #expect(object == JSONObject([("c", 3), ("b", 2), ("a", 1)]))
    #expect(object != JSONObject([("a", 1), ("b", 2)]))
    object["a"] = nil
    object["d"] = 4
    object["c"] = 5
    #expect(object.keys == ["b", "c", "d"])
    #expect(object["c"] == 5)
    #expect(object["a"] == nil)
  }
}
