import PEFTSupport
import TestSupport
import Testing

@testable import Training

/// CSV by the rules of RFC 4180; the expected fields follow from them.
struct CSVReaderTests {
  private func records(_ text: String, separator: Character = ",") throws -> [[String]] {
    let reader = CSVReader(
      Array(text.utf8), separator: separator.asciiValue!, path: "data.csv")
    return try reader.records().map { record in record.values.members.map { $0.value.string! } }
  }

  private func message(_ text: String) -> String {
    do {
      _ = try CSVReader(Array(text.utf8), path: "data.csv").records()
      return "no error"
    } catch { return error.description }
  }

  @Test func quotedFieldsHoldSeparatorsQuotesAndLineBreaks() throws {
    let text = "text,label\r\n\"a, \"\"b\"\"\nc\",x\r\nplain,\"\"\r\n"
    #expect(try records(text) == [["a, \"b\"\nc", "x"], ["plain", ""]])
  }

  @Test(arguments: ["a,b\n1,2\n3,4", "a,b\r1,2\r3,4\r", "\u{FEFF}a,b\r\n\r\n1,2\n\n3,4\n\n"])
  func lineEndsAndEmptyLines(_ text: String) throws {
    #expect(try records(text) == [["1", "2"], ["3", "4"]])
  }

  @Test func tabsSeparateInTSV() throws {
    #expect(try records("a\tb\n1,5\t2\n", separator: "\t") == [["1,5", "2"]])
  }

  @Test func emptyFieldsStay() throws {
    #expect(try records("a,b,c\n,,\n") == [["", "", ""]])
  }

  @Test func errorsNameTheLineWhereTheRecordBegins() {
    #expect(message("a,b\n1,2\n3\n") == "data.csv:3: the record has 1 fields, the header has 2")
    // The field before it spans lines 2 and 3.
    #expect(message("a,b\n\"x\ny\",2\n1,2,3").hasPrefix("data.csv:4: the record has 3 fields"))
    #expect(message("a,b\n1,\"open\n\n") == "data.csv:2: a quoted field does not end")
    #expect(message("a,b\n\"x\"y,2\n").hasPrefix("data.csv:2: text follows a quoted field"))
    #expect(message("a,a\n1,2\n") == "data.csv:1: the column 'a' occurs twice")
  }

  @Test func bytesThatAreNotUTF8AreRefused() {
    let bytes = Array("a,b\n1,2\n".utf8) + [0xE9, UInt8(ascii: ","), UInt8(ascii: "1")]
    let error = #expect(throws: PEFTError.self) {
      _ = try CSVReader(bytes, path: "data.csv").records()
    }
    #expect(error?.description.hasPrefix("data.csv:3: is not UTF-8 text") == true)
  }
}

struct DataFileTests {
  private let folder: TemporaryFolder
  init() throws { folder = try TemporaryFolder() }

  private func failure(_ name: String, _ text: String) throws -> PEFTError? {
    let path = try folder.write(name, text)
    return #expect(throws: PEFTError.self) { _ = try DataFile.records(path) }
  }

  @Test func jsonLinesSkipsEmptyLinesAndCountsThem() throws {
    let path = try folder.write("a.jsonl", "{\"text\": \"x\"}\n\n{\"text\": \"y\", \"n\": [1]}\r\n")
    let records = try DataFile.records(path)
    #expect(records.map { $0.values["text"]?.string } == ["x", "y"])
    #expect(records[1].location == "\(path):3")
    #expect(records[1].values["n"]?.array?.count == 1)
  }

  @Test func malformedLinesAreNamed() throws {
    let broken = try failure("a.jsonl", "{\"text\": \"x\"}\n{\"text\": \n")
    #expect(broken?.code == .invalidData)
    #expect(broken?.location?.hasSuffix("a.jsonl:2") == true)
    let list = try failure("b.jsonl", "[1]\n")
    #expect(list?.description.contains("b.jsonl:1: is a list, an object was expected") == true)
    let rest = try failure("c.jsonl", "{\"a\": 1} x\n")
    #expect(rest?.location?.hasSuffix("c.jsonl:1") == true)
  }

