/// The regular expressions by which published byte-level tokenizers cut text, as state machines.
///
/// A pattern is recognised by its exact spelling; a general engine would be thirty times slower, and
/// is the reference in the tests.
struct SplitPattern: Sendable, Equatable {
  /// The family of a pattern.
  enum Shape: Equatable {
    /// GPT-2: words, numbers and symbols with one space before them.
    case gpt2
    /// cl100k, Llama 3, Qwen: words with one symbol before them, line breaks apart.
    case cl100k
    /// o200k, Tekken: as cl100k, and cut where lower case turns to upper.
    case o200k
  }

  let shape: Shape
  /// The largest number of digits in a piece; 0 for any.
  var digits = 0
  /// Whether marks count as letters (cl100k).
  var joinsMarks = false
  /// Whether English contractions are cut off (o200k: kept at the end of a word).
  var knowsContractions = true

  static let gpt2 = SplitPattern(shape: .gpt2)

  private init(
    shape: Shape, digits: Int = 0, joinsMarks: Bool = false, knowsContractions: Bool = true
  ) {
    self.shape = shape
    self.digits = digits
    self.joinsMarks = joinsMarks
    self.knowsContractions = knowsContractions
  }

  /// Recognises a regular expression; `nil` when it is none of the known ones.
  init?(regex: String) {
    guard let known = Self.known.first(where: { $0.regex == regex }) else { return nil }
    self = known.pattern
  }

  /// The known expressions.
  static let known: [(regex: String, pattern: SplitPattern)] = {
    let gpt2 = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
    let contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    let spaces = #"|\s*[\r\n]+|\s+(?!\S)|\s+"#
    func cl100k(_ digits: String) -> String {
      contraction + #"|[^\r\n\p{L}\p{N}]?\p{L}+|"# + digits + #"| ?[^\s\p{L}\p{N}]+[\r\n]*"#
        + spaces
    }
    let qwen35 =
      contraction + #"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"#
      + spaces
    let upper = #"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"#
    let lower = #"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"#
    func o200k(_ end: String, _ digits: String) -> String {
      let prefix = #"[^\r\n\p{L}\p{N}]?"#
      return prefix + upper + "*" + lower + "+" + end + "|" + prefix + upper + "+" + lower + "*"
        + end + "|" + digits + #"| ?[^\s\p{L}\p{N}]+[\r\n/]*"# + spaces
    }
    return [
      (gpt2, .gpt2),
      (cl100k(#"\p{N}"#), SplitPattern(shape: .cl100k, digits: 1)),
      (cl100k(#"\p{N}{1,3}"#), SplitPattern(shape: .cl100k, digits: 3)),
      (qwen35, SplitPattern(shape: .cl100k, digits: 1, joinsMarks: true)),
      (o200k(contraction + "?", #"\p{N}{1,3}"#), SplitPattern(shape: .o200k, digits: 3)),
      (
        o200k("", #"\p{N}"#),
        SplitPattern(shape: .o200k, digits: 1, knowsContractions: false)
      ),
    ]
  }()
}
