import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import NN

/// Layers, the cache and the rotary table.
struct LayerTests {
  private let context = ForwardContext(SequenceLayout(lengths: [2]))

  @Test func trainableCopiesComputeTheSameAndTrain() throws {
    let weight = Tensor(shape: [2, 3], scalars: [1, 2, 3, 4, 5, 6])
    let bias = Parameter(Tensor(shape: [2], scalars: [10, 20]), isTrainable: false)
    let layer = Linear(
      HostParameters(weight: .matrix(DenseMatrix(weight)), bias: bias), inputFeatures: 3,
      outputFeatures: 2)
    let x = Tensor(shape: [2, 3], scalars: [1, 0, 0, 0, 1, 1])
    let expected: [Float] = [11, 24, 15, 31]
    let frozen = layer(x, context)
    #expect(frozen.scalars == expected && !frozen.isTracked)
    let copy = layer.parameters.trainableCopy()
    let y = layer.base(.features(x), copy)
    #expect(y.scalars == expected)
    let gradients = y.sum().backward()
    let copiedBias = try #require(copy.bias)
    #expect(gradients[copiedBias]?.scalars == [2, 2])
    #expect(copy.info.map(\.isTrainable) == [true, true])
    copiedBias.assign(Tensor.zeros([2]))
    #expect(bias.value.scalars == [10, 20])
  }

  @Test func embeddingsOfAnyFormLookRowsUp() {
    let table = Tensor(shape: [3, 2], scalars: [1, 2, 3, 4, 5, 6])
    let frozen = Embedding(
      HostParameters(weight: .matrix(DenseMatrix(table)), bias: nil), count: 3, width: 2)
    let trainable = Embedding(frozen.parameters.trainableCopy(), count: 3, width: 2)
    #expect(frozen([2, 0], context).scalars == [5, 6, 1, 2])
    #expect(trainable([2, 0], context).scalars == [5, 6, 1, 2])
    #expect(!frozen([2], context).isTracked && trainable([2], context).isTracked)
  }

  @Test func dropoutWorksInTrainingAndDiffersBetweenPlaces() {
    let x = Tensor(repeating: 1, shape: [20, 20])
    let (a, b) = (Dropout(0.5, path: "a"), Dropout(0.5, path: "b"))
    #expect(a(x, context).scalars == x.scalars)
    #expect(a.key(context) == nil)
    var training = context
    training.dropoutSeed = 7
    #expect(training.isTraining)
    let first = a(x, training).scalars
    #expect(first != x.scalars && first == a(x, training).scalars)
    #expect(first != b(x, training).scalars)
    training.dropoutSeed = 8
    #expect(first != a(x, training).scalars)
    #expect(Dropout(0, path: "c")(x, training).scalars == x.scalars)
    #expect(Dropout(0, path: "c").key(training) == nil)
  }

  @Test func layoutsPackSequences() {
    let layout = SequenceLayout(lengths: [3, 1, 2], start: 5)
    #expect(layout.offsets == [0, 3, 4, 6])
    #expect(layout.positions == [5, 6, 7, 5, 5, 6])
    #expect(layout.count == 3 && layout.rows == 6)
    #expect(layout.range(1) == 3..<4)
    #expect(layout.firstRows == [0, 3, 4] && layout.lastRows == [2, 3, 5])
  }

  @Test func cacheReturnsAllRowsSoFar() {
    let cache = KeyValueCache(layers: 2, sequences: 2, capacity: 4)
    func rows(_ values: [Float]) -> Tensor { Tensor(shape: [values.count, 1], scalars: values) }
    for layer in 0..<2 {
      for sequence in 0..<2 {
        let base = Float(10 * layer + 100 * sequence)
        let (k, v) = cache.append(
          layer: layer, sequence: sequence, k: rows([base, base + 1]), v: rows([-base, -base - 1]))
        #expect(k.scalars == [base, base + 1] && v.scalars == [-base, -base - 1])
      }
    }
    cache.advance(by: [2, 1])
    #expect(cache.lengths == [2, 1])
    let held = cache.append(layer: 0, sequence: 0, k: rows([2]), v: rows([-2])).keys
    #expect(held.scalars == [0, 1, 2])
    // The second row of sequence 1 was not counted, so it is overwritten.
    #expect(
      cache.append(layer: 1, sequence: 1, k: rows([7, 8]), v: rows([7, 8])).keys.scalars == [
        110, 7, 8,
      ])
    cache.advance(by: [1, 2])
    #expect(
      cache.append(layer: 0, sequence: 0, k: rows([3]), v: rows([3])).keys.scalars == [0, 1, 2, 3])
    // What was given out does not change.
    #expect(held.scalars == [0, 1, 2])
  }

  /// Numbers of transformers' `LlamaRotaryEmbedding` (Tests/Goldens/rotary.json).
  @Test func rotaryTableEqualsTransformers() throws {
    let cases = try #require(try FileSystem.readJSON(TestData.golden("rotary.json")).array)
    var compared = 0
    for test in cases {
      let parameters = try #require(test["rope_parameters"])
      guard parameters["rope_type"] == "default" else { continue }
      let headDim = try #require(test["head_dim"]?.int)
      let table = RotaryTable(
        base: try #require(parameters["rope_theta"]?.double), headDim: headDim)
      let positions = try #require(test["positions"]?.array).compactMap { $0.int.map(Int32.init) }
      let values = table(positions)
      for (key, actual) in [("cosines", values.cosines), ("sines", values.sines)] {
        let expected = try #require(test[key]?.array).compactMap(\.double)
        #expect(actual.shape == [positions.count, headDim / 2])
        try #require(actual.count == expected.count)
        // A unit in the last place of a frequency moves the angle at position 4095 by 2.4e-4.
        for (row, position) in positions.enumerated() {
          let tolerance = 1e-6 + 6e-8 * Double(position)
          for column in 0..<headDim / 2 {
            let place = row * headDim / 2 + column
            #expect(abs(Double(actual.scalars[place]) - expected[place]) < tolerance)
          }
        }
      }
      compared += 1
    }
    #expect(compared == 2)
  }
}
