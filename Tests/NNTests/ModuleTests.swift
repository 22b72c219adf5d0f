import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import NN

/// Two equal blocks, one that differs, and a tied head: what a model tree is made of.
private final class Block: Module {
  let dense: Linear
  let norm: LayerNorm
  let dropout: Dropout

  init(_ builder: ModuleBuilder, width: Int) throws {
    dense = try builder.linear("dense", 4, width, bias: true)
    norm = try builder.layerNorm("norm", width, epsilon: 1e-12)
    dropout = builder.dropout("dropout", 0.1)
  }

  var typeName: String { "Block" }
  var children: [(name: String, module: any Module)] {
    [("dense", dense), ("norm", norm), ("dropout", dropout)]
  }
}

private final class Model: Module {
  let embedding: Embedding
  let blocks: ModuleList<Block>
  let norm: RMSNorm
  let head: Linear

  init(_ builder: ModuleBuilder, widths: [Int] = [4, 4, 3]) throws {
    embedding = try builder.embedding("embed", 10, 4, paddingIndex: 0)
    blocks = ModuleList(
      try widths.enumerated().map { try Block(builder["blocks"]["\($0)"], width: $1) })
    norm = try builder.rmsNorm("norm", 4, epsilon: 1e-5, typeName: "TestRMSNorm")
    var tied = embedding.parameters
    tied.isTied = true
    head = Linear(tied, inputFeatures: 4, outputFeatures: 10)
  }

  var typeName: String { "Model" }
  var children: [(name: String, module: any Module)] {
    [
      ("embed", embedding), ("blocks", blocks), ("act", Inert("SiLU")), ("norm", norm),
      ("head", head),
    ]
  }
}

/// The module tree. The expected text is what PyTorch prints for modules of these shapes.
struct ModuleTests {
  private let model: Model

  init() throws {
    model = try Model(
      ModuleBuilder(RandomSource(seed: 1, deviation: 0.02, precision: .float32)))
  }

