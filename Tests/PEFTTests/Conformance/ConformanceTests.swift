import PEFT
import Testing

/// The conformance cases with what peft does in each (Tests/Goldens/conformance.json, made by
/// generator/conformance).
struct ConformanceTests {
  static let data = try? ConformanceData()
  static let cases = (data?.json["cases"]?.array ?? []).compactMap { $0["id"]?.string }
    .filter { ConformanceDifferences.others[$0] == nil }

  @Test(arguments: cases)
  func outcomesArePefts(_ id: String) throws {
    let data = try #require(Self.data)
    try ConformanceRun(id, data).run()
  }

  @Test func enoughCases() throws {
    let all = try #require(Self.data?.json["cases"]?.array)
    let starred = all.filter { $0["star"] == true }.compactMap { $0["id"]?.string }
    print(starred.filter { !Self.cases.contains($0) })
    #expect(Self.cases.count >= 60)
  }
}
