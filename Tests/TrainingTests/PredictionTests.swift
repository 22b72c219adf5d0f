import PEFTCore
import PEFTSupport
import TestSupport
import Testing
import Tokenizers

@testable import Training

/// Predictions for inputs that are out of the ordinary.
struct PredictionTests {
  /// A tokenizer that puts nothing around a text gives none for "": there is no row to classify,
  /// and a neighbour's must not be taken instead.
  @Test func textsWithoutTokensAreRefused() throws {
    let folder = try TemporaryFolder()
    var tokenizer = try #require(
      try JSONValue(parsing: WordTokenizer.json(["where", "now"])).object)
    tokenizer["post_processor"] = .null
    _ = try folder.write("tokenizer.json", JSONValue.object(tokenizer).text())
    let adapted = try AdaptedModel(
      TestData.golden("llama/model"), adapter: TestData.golden("tasks/llama-sequence/adapter"),
      registry: standardRegistry)
    let words = try Tokenizer(folder: folder.path)
    let error = #expect(throws: PEFTError.self) {
      _ = try adapted.classify([("where now", nil), ("", nil)], tokenizer: words)
    }
    #expect(error?.code == .invalidData)
    #expect(error?.description == "text 2: holds no token")
    let answers = try adapted.classify([("where", nil), ("now", nil)], tokenizer: words)
    #expect(answers.count == 2 && answers[0] != answers[1])
  }
}
