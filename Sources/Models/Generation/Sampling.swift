import PEFTSupport

/// How the next token is drawn from a model's logits.
///
/// The steps and their order are those of transformers' `generate`: temperature, then top-k, then
/// top-p, then a draw from the softmax of what is left.
public struct Sampling: Sendable, Equatable {
  /// Divides the logits; below 1 likely tokens gain, above 1 they lose.
  public var temperature: Double
  /// Keeps the k largest logits, and those equal to the k-th; `nil` keeps all.
  public var topK: Int?
  /// Keeps the smallest set of likeliest tokens whose probabilities reach p; `nil` keeps all.
  public var topP: Double?
  /// Equal seeds draw equal tokens.
  public var seed: UInt64

  /// Creates settings.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`, with transformers' conditions: temperature
  ///   above 0, top-k above 0, top-p from 0 to 1.
  public init(
    temperature: Double = 1, topK: Int? = nil, topP: Double? = nil, seed: UInt64 = 0
  ) throws(PEFTError) {
    guard temperature > 0, temperature.isFinite else {
      throw PEFTError(
        .invalidConfiguration, "the temperature is \(temperature), a number above 0 was expected",
        remedy: temperature == 0 ? "For the likeliest token every time, decode greedily." : nil)
    }
    if let topK, topK <= 0 {
      throw PEFTError(
        .invalidConfiguration, "top-k is \(topK), a positive integer was expected")
    }
    if let topP, !(0...1).contains(topP) {
      throw PEFTError(
        .invalidConfiguration, "top-p is \(topP), a number from 0 to 1 was expected")
    }
    self.temperature = temperature
    self.topK = topK
    self.topP = topP
    self.seed = seed
  }
}

/// A token that may be drawn.
public struct TokenCandidate: Sendable, Equatable {
  /// The token.
  public var token: Int32
  /// Its probability among the candidates.
  public var probability: Double
}

extension Sampling {
  /// The tokens that survive temperature, top-k and top-p, likeliest first, with probabilities that
  /// add up to 1.
  ///
  /// - Parameter logits: One for each token of the vocabulary; not empty.
  public func candidates(_ logits: some Collection<Float>) -> [TokenCandidate] {
    var scores: [(token: Int32, score: Double)] = []
    scores.reserveCapacity(logits.count)
    for (token, logit) in logits.enumerated() {
      scores.append((Int32(token), Double(logit) / temperature))
    }
    if let topK, topK < scores.count {
      let threshold = Self.largest(topK, of: scores.map(\.score))
      scores.removeAll { $0.score < threshold }
    }
    var kept = Self.softmax(scores)
    if let topP, topP < 1 { Self.restrict(&kept, to: topP) }
    kept.sort { ($1.probability, $0.token) < ($0.probability, $1.token) }
    return kept
  }

  /// Draws a token.
  ///
  /// - Parameters:
  ///   - logits: One for each token of the vocabulary.
  ///   - uniform: A uniform random number in `0 ..< 1`.
  public func draw(_ logits: some Collection<Float>, uniform: Double) -> Int32 {
    let candidates = candidates(logits)
    var mass = 0.0
    for candidate in candidates {
      mass += candidate.probability
      if uniform < mass { return candidate.token }
    }
    // Rounding may leave the sum a little below 1.
    return candidates[candidates.count - 1].token
  }

  private static func softmax(_ scores: [(token: Int32, score: Double)]) -> [TokenCandidate] {
    let largest = scores.reduce(-Double.infinity) { max($0, $1.score) }
    var sum = 0.0
    var result = scores.map { token, score in
      let weight = (score - largest).exponential
      sum += weight
      return TokenCandidate(token: token, probability: weight)
    }
    for place in result.indices { result[place].probability /= sum }
    return result
  }

  /// Top-p: going down from the likeliest, a token stays while the mass before it is below p.
  private static func restrict(_ candidates: inout [TokenCandidate], to p: Double) {
    // Tokens of at most (1 − p)/n each cannot add up to more than 1 − p, the mass that goes: they
    // are out, which spares sorting a whole vocabulary.
    let floor = (1 - p) / Double(candidates.count)
    let likely = candidates.filter { $0.probability > floor }
    if !likely.isEmpty { candidates = likely }
    candidates.sort { ($1.probability, $0.token) < ($0.probability, $1.token) }
    var mass = 0.0
    var count = 0
    while count < candidates.count, count == 0 || mass < p {
      mass += candidates[count].probability
      count += 1
    }
    candidates.removeSubrange(count...)
    for place in candidates.indices { candidates[place].probability /= mass }
  }

  /// The k-th largest value, by narrowing down on a pivot (Hoare's selection).
  private static func largest(_ k: Int, of values: [Double]) -> Double {
    var values = values
    var k = k
    while true {
      let pivot = values[values.count / 2]
      let above = values.filter { $0 > pivot }
      if k <= above.count {
        values = above
        continue
      }
      let equal = values.count { $0 == pivot }
      if k <= above.count + equal { return pivot }
      k -= above.count + equal
      values.removeAll { !($0 < pivot) }
    }
  }
}
