import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Models

struct GenerationTests {
  /// The tiny model of the goldens; its weights are random, so every token matters.
  static func tinyModel(_ name: String = "llama") throws -> any CausalLanguageModel {
    let model = try ModelLoader.load(TestData.golden("\(name)/model")).model
    return try #require(model as? any CausalLanguageModel)
  }

  /// `reference.json` holds what transformers' Llama generates greedily in float32.
  @Test func storiesEqualTransformers() throws {
    guard let folder = TestData.path("stories260k") else { return }
    let reference = try FileSystem.readJSON("\(folder)/reference.json")
    let expected = try #require(reference["greedy"]?["ids"]?.array).map { Int32($0.int!) }
    let prompt = try #require(
      reference["encode"]?.array?.first?["ids"]?.array
    ).map { Int32($0.int!) }
    #expect(Array(expected.prefix(prompt.count)) == prompt)
    let model = try #require(try ModelLoader.load(folder).model as? any CausalLanguageModel)
    let added = expected.count - prompt.count
    let generated = try model.generate([prompt], GenerationSettings(maxNewTokens: added))
    #expect(prompt + generated[0] == expected)
  }

  /// The cache must not change anything: each token is the argmax of a full pass over all before.
  @Test(arguments: ["llama", "llama-bias", "qwen2"])
  func cachedEqualsUncached(_ name: String) throws {
    let model = try Self.tinyModel(name)
    let prompts: [[Int32]] = [[3, 14, 15, 92], [65], [35, 8, 97, 93, 23, 84, 62]]
    let generated = try model.generate(prompts, GenerationSettings(maxNewTokens: 12))
    for (prompt, added) in zip(prompts, generated) {
      var sequence = prompt
      for token in added {
        let batch = TokenBatch([sequence])
        let logits = withoutGradients { model.logits(batch, ForwardContext(batch.layout)) }
        #expect(logits.argmaxOfRows.last == token)
        sequence.append(token)
      }
      #expect(added.count == 12)
    }
  }

  @Test func sequencesEndByThemselves() throws {
    let model = try Self.tinyModel()
    let prompts: [[Int32]] = [[5, 6], [7, 8, 9], [10]]
    let free = try model.generate(prompts, GenerationSettings(maxNewTokens: 8))
    // What the first sequence says third ends every sequence that says it.
    let stop = free[0][2]
    let settings = GenerationSettings(maxNewTokens: 8, stopTokens: [stop])
    let stopped = try model.generate(prompts, settings)
    for (all, cut) in zip(free, stopped) {
      let end = all.firstIndex(of: stop).map { $0 + 1 } ?? all.count
      #expect(cut == Array(all.prefix(end)))
    }
    #expect(stopped[0].last == stop)
  }

  @Test func endsAtTheModelsLength() throws {
    let model = try Self.tinyModel()
    let limit = try #require(model.inputLimits.positions)
    let prompt = (0..<limit - 3).map { Int32($0 % 90) }
    let generated = try model.generate([prompt], GenerationSettings(maxNewTokens: .max))
    #expect(generated[0].count == 3)
  }

  /// One draw for each of many equal prompts: frequencies against the softmax of the logits, by
  /// Pearson's statistic with its mean and variance for a multinomial of n draws and k classes:
  /// k − 1 and 2(k − 1) + (Σ 1/pᵢ − k² − 2k + 2)/n.
  @Test func samplesFollowTheDistribution() throws {
    let model = try Self.tinyModel()
    let prompt: [Int32] = [11, 12]
    let draws = 1000
    let batch = TokenBatch([prompt])
    let logits = withoutGradients { model.logits(batch, ForwardContext(batch.layout)) }
    let last = logits.rowRange(1..<2).scalars.map(Double.init)
    let expected = SamplingTests.softmax(last).map { $0 * Double(draws) }
    let settings = GenerationSettings(maxNewTokens: 1, sampling: try Sampling(seed: 3))
    var counts = [Double](repeating: 0, count: expected.count)
    for tokens in try model.generate(Array(repeating: prompt, count: draws), settings) {
      counts[Int(tokens[0])] += 1
    }
    let statistic = zip(counts, expected).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) / $1.1 }
    let (n, k) = (Double(draws), Double(expected.count))
    let inverses = expected.reduce(0) { $0 + n / $1 }
    let variance = 2 * (k - 1) + (inverses - k * k - 2 * k + 2) / n
    #expect(abs(statistic - (k - 1)) < 5 * variance.squareRoot(), "\(statistic)")
  }

  @Test func seedsDecide() throws {
    let model = try Self.tinyModel()
    func run(_ seed: UInt64) throws -> [[Int32]] {
      let sampling = try Sampling(temperature: 2, seed: seed)
      return try model.generate(
        [[1, 2], [1, 2]], GenerationSettings(maxNewTokens: 16, sampling: sampling))
    }
    let first = try run(1)
    #expect(first == (try run(1)))
    #expect(first != (try run(2)))
    #expect(first[0] != first[1], "equal prompts are drawn independently")
  }

  @Test func refusesBadPrompts() throws {
    let model = try Self.tinyModel()
    for (prompt, part) in [
      ([], "no tokens"), ([99], "the token 99"), ([-1], "the token -1"),
      (Array(repeating: 1, count: 65), "65 tokens"),
    ] as [([Int32], String)] {
      let error = #expect(throws: PEFTError.self) { try model.generate([prompt]) }
      #expect(error?.description.contains(part) == true, "\(String(describing: error))")
    }
  }

  /// No token is chosen from what cannot be compared, greedily or by a draw.
  @Test func brokenWeightsAreAnError() throws {
    let model = try Self.tinyModel()
    let norm = try #require(model.namedParameters().first { $0.name == "model.norm.weight" })
    let weight = try #require(norm.info.parameter)
    weight.assign(Tensor(repeating: .nan, shape: weight.shape))
    for sampling in [nil, try Sampling(topK: 3)] {
      let generation = try model.generation([[5, 6]], GenerationSettings(sampling: sampling))
      #expect(generation.next() == nil && generation.failure?.code == .numericalFailure)
      #expect(throws: PEFTError.self) {
        try model.generate([[5, 6]], GenerationSettings(sampling: sampling))
      }
    }
  }

  @Test func readsStopTokens() throws {
    let folder = TestData.golden("llama/model")
    #expect(try GenerationSettings.stopTokens(folder: folder) == [2])
    #expect(try GenerationSettings.stopTokens(folder: TestData.golden("bert/model")) == [])
  }
}