  @Test func printsAsPyTorchDoes() {
    #expect(
      model.printed.text == """
        Model(
          (embed): Embedding(10, 4, padding_idx=0)
          (blocks): ModuleList(
            (0-1): 2 x Block(
              (dense): Linear(in_features=4, out_features=4, bias=True)
              (norm): LayerNorm((4,), eps=1e-12, elementwise_affine=True, bias=True)
              (dropout): Dropout(p=0.1, inplace=False)
            )
            (2): Block(
              (dense): Linear(in_features=4, out_features=3, bias=True)
              (norm): LayerNorm((3,), eps=1e-12, elementwise_affine=True, bias=True)
              (dropout): Dropout(p=0.1, inplace=False)
            )
          )
          (act): SiLU()
          (norm): TestRMSNorm((4,), eps=1e-05)
          (head): Linear(in_features=4, out_features=10, bias=False)
        )
        """)
    #expect(PrintedModule("ModuleDict").text == "ModuleDict()")
  }

  @Test func pathsAreDepthFirst() {
    #expect(
      model.namedModules().prefix(7).map(\.path)
        == [
          "", "embed", "blocks", "blocks.0", "blocks.0.dense", "blocks.0.norm", "blocks.0.dropout",
        ])
    #expect(model.namedModules().count == 18)
  }

  @Test func parametersAreNamedAndCountedOnce() {
    let parameters = model.namedParameters()
    #expect(
      parameters.prefix(5).map(\.name)
        == [
          "embed.weight", "blocks.0.dense.weight", "blocks.0.dense.bias", "blocks.0.norm.weight",
          "blocks.0.norm.bias",
        ])
    #expect(parameters.last?.name == "norm.weight")
    // 40 + 2·(16 + 4 + 4 + 4) + (12 + 3 + 3 + 3) + 4; the tied head adds nothing.
    #expect(parameters.reduce(0) { $0 + $1.info.count } == 121)
    #expect(parameters.allSatisfy { !$0.info.isTrainable })
  }

  /// `repr` of Python floats.
  @Test(
    arguments: [
      (1e-12, "1e-12"), (1e-5, "1e-05"), (1.5e-6, "1.5e-06"), (0.1, "0.1"), (0, "0.0"),
      (1e16, "1e+16"), (2.5e100, "2.5e+100"),
    ] as [(Double, String)])
  func numbersPrintAsInPython(_ number: Double, _ text: String) {
    #expect(pythonNumber(number) == text)
  }

  /// 64-bit FNV-1a of the empty string and of "a", from the algorithm's published test vectors.
  @Test func siteNumbersAreStable() {
    #expect(siteID("") == 0xcbf2_9ce4_8422_2325)
    #expect(siteID("a") == 0xaf63_dc4c_8601_ec8c)
  }

  // MARK: Building

  private func source(
    _ items: [SafetensorsItem], prefix: String = "bert", random: Set<String> = [],
    precision: WeightPrecision = .float32
  ) throws -> (CheckpointSource, TemporaryFolder) {
    let folder = try TemporaryFolder()
    try SafetensorsWriter.write(items, to: folder("model.safetensors"))
    return (
      CheckpointSource(
        try ModelWeights(folder: folder.path), precision: precision, basePrefix: prefix,
        randomPrefixes: random,
        fallback: RandomSource(seed: 1, deviation: 0.02, precision: precision)), folder
    )
  }

  @Test func checkpointsAreReadWithAndWithoutThePrefixOfTheBase() throws {
    let weight = Tensor(shape: [2, 3], scalars: [1, 2, 3, 4, 5, 6])
    for (stored, asked) in [
      ("x.weight", "x.weight"), ("x.weight", "bert.x.weight"), ("bert.x.weight", "x.weight"),
    ] {
      let (source, _) = try source([SafetensorsItem(stored, weight), SafetensorsItem("y", weight)])
      #expect(source.contains(asked))
      #expect(try source.matrix(asked, rows: 2, columns: 3).dequantized().scalars == weight.scalars)
      #expect(source.unused == ["y"])
      #expect(source.initialized.isEmpty)
    }
  }

  @Test func missingAndMisshapenTensorsAreNamed() throws {
    let (source, folder) = try source([
      SafetensorsItem("x.weight", Tensor.zeros([2, 3])),
      SafetensorsItem("x.bias", Tensor.zeros([3])),
    ])
    let builder = ModuleBuilder(source)
    let shape = #expect(throws: PEFTError.self) { try builder.linear("x", 2, 3, bias: false) }
    #expect(shape?.code == .shapeMismatch)
    #expect(
      shape?.description
        == "\(folder("model.safetensors")): the tensor 'x.weight' has shape [2, 3], config.json "
        + "asks for [3, 2]. The weights and config.json belong to different models.")
    let bias = #expect(throws: PEFTError.self) { try builder.linear("x", 3, 2, bias: true) }
    #expect(bias?.message == "the tensor 'x.bias' has shape [3], config.json asks for [2]")
    let missing = #expect(throws: PEFTError.self) { try builder["a"].embedding("b", 4, 4) }
    #expect(missing?.code == .missingTensor)
    #expect(missing?.message == "the tensor 'a.b.weight' is missing")
    #expect(missing?.location == folder.path)
  }

  @Test func newHeadsAreDrawnAndNamed() throws {
    let (source, _) = try source([SafetensorsItem("x", Tensor.zeros([1]))], random: ["classifier"])
    let head = try ModuleBuilder(source).linear("classifier", 40, 30, bias: true)
    #expect(source.initialized == ["classifier.weight", "classifier.bias"])
    #expect(head.parameters.bias?.value.scalars == [Float](repeating: 0, count: 30))
    let weight = head.parameters.matrix.dequantized()
    // 1,200 normal numbers of deviation 0.02: four standard errors are 0.0016.
    #expect(abs((weight.sumOfSquares / 1200).squareRoot() - 0.02) < 0.0017)
    #expect(throws: PEFTError.self) {
      try ModuleBuilder(source).linear("classifiers", 2, 2, bias: false)
    }
  }

  @Test func halfPrecisionModelsKeepMatricesInBfloat16() throws {
    let values = Tensor(shape: [1, 3], scalars: [1, 1.0009765625, -3])
    for type in [ElementType.float32, .bfloat16, .float16] {
      let (source, _) = try source([SafetensorsItem("x", values, as: type)], precision: .bfloat16)
      let matrix = try source.matrix("x", rows: 1, columns: 3)
      #expect(matrix.format == "bfloat16")
      #expect(matrix.dequantized().scalars == [1, 1, -3])
      let (exact, _) = try self.source([SafetensorsItem("x", values, as: type)])
      #expect(try exact.matrix("x", rows: 1, columns: 3).format == "float32")
    }
  }

  @Test func randomModelsDependOnTheSeedAlone() throws {
    func weights(_ seed: UInt64) throws -> [Float] {
      let source = RandomSource(seed: seed, deviation: 1, precision: .float32)
      let model = try Model(ModuleBuilder(source), widths: [4, 4])
      return model.blocks.elements.flatMap { $0.dense.parameters.matrix.dequantized().scalars }
    }
    #expect(try weights(1) == weights(1))
    #expect(try weights(1) != weights(2))
    let both = try weights(1)
    #expect(both[..<16] != both[16...])
  }
}
