import Models
import PEFTSupport
import Testing

/// Expected candidates come from transformers' definitions of its logits warpers, spelt out below
/// in their own terms: sort upwards, add up, cut.
struct SamplingTests {
  static let logits: [Float] = (0..<97).map { index in
    Float((index * 7919) % 251) / 40  // no two are equal
  }

  @Test(
    arguments: [
      (1.0, nil, nil), (0.7, nil, nil), (1.3, 5, nil), (1.0, nil, 0.9), (0.5, 20, 0.6),
      (2.0, 96, 0.999), (1.0, 1, nil), (1.0, nil, 0.0), (1.0, 1000, 1.0), (1.0, nil, 0.05),
    ] as [(Double, Int?, Double?)])
  func candidatesFollowTheWarpers(_ temperature: Double, _ topK: Int?, _ topP: Double?) throws {
    let sampling = try Sampling(temperature: temperature, topK: topK, topP: topP)
    let candidates = sampling.candidates(Self.logits)
    let expected = Self.warped(Self.logits, temperature, topK, topP)
    #expect(Set(candidates.map(\.token)) == Set(expected.keys))
    for candidate in candidates {
      #expect(abs(candidate.probability - (expected[candidate.token] ?? -1)) < 1e-12)
    }
    #expect(
      candidates.map(\.probability) == candidates.map(\.probability).sorted(by: >),
      "likeliest first")
  }

  @Test func topKKeepsTies() throws {
    let candidates = try Sampling(topK: 2).candidates([1, 3, 2, 2, 0])
    #expect(candidates.map(\.token) == [1, 2, 3])
  }

  /// Evenly spread uniform numbers must hit every token in proportion to its softmax probability.
  @Test func drawsInProportion() throws {
    let sampling = try Sampling(temperature: 0.8)
    let draws = 2000
    var counts = [Int](repeating: 0, count: Self.logits.count)
    for draw in 0..<draws {
      let token = sampling.draw(Self.logits, uniform: (Double(draw) + 0.5) / Double(draws))
      counts[Int(token)] += 1
    }
    let expected = Self.warped(Self.logits, 0.8, nil, nil)
    for (token, count) in counts.enumerated() {
      #expect(abs(Double(count) - expected[Int32(token)]! * Double(draws)) <= 1)
    }
  }

  @Test func refusesWhatTransformersRefuses() {
    for (temperature, topK, topP) in [
      (0.0, nil, nil), (-1, nil, nil), (.nan, nil, nil), (1, 0, nil), (1, nil, 1.5),
      (1, nil, -0.1),
    ] as [(Double, Int?, Double?)] {
      #expect(throws: PEFTError.self) {
        try Sampling(temperature: temperature, topK: topK, topP: topP)
      }
    }
  }

  /// Temperature, top-k, top-p in this order, as `LogitsProcessorList` applies them.
  static func warped(
    _ logits: [Float], _ temperature: Double, _ topK: Int?, _ topP: Double?
  ) -> [Int32: Double] {
    var scores = logits.map { Double($0) / temperature }
    if let topK {
      let threshold = scores.sorted(by: >)[min(topK, scores.count) - 1]
      scores = scores.map { $0 < threshold ? -.infinity : $0 }
    }
    if let topP, topP < 1 {
      let order = scores.indices.sorted { scores[$0] < scores[$1] }
      let probabilities = softmax(scores)
      var cumulative = 0.0
      for (rank, index) in order.enumerated() {
        cumulative += probabilities[index]
        if cumulative <= 1 - topP, rank < order.count - 1 { scores[index] = -.infinity }
      }
    }
    var result: [Int32: Double] = [:]
    for (token, probability) in softmax(scores).enumerated() where scores[token].isFinite {
      result[Int32(token)] = probability
    }
    return result
  }

  static func softmax(_ scores: [Double]) -> [Double] {
    let largest = scores.max()!
    let weights = scores.map { exponential($0 - largest) }
    let sum = weights.reduce(0, +)
    return weights.map { $0 / sum }
  }
}
