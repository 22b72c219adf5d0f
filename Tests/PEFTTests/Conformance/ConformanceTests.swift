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

  /// Case 71c: a configuration stays as it was, while in peft the list of heads that it holds grows
  /// with each adapter that it is used for.
  @Test func configurationsOfTwoAdaptersStayAsTheyWere() throws {
    let data = try #require(Self.data)
    let step = try #require(data.steps("71c").first)
    let run = try ConformanceRun("71c", data)
    try run.use(["model": "bert"])
    let peft = run.wrap()
    let config = LoRAConfig(
      rank: 2, targets: TargetSelection(.list(["query"])), taskType: .sequenceClassification,
      modulesToSave: ["pooler"])
    let before = config.object
    // The heads as peft lists them for the first adapter, and for both here.
    let heads = ConformanceRun.sorted(step["value"]?["first"] ?? .null)
    #expect(heads.array?.count == 3)
    for name in ["first", "second"] {
      try peft.add(name, config)
      #expect(config.object == before)
      let found = try peft.config(name).object["modules_to_save"] ?? .null
      #expect(ConformanceRun.sorted(found) == heads)
    }
    #expect(step["value"]?["second"]?.array?.count == 5)
  }

  @Test func everyStarredCaseIsRun() throws {
    let all = try #require(Self.data?.json["cases"]?.array)
    let starred = all.filter { $0["star"] == true }.compactMap { $0["id"]?.string }
    #expect(starred.filter { !Self.cases.contains($0) } == ["71c"])
    #expect(starred.count >= 30 && Self.cases.count >= 100)
  }

  /// What is listed as another outcome belongs to a step that there is.
  @Test func differencesAreOfCasesThatThereAre() throws {
    let all = try #require(Self.data?.json["cases"]?.array)
    var counts: [String: Int] = [:]
    for one in all { counts[one["id"]?.string ?? ""] = one["steps"]?.array?.count ?? 0 }
    #expect(ConformanceDifferences.others.keys.filter { counts[$0] == nil } == [])
    for key in ConformanceDifferences.steps.keys {
      let parts = key.split(separator: ":")
      #expect(counts[String(parts[0])] ?? 0 > Int(parts[1]) ?? .max, "\(key)")
      #expect(ConformanceDifferences.others[String(parts[0])] == nil, "\(key)")
    }
  }
}
