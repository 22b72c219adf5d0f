import LayerTestSupport
import PEFTCore
import PEFTSupport
import TestSupport
import Testing

/// Checks what calls on a model are refused with, and that the model is then as it was before.
struct Refusal {
  let peft: PeftModel

  /// The texts of peft's errors.
  private static let peftsTexts: [String] = {
    let file = try? FileSystem.readJSON(TestData.golden("conformance.json"))
    return (file?["cases"]?.array ?? []).flatMap { $0["steps"]?.array ?? [] }
      .compactMap { $0["error"]?["text"]?.string }
  }()

  /// Checks one call.
  ///
  /// - Parameters:
  ///   - text: The message.
  ///   - code: The kind of the failure.
  ///   - location: The file or module.
  ///   - remedy: What to do, where the test is about that too.
  ///   - isPefts: Whether peft says the same, or what begins with it.
  ///   - body: The call.
  func callAsFunction(
    _ text: String, _ code: PEFTError.Code, at location: String? = nil, remedy: String? = nil,
    isPefts: Bool = true, sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () throws -> Void
  ) throws {
    let before = try ModelState(peft)
    let error = #expect(throws: PEFTError.self, sourceLocation: sourceLocation) { try body() }
    #expect(error?.message == text, sourceLocation: sourceLocation)
    #expect(error?.code == code, sourceLocation: sourceLocation)
    #expect(error?.location == location, sourceLocation: sourceLocation)
    if let remedy { #expect(error?.remedy == remedy, sourceLocation: sourceLocation) }
    if isPefts {
      #expect(
        Self.peftsTexts.contains { $0.hasPrefix(text) }, "not a text of peft's",
        sourceLocation: sourceLocation)
    }
    #expect(
      try ModelState(peft).changes(since: before) == [], "the state has changed",
      sourceLocation: sourceLocation)
  }
}
