import Testing

@testable import PEFTSupport

struct SpellingTests {
  let known = ["learning_rate", "lora_alpha", "lora_dropout", "r", "seed"]

  @Test(arguments: [
    ("learning_rat", "learning_rate"), ("LEARNING_RATE", "learning_rate"), ("lr_seed", "seed"),
    ("lora_alhpa", "lora_alpha"), ("dropout", "lora_dropout"), ("x", "r"),
  ])
  func findsTheNearest(_ word: String, _ expected: String) {
    #expect(Spelling.nearest(to: word, among: known) == expected)
  }

  @Test func listsAllWhenNoneIsNear() {
    #expect(Spelling.nearest(to: "optimizer", among: known) == nil)
    #expect(Spelling.suggestion(for: "sed", among: known) == "Did you mean 'seed'?")
    #expect(
      Spelling.suggestion(for: "optimizer", among: ["b", "aaaa"]) == "Known: aaaa, b.")
  }

  /// Distances of the optimal string alignment, counted by hand.
  @Test(arguments: [
    ("", "", 0), ("abc", "", 3), ("abc", "abc", 0), ("abc", "abd", 1), ("abc", "acb", 1),
    ("ca", "abc", 3), ("kitten", "sitting", 3),
  ])
  func countsEdits(_ a: String, _ b: String, _ distance: Int) {
    #expect(Spelling.editDistance(Array(a.utf8), Array(b.utf8)) == distance)
    #expect(Spelling.editDistance(Array(b.utf8), Array(a.utf8)) == distance)
  }
}
