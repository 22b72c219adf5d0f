/// "Did you mean": nearest known words for a misspelt one.
public enum Spelling {
  /// The candidate closest to `word`, or `nil` when none is near.
  ///
  /// Near means an edit distance of at most a third of the longer word's length, or one being a
  /// part of the other.
  public static func nearest(to word: String, among candidates: some Sequence<String>) -> String? {
    let normalized = Array(word.lowercased().utf8)
    var best: (distance: Int, word: String)?
    for candidate in candidates {
      let other = Array(candidate.lowercased().utf8)
      let distance = editDistance(normalized, other)
      let limit = max(1, max(normalized.count, other.count) / 3)
      let near =
        distance <= limit
        || (normalized.count >= 3 && other.count >= 3
          && (candidate.lowercased().contains(word.lowercased())
            || word.lowercased().contains(candidate.lowercased())))
      if near, best.map({ distance < $0.distance }) ?? true {
        best = (distance, candidate)
      }
    }
    return best?.word
  }

  /// A sentence for error messages: the nearest known word, else all of them.
  public static func suggestion(for word: String, among candidates: some Collection<String>)
    -> String
  {
    if let nearest = nearest(to: word, among: candidates) {
      return "Did you mean '\(nearest)'?"
    }
    return "Known: \(candidates.sorted().joined(separator: ", "))."
  }

  /// Levenshtein distance, with a transposition of neighbours counted as one edit.
  static func editDistance(_ a: [UInt8], _ b: [UInt8]) -> Int {
    if a.isEmpty || b.isEmpty { return max(a.count, b.count) }
    var beforePrevious = [Int](repeating: 0, count: b.count + 1)
    var previous = Array(0...b.count)
    var current = [Int](repeating: 0, count: b.count + 1)
    for i in 1...a.count {
      current[0] = i
      for j in 1...b.count {
        let cost = a[i - 1] == b[j - 1] ? 0 : 1
        var value = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + cost)
        if i > 1, j > 1, a[i - 1] == b[j - 2], a[i - 2] == b[j - 1] {
          value = min(value, beforePrevious[j - 2] + 1)
        }
        current[j] = value
      }
      (beforePrevious, previous, current) = (previous, current, beforePrevious)
    }
    return previous[b.count]
  }
}