  @Test(arguments: [
    ("a.csv", "text,label\n"), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("b.csv", ""),
  ])
  func emptyDataIsAnError(_ name: String, _ text: String) throws {
    let error = try failure(name, text)
    #expect(error?.code == .invalidData)
    #expect(error?.message.contains("the data is empty") == true)
  }

  @Test func aListOfObjectsInOneJSONFile() throws {
    let path = try folder.write("a.json", "[{\"text\": \"x\"}, {\"text\": \"y\"}]")
    #expect(try DataFile.records(path).map { $0.location } == ["\(path)[0]", "\(path)[1]"])
    let wrong = try failure("b.json", "[1]")
    #expect(wrong?.description.contains("b.json[0]: is an integer") == true)
  }

  @Test func unknownEndingsAndMissingFilesAreRefused() throws {
    let error = try failure("a.parquet", "x")
    #expect(error?.code == .unsupported)
    let missing = #expect(throws: PEFTError.self) {
      _ = try DataFile.records(folder("none.csv"))
    }
    #expect(missing?.code == .fileNotFound)
  }

  @Test func missingColumnsNameTheKeyThatChoosesThem() throws {
    let path = try folder.write("a.csv", "sentence,label\nhi,x\n")
    let record = try DataFile.records(path)[0]
    let error = #expect(throws: PEFTError.self) {
      _ = try record.text("text", setBy: "text_column")
    }
    #expect(error?.description.contains("there is no 'text' among sentence, label") == true)
    #expect(error?.remedy?.contains("text_column") == true)
  }
}

struct LabelSetTests {
  private let folder: TemporaryFolder
  init() throws { folder = try TemporaryFolder() }

  @Test func labelsOfDataAreSortedAsTextOrAsNumbers() {
    #expect(LabelSet(occurring: ["b", "a", "b"]).names == ["a", "b"])
    #expect(LabelSet(occurring: ["10", "9", "0"]).names == ["0", "9", "10"])
    #expect(LabelSet(occurring: ["10", "9", "x"]).names == ["10", "9", "x"])
  }

  @Test(arguments: [
    "[\"x\", \"y\", 3]", "{\"0\": \"x\", \"1\": \"y\", \"2\": \"3\"}",
    "{\"y\": 1, \"x\": 0, \"3\": \"3\", \"q\": 2}",
  ])
  func filesHoldListsOrMappings(_ text: String) throws {
    let path = try folder.write("labels.json", text)
    if text.contains("q") {
      // "3": "3" gives id 3 the name "3", which leaves four labels.
      #expect(try LabelSet(file: path).names == ["x", "y", "q", "3"])
    } else {
      #expect(try LabelSet(file: path).names == ["x", "y", "3"])
    }
  }

  @Test(arguments: ["[\"x\", \"x\"]", "{\"0\": \"x\", \"2\": \"y\"}", "3", "[]", "[[1]]"])
  func otherFilesAreRefused(_ text: String) throws {
    let path = try folder.write("labels.json", text)
    let error = #expect(throws: PEFTError.self) { _ = try LabelSet(file: path) }
    #expect(error?.location == path)
  }

  @Test func unknownLabelsNameThePlaceAndTheNearestLabel() throws {
    let labels = try LabelSet(["order_status", "refund"])
    let error = #expect(throws: PEFTError.self) {
      _ = try labels.id(of: "order_statsu", at: "test.jsonl:7")
    }
    #expect(error?.location == "test.jsonl:7")
    #expect(error?.message.contains("unknown label 'order_statsu'") == true)
    #expect(error?.remedy == "Did you mean 'order_status'?")
    #expect(try labels.id(of: "refund", at: "") == 1)
  }
}
