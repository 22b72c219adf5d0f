import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import PEFTCore
@testable import TunerLoRA

/// LoftQ by its definition, and against the numbers of peft's own function (Tests/Goldens/inits/loftq).
struct LoftQTests {
  /// Rounded weights and products are peft's, which passes over the scaling, so that 1 compares.
  @Test(arguments: ["4.1", "4.3", "8.1", "8.3"])
  func valuesArePefts(_ name: String) throws {
    let json = try FileSystem.readJSON(TestData.golden("inits/loftq/case.json"))
    let golden = try #require(json["cases"]?.array?.first { $0["name"]?.string == name })
    let expected = try SafetensorsFile(TestData.golden("inits/loftq/expected.safetensors"))
    let settings = LoftQSettings(
      bits: try #require(golden["bits"]?.int), iterations: try #require(golden["iterations"]?.int))
    let factors = try InitialFactors.loftq(
      DenseMatrix(try expected.tensor("weight")), settings,
      try #require(golden["rank"]?.int), 1)
    let rounded = try #require(factors.standIn).dequantized()
    #expect(relativeError(rounded, try expected.tensor("\(name).rounded")) < 1e-6)
    let product = factors.b.multiplied(by: factors.a)
    #expect(relativeError(product, try expected.tensor("\(name).product")) < 1e-5)
  }

  private let weight = Tensor.normal([70, 96], deviation: 0.1, key: DropoutKey(seed: 2, stream: 3))

  /// The rounded weight and the factors give the weight but for what a low-rank approximation of the
  /// error leaves, and more turns leave less.
  @Test(arguments: [2, 4, 8], [0.5, 2])
  func factorsMakeUpForRounding(_ bits: Int, _ scaling: Double) throws {
    var errors: [Double] = []
    for iterations in [1, 5] {
      let factors = try InitialFactors.loftq(
        DenseMatrix(weight), LoftQSettings(bits: bits, iterations: iterations), 8, scaling)
      let rounded = try #require(factors.standIn).dequantized()
      let rest = weight + rounded.scaled(by: -1)
      let product = factors.b.multiplied(by: factors.a).scaled(by: Float(scaling))
      let left = rest + product.scaled(by: -1)
      // By Eckart and Young: the sum of the squares of all singular values but the first 8.
      let values = try rest.decomposed().s.dropFirst(8)
      let least = values.reduce(0.0) { $0 + Double($1) * Double($1) }
      #expect(abs(left.sumOfSquares - least) < 1e-4 * least)
      errors.append(left.sumOfSquares)
      if iterations == 1 {
        #expect(relativeError(rounded, LoftQQuantizer(bits: bits).rounded(weight)) == 0)
      }
    }
    if bits < 8 { #expect(errors[1] < errors[0]) }
  }

  @Test func roundedValuesAreOfTheirKind() throws {
    // A block whose largest magnitude is 2: each value is twice one of the table's.
    let block = Tensor(
      shape: [1, 64],
      scalars: (0..<64).map { $0 == 5 ? -2 : Float($0) / 40 - 0.8 })
    let four = LoftQQuantizer(bits: 4).rounded(block).scalars
    #expect(Set(four).count <= 16 && four.contains(-2) && four.contains(0))
    // QLoRA's table (arXiv 2305.14314, appendix E): 0.56261706 is its 14th value.
    #expect(
      LoftQQuantizer(bits: 4).rounded(Tensor(shape: [1, 2], scalars: [1, 0.6])).scalars[1]
        == 0.562_617)
    #expect(Set(LoftQQuantizer(bits: 2).rounded(block).scalars).count <= 4)
    // Rows are scaled each on its own.
    let rows = Tensor(shape: [2, 3], scalars: [127, 2.4, -3.6, 0.125, 0.0024, 0])
    let expected: [Float] = [127, 2, -4, 0.125, 0.25 / 127, 0]
    let eight = LoftQQuantizer(bits: 8).rounded(rows).scalars
    #expect(zip(eight, expected).allSatisfy { abs($0 - $1) < 1e-5 })
    #expect(LoftQQuantizer(bits: 8).rounded(.zeros([2, 2])).scalars == [0, 0, 0, 0])
    #expect(LoftQQuantizer(bits: 4).rounded(.zeros([2, 2])).scalars == [0, 0, 0, 0])
  }

  /// Where peft fails on this machine: linear layers work, others are refused.
  @Test func layersThatPeftTried() throws {
    let json = try FileSystem.readJSON(TestData.golden("inits/loftq/case.json"))
    let attempts = try #require(json["attempts"]?.array)
    #expect(attempts.count == 3)
    let builder = ModuleBuilder(RandomSource(seed: 7, deviation: 0.1, precision: .bfloat16))
    for attempt in attempts {
      let host: any AdapterHost
      switch try #require(attempt["layer"]?.string) {
      case "Linear": host = try builder.linear("layer", 64, 64, bias: false)
      case "Embedding": host = try builder.embedding("layer", 64, 64)
      default:
        host = try builder.convolution(
          "layer", ConvolutionSettings(4, 4, kernel: [3, 3]),
          bias: false)
      }
      let object = try #require(attempt["loftq_config"]?.object)
      let config = try LoRAConfig(
        JSONObject([
          ("peft_type", "LORA"), ("init_lora_weights", "loftq"), ("loftq_config", .object(object)),
        ]))
      let site = AdapterSite(
        host: host, path: "layer", target: "layer", adapter: "a", config: config, seed: 5,
        parameters: host.parameters)
      if host is Linear {
        let layer = try LoRALayer(site, config)
        // What stands in for the base is of its type.
        #expect(layer.standIn?.format == "bfloat16")
      } else {
        let error = #expect(throws: PEFTError.self) { try LoRALayer(site, config) }
        #expect(error?.code == .unsupported && error?.message.contains(host.typeName) == true)
      }
    }
  }
}
