import LayerTestSupport
import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// EDoRA and LoRA-XS; the expected numbers are those of an independent transcription of the methods
/// in double precision (Tests/Goldens/generator/edora.py), in files of the repositories' form.
struct GoldenTests {
  /// Every case of a single layer.
  static let cases = ((try? FileSystem.list(TestData.golden("edora"))) ?? [])
    .filter { $0 != "classifier" }.sorted()

  static var registry: TunerRegistry {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    registry.register(EDoRATuner.self)
    registry.register(LoRAXSTuner.self)
    return registry
  }

  static func golden(_ name: String) throws -> LayerGolden {
    try LayerGolden("edora/\(name)", registry: registry)
  }

  @Test func thereAreCases() { #expect(Self.cases.count >= 8) }

  /// The letter of a tensor in the goldens.
  static func letter(_ key: String) -> String {
    key.contains("latent") ? "R" : key.contains("magnitude") ? "m" : key.contains("_A") ? "A" : "B"
  }

  @Test(arguments: cases)
  func outputsAndMergedWeightsEqualTheFormula(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    let input = try golden.makeInput().input
    func expect(_ actual: Tensor, _ expected: String, _ limit: Float, _ what: Comment) throws {
      let error = relativeError(actual, try golden.expected.tensor(expected))
      #expect(error < limit, "\(what): \(error)")
    }
    func output() -> Tensor { withoutGradients { host.run(input, golden.context(input)) } }
    try expect(output(), "output.active", 1e-5, "active")
    try expect(output(), "output.active", 1e-5, "cached")
    peft.disable()
    try expect(output(), "output.base", 1e-5, "base")
    peft.enable()
    let before = host.parameters.storedWeight
    try peft.merge()
    if host.parameters.matrix.format == "float32" {
      try expect(output(), "output.active", 1e-5, "merged output")
      try expect(
        host.parameters.storedWeight, "merged.layer.weight", 1e-6, "merged weight")
    } else {
      let exact = try golden.expected.tensor("merged.layer.weight")
      for (value, wanted) in zip(host.parameters.storedWeight.scalars, exact.scalars) {
        #expect(abs(value - wanted) <= abs(wanted) / 256 + 1e-6)
      }
    }
    peft.unmerge()
    #expect(host.parameters.storedWeight.scalars == before.scalars)
  }

  @Test(arguments: cases)
  func gradientsEqualTorch(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    let (input, x) = try golden.makeInput()
    let output = host.run(input, golden.context(input))
    let gradients = contracted(output, try golden.input.tensor("upstream")).backward()
    let letters = Set(peft.trainableTensors.map { Self.letter($0.key) })
    let wanted = Set(
      golden.expected.names.filter { $0.hasPrefix("grad.") }.map { String($0.dropFirst(5)) })
    #expect(letters == wanted)
    for tensor in peft.trainableTensors {
      let gradient = try #require(gradients[tensor.parameter], "\(tensor.key)")
      let expected = try golden.expected.tensor("grad.\(Self.letter(tensor.key))")
      let error = relativeError(gradient, expected)
      #expect(error < 1e-4, "\(tensor.key): \(error)")
    }
    let inputID = try #require(x)
    let error = relativeError(
      try #require(gradients[inputID]), try golden.expected.tensor("grad_input.x"))
    #expect(error < 1e-4, "input: \(error)")
  }

  @Test(arguments: cases)
  func lossesEqualTorch(_ name: String) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    let input = HostInput.features(try golden.input.tensor("x"))
    let target = try golden.input.tensor("target")
    let optimizer = try AdamWSteps(golden.record["optimiser"])
    try #require(golden.losses.count == 10)
    for (step, expected) in golden.losses.enumerated() {
      let loss = meanSquare(host.run(input, golden.context(input)), target)
      #expect(abs(Double(loss.item) - expected) < 1e-4 * expected, "step \(step)")
      try optimizer.update(peft.trainableTensors, loss.backward())
    }
  }

  /// With a given draw, dropout is a change of the input of the change alone, and the formula's
  /// gradients are those of the transcription; a pass in training does that with its own draw.
  @Test func dropoutActsOnTheChangeAlone() throws {
    let golden = try Self.golden("linear-dropout")
    let (host, peft) = try golden.model()
    #expect(peft.trainableTensors.count == 2)
    try golden.expectDropoutOfChange(host, peft, probability: 0.25, name: Self.letter)
  }

  /// Derivatives by finite differences, in training with dropout: with the norm taken through all
  /// are those of the function, else R's are not. The magnitude's and the input's always are.
  @Test(arguments: ["linear-dropout", "linear", "gpt2-conv1d", "trained-factors"], [true, false])
  func derivativesAreThoseOfTheFunction(_ name: String, _ detachesNorm: Bool) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    var config = try #require(try peft.config("default") as? EDoRAConfig)
    config.lora.detachesNorm = detachesNorm
    config.lora.dropout = 0.25
    config.sigma = 0.3
    try peft.add("n", config, seed: 6)
    try peft.setActive(["n"])
    for tensor in peft.trainableTensors {
      let noise = Tensor.normal(
        tensor.parameter.shape, deviation: 0.2,
        key: DropoutKey(seed: 2, stream: siteID(tensor.key)))
      tensor.parameter.update { $0 = $0 + noise }
    }
    let x = Parameter(try golden.input.tensor("x"))
    var context = golden.context(.features(x.value))
    context.dropoutSeed = 5
    let tensors = peft.trainableTensors
    let magnitude = try #require(tensors.last { $0.key.contains("magnitude") }).parameter
    let factors = tensors.map(\.parameter).filter { $0.id != magnitude.id }
    let always = GradientCheck([magnitude, x]) { host.run(.features(x.tensor), context) }
    #expect(always.maximumError < 5e-3, "\(always)")
    let check = GradientCheck(factors) { host.run(.features(x.tensor), context) }
    #expect((check.maximumError < 5e-3) == !detachesNorm, "\(check)")
  }

