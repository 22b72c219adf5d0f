import NN
import PEFTSupport
import TestSupport
import Testing

@testable import PEFTCore

/// Target matching against the tables that peft decided (Tests/Goldens/targets.json).
struct TargetTests {
  let golden: JSONValue

  init() throws { golden = try FileSystem.readJSON(TestData.golden("targets.json")) }

  private func modules(_ value: JSONValue?) -> TargetModules? {
    if let text = value?.string { return .regex(text) }
    return value?.array.map { .list($0.compactMap(\.string)) }
  }

  @Test func everyRowOfTheTargetTable() throws {
    let rows = try #require(golden["targets"]?.array)
    for row in rows {
      let name = try #require(row["key"]?.string)
      var members = JSONObject()
      for key in ["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"] {
        members[key] = row[key]
      }
      var reader = ConfigReader(members)
      let selection = try TargetSelection(&reader)
      let saved = row["modules_to_save"]?.array?.compactMap(\.string) ?? []
      let outcome = try TargetMatcher(selection, savedModules: saved).outcome(name)
      let expected: TargetMatcher.Outcome =
        row["excluded"] == true ? .excluded : row["expected"] == true ? .matched : .other
      #expect(outcome == expected, "\(row.text(.spaced))")
    }
    #expect(rows.count >= 60)
  }

  @Test func everyRowOfThePatternTable() throws {
    let rows = try #require(golden["patterns"]?.array)
    for row in rows {
      let keys = try #require(row["keys"]?.array).compactMap(\.string)
      let module = try #require(row["module"]?.string)
      let patterns = SuffixPatterns(keys.enumerated().map { .init($0.element, Double($0.offset)) })
      let value = try patterns.value(for: module, configKey: "rank_pattern")
      let expected =
        row["matched"] == true
        ? keys.firstIndex(of: try #require(row["expected"]?.string)).map(Double.init) : nil
      #expect(value == expected, "\(row.text(.spaced))")
    }
    #expect(rows.count >= 20)
  }

  @Test func invalidExpressionsNameTheKey() {
    for (selection, start) in [
      (TargetSelection(.regex("(")), "'target_modules': '('"),
      (TargetSelection(.list(["a"]), excluding: .regex("[")), "'exclude_modules': '['"),
      (TargetSelection(.list(["a"]), layers: [1], layersPattern: ["("]), "'layers_pattern': '('"),
    ] {
      let error = #expect(throws: PEFTError.self) { try TargetMatcher(selection) }
      #expect(error?.message == "\(start) is not a valid regular expression")
      #expect(error?.code == .invalidConfiguration)
      #expect(error?.remedy?.hasPrefix("Correct it; the parser says: ") == true)
    }
    let patterns = SuffixPatterns([.init("(", 1)])
    let error = #expect(throws: PEFTError.self) {
      try patterns.value(for: "a", configKey: "alpha_pattern")
    }
    #expect(error?.message == "'alpha_pattern': '(' is not a valid regular expression")
  }

  /// Combinations that peft's `LoraConfig` refuses too.
  @Test(arguments: [
    (
      #"{"target_modules": ".*q", "layers_to_transform": [1]}"#,
      "`layers_to_transform` cannot be used when `target_modules` is a str."
    ),
    (
      #"{"target_modules": "all-linear", "layers_pattern": "h"}"#,
      "`layers_pattern` cannot be used when `target_modules` is a str."
    ),
    (
      #"{"target_modules": ["q"], "layers_pattern": "h"}"#,
      "When `layers_pattern` is specified, `layers_to_transform` must also be specified."
    ),
    (
      #"{"target_modules": 3}"#,
      "'target_modules' is an integer (3), a list of strings was expected"
    ),
    (
      #"{"target_modules": ["q", 1]}"#,
      #"'target_modules' is a list (["q", 1]), a list of strings was expected"#
    ),
    (
      #"{"target_modules": ["q"], "layers_to_transform": "x"}"#,
      #"'layers_to_transform' is a string ("x"), a list of integers was expected"#
    ),
  ])
  func wrongSettingsAreRefused(_ text: String, _ message: String) throws {
    let object = try #require(try JSONValue(parsing: text).object)
    let error = #expect(throws: PEFTError.self) {
      var reader = ConfigReader(object)
      _ = try TargetSelection(&reader)
    }
    #expect(error?.message == message)
  }

  @Test func selectionsAreWrittenAsTheyAreRead() throws {
    for text in [
      #"{"target_modules": ["a", "b"], "exclude_modules": ".*x", "layers_to_transform": [1, 2], "layers_pattern": ["h"]}"#,
      #"{"target_modules": "all-linear", "exclude_modules": null, "layers_to_transform": null, "layers_pattern": null}"#,
      #"{"target_modules": null, "exclude_modules": ["c"], "layers_to_transform": null, "layers_pattern": null}"#,
    ] {
      var reader = ConfigReader(try #require(try JSONValue(parsing: text).object))
      let selection = try TargetSelection(&reader)
      #expect(JSONValue.object(JSONObject(selection.members)).text(.spaced) == text)
    }
  }

  @Test func allLinearTakesEveryLinearLayerButTheHead() throws {
    let model = try TinyModel()
    #expect(
      TargetMatcher.expandAllLinear(in: model, outputHeads: ["classifier"]) == [
        "mlp.up", "mlp.down",
      ])
  }
}
