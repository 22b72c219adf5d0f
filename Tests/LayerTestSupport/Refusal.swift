import PEFTCore
import PEFTSupport
import TestSupport
import Testing

/// The texts of peft's errors in Tests/Goldens/conformance.json.
private let peftsTexts: Set<String> = {
  let file = try? FileSystem.readJSON(TestData.golden("conformance.json"))
  let steps = (file?["cases"]?.array ?? []).flatMap { $0["steps"]?.array ?? [] }
  return Set(steps.compactMap { $0["error"]?["text"]?.string })
}()

/// Checks the error of a call.
///
/// - Parameters:
///   - text: The message.
///   - code: The kind of the failure.
///   - location: The file or module.
///   - remedy: What to do, where the test is about that too.
///   - isPefts: Whether peft says the same, or what begins with it; others have a remedy, unless
///     they say themselves what was wanted.
///   - body: The call.
package func expectError(
  _ text: String, _ code: PEFTError.Code, at location: String? = nil, remedy: String? = nil,
  isPefts: Bool = false, sourceLocation: SourceLocation = #_sourceLocation,
  _ body: () throws -> Void
) {
  let error = #expect(throws: PEFTError.self, sourceLocation: sourceLocation) { try body() }
  #expect(error?.message == text, sourceLocation: sourceLocation)
  #expect(error?.code == code, sourceLocation: sourceLocation)
  #expect(error?.location == location, sourceLocation: sourceLocation)
  if let remedy { #expect(error?.remedy == remedy, sourceLocation: sourceLocation) }
  if isPefts {
    #expect(
      peftsTexts.contains { $0.hasPrefix(text) }, "not a text of peft's",
      sourceLocation: sourceLocation)
  } else {
    let saysItself = ["please", "make sure", "either", "expected", "should be", "must"].contains {
      text.lowercased().contains($0)
    }
    #expect(error?.remedy != nil || saysItself, "no remedy", sourceLocation: sourceLocation)
  }
}

extension PeftModel {
  /// Checks a call that is refused and leaves the model as it was; see
  /// ``expectError(_:_:at:remedy:isPefts:sourceLocation:_:)``.
  package func refuses(
    _ text: String, _ code: PEFTError.Code, at location: String? = nil, remedy: String? = nil,
    isPefts: Bool = false, sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () throws -> Void
  ) throws {
    let before = try ModelState(self)
    expectError(
      text, code, at: location, remedy: remedy, isPefts: isPefts, sourceLocation: sourceLocation,
      body)
    #expect(
      try ModelState(self).changes(since: before) == [], "the state has changed",
      sourceLocation: sourceLocation)
  }
}