  /// A new adapter's A and B are the weight's singular vectors up to sign, its magnitude the norm.
  @Test(arguments: cases, [Reconstruction.Decomposition.exact, .randomized(iterations: 10)])
  func initialFactorsAreSingularVectors(
    _ name: String, _ decomposition: Reconstruction.Decomposition
  ) throws {
    let golden = try Self.golden(name)
    let (host, peft) = try golden.model()
    var config = try #require(try peft.config("default") as? EDoRAConfig)
    config.reconstruction.decomposition = decomposition
    config.reconstruction.hasLatent = true
    try peft.add("fresh", config, seed: 3)
    let tensors = try peft.tensors(of: "fresh")
    let (a, b) = (tensors[0].parameter.value, tensors[1].parameter.value)
    let (wantedA, wantedB) = (
      try golden.expected.tensor("A"), try golden.expected.tensor("B")
    )
    let (rank, width) = (a.rows, a.columns)
    for component in 0..<rank {
      let column = (0..<b.rows).map { b.scalars[$0 * rank + component] }
      let wanted = (0..<b.rows).map { wantedB.scalars[$0 * rank + component] }
      let sign: Float = zip(column, wanted).reduce(0) { $0 + $1.0 * $1.1 } < 0 ? -1 : 1
      for (one, other) in zip(column, wanted) { #expect(abs(sign * one - other) < 1e-4) }
      let row = a.rowRange(component..<component + 1).scalars
      let wantedRow = wantedA.scalars[component * width..<(component + 1) * width]
      for (one, other) in zip(row, wantedRow) { #expect(abs(sign * one - other) < 1e-4) }
    }
    if config.method == .edora {
      let magnitude = try #require(tensors.last).parameter.value
      #expect(relativeError(magnitude, try golden.expected.tensor("magnitude")) < 1e-6)
    }
    let latent = try #require(tensors.first { $0.key.contains("latent") }).parameter.value
    #expect(latent.maximumMagnitude > 0 && latent.maximumMagnitude < 1e-4)
    // σ of R is that small: a new adapter does next to nothing.
    try peft.setActive(["fresh"])
    let input = try golden.makeInput().input
    let output = withoutGradients { host.run(input, golden.context(input)) }
    #expect(relativeError(output, try golden.expected.tensor("output.base")) < 1e-3)
  }

  /// Files in the repositories' form, read and written back the same.
  @Test(arguments: cases)
  func filesAreTheRepositorys(_ name: String) throws {
    let golden = try Self.golden(name)
    let (_, peft) = try golden.model()
    let folder = try TemporaryFolder()
    try peft.save(folder("saved"))
    let (before, after) = (
      try AdapterFolder(golden.folder("adapter")), try AdapterFolder(folder("saved"))
    )
    #expect(
      Set(after.tensors.names)
        == Set(
          before.tensors.names.map {
            $0.replacing(".default_lora_latent_mapping", with: "_lora_latent_mapping")
          }))
    for key in after.tensors.names {
      let old =
        before.tensors[key] == nil
        ? key.replacing("_lora_latent_mapping", with: ".default_lora_latent_mapping") : key
      #expect(try after.tensors.tensor(key).scalars == before.tensors.tensor(old).scalars)
    }
    for key in ["peft_type", "use_dora", "r", "lora_alpha", "target_modules", "lora_dropout"] {
      #expect(after.config[key] == before.config[key], "\(key)")
    }
    let recipe = try FileSystem.readJSON(folder("saved/reconstr_config.json"))
    #expect(recipe["reconstruction_type"] == "svd" && recipe["reconstr_mode"] == "separated")
    #expect(recipe["svd"]?["n_iter"] == 10 && recipe["svd"]?["random_state"] == 42)
    #expect(recipe["svd"]?["rank"] == after.config["r"])
    #expect(recipe["r_squared"] == .bool(name != "trained-factors"))
    // And once more, through the settings that were read.
    let (_, again) = try golden.model([])
    try again.load(folder("saved"), as: "again")
    let (one, other) = (try peft.config("default").object, try again.config("again").object)
    #expect(one == other)
  }

  /// A whole classifier: the head and every magnitude arrive, active and merged.
  @Test func classifierMergesWithItsHead() throws {
    let loaded = try ModelLoader.load(TestData.golden("bert/model"))
    let peft = PeftModel(
      loaded.model, info: BaseModelInfo(modelType: "bert", outputHeads: loaded.outputHeads),
      registry: Self.registry)
    try peft.load(TestData.golden("edora/classifier/adapter"), as: "e")
    let record = try FileSystem.readJSON(TestData.golden("edora/classifier/case.json"))
    #expect(peft.parameterCounts.trainable == record["trainable"]?.int)
    let input = try SafetensorsFile(TestData.golden("bert/input.safetensors"))
    let (shape, ids) = try input.integers("input_ids")
    let (types, mask) = (
      try input.integers("token_type_ids").values, try input.integers("attention_mask").values
    )
    var sequences: [[Int32]] = []
    var typeSequences: [[Int32]] = []
    for row in 0..<shape[0] {
      let visible = (row * shape[1]..<(row + 1) * shape[1]).filter { mask[$0] == 1 }
      sequences.append(visible.map { ids[$0] })
      typeSequences.append(visible.map { types[$0] })
    }
    let batch = TokenBatch(sequences, tokenTypeIDs: typeSequences)
    let model = try #require(loaded.model as? any SequenceClassifier)
    let expected = try SafetensorsFile(TestData.golden("edora/classifier/expected.safetensors"))
      .tensor("logits")
    func logits() -> Tensor {
      withoutGradients { model.logits(batch, ForwardContext(batch.layout)) }
    }
    #expect(relativeError(logits(), expected) < 1e-5)
    try peft.mergeAndUnload(safe: true)
    #expect(relativeError(logits(), expected) < 1e-5)
  }
}
