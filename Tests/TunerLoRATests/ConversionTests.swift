import BLASKernels
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Adapters whose changes are measured from initial values: saved, read again, converted to plain
/// LoRA; against peft (Tests/Goldens/inits/…/{initial,trained,converted}, conversion.safetensors).
struct ConversionTests {
  static let found = [
    "pissa-tall", "pissa-wide", "pissa-rslora", "pissa-gpt2", "olora-tall", "olora-wide",
    "olora-rslora", "corda-ipm", "corda-kpm", "corda-ipm-gpt2", "corda-kpm-gpt2",
  ]
  static let cases = found + InitializationTests.ofGradients

  private func model(_ toy: ToyLayer) -> PeftModel {
    PeftModel(toy, info: BaseModelInfo(modelType: "toy"), registry: InitGolden.registry)
  }

  @Test(arguments: cases)
  func trainedAdaptersComputeAsInPeft(_ name: String) throws {
    let golden = try InitGolden(name)
    let numbers = try SafetensorsFile("\(golden.folder)/conversion.safetensors")
    let x = try golden.input.tensor("x")
    let trained = try numbers.tensor("output.trained")
    let toy = try golden.makeToy()
    let before = withoutGradients { toy(x).scalars }
    let peft = model(toy)

    // The trained adapter on the pristine base, with the initial one beside it.
    try peft.load("\(golden.folder)/trained", as: "a", initial: "\(golden.folder)/initial")
    #expect(relativeError(withoutGradients { toy(x) }, trained) < 1e-5)
    // What peft makes of the two, and what is made of them here, with and without a model.
    try peft.load("\(golden.folder)/converted", as: "b")
    try peft.setActive(["b"])
    #expect(relativeError(withoutGradients { toy(x) }, trained) < 1e-5)
    let converted = try SafetensorsFile("\(golden.folder)/converted/adapter_model.safetensors")
    let files = try LoRAConfig.converted(
      initial: AdapterFolder("\(golden.folder)/initial"),
      trained: AdapterFolder("\(golden.folder)/trained"))
    let folder = try TemporaryFolder()
    try peft.save(folder("plain"), adapter: "a", form: .plain)
    let saved = try AdapterFolder(folder("plain"))
    #expect(saved.tensors.names.sorted() == converted.names.sorted())
    for key in converted.names {
      let expected = try converted.tensor(key).scalars
      #expect(try saved.tensors.tensor(key).scalars == expected)
      let item = try #require(files.tensors.first { $0.key == key })
      #expect(item.value.scalars == expected)
    }
    for config in [try LoRAConfig(saved.config), files.config] {
      #expect(config.initialization == .standard)
      let rank = try #require(golden.json["config"]?["r"]?.int)
      #expect(config.rank == 2 * rank)
      let scaling = try config.scaling("layer", rank: config.rank)
      #expect(abs(scaling - golden.json["converted_scaling"]!.double!) < 1e-12)
    }

    // The trained form with the initial values beside it comes back as it was.
    try peft.save(folder("trained"), adapter: "a", form: .trained)
    try peft.load(folder("trained"), as: "c")
    try peft.setActive(["c"])
    #expect(relativeError(withoutGradients { toy(x) }, trained) < 1e-5)
    try peft.merge()
    #expect(relativeError(withoutGradients { toy(x) }, trained) < 1e-5)
    // Both forms merge into peft's weight.
    var weight = try numbers.tensor("weight.merged")
    if toy.layer.parameters.form == .transposed { weight = weight.transposed() }
    #expect(relativeError(toy.layer.parameters.matrix.dequantized(), weight) < 1e-6)
    peft.unmerge()
    try peft.setActive(["b"])
    try peft.merge()
    #expect(relativeError(toy.layer.parameters.matrix.dequantized(), weight) < 1e-6)
    peft.unload()
    #expect(withoutGradients { toy(x).scalars } == before)
  }

  /// Ten steps of AdamW from peft's initial adapter, with peft's losses.
  @Test(arguments: cases)
  func lossesEqualPeft(_ name: String) throws {
    let golden = try InitGolden(name)
    let toy = try golden.makeToy()
    let peft = model(toy)
    try peft.load("\(golden.folder)/trained", as: "a", initial: "\(golden.folder)/initial")
    try peft.loadTensors(AdapterFolder("\(golden.folder)/initial").tensors, into: "a")
    try expectLosses(golden, toy, peft)
  }

  /// The same from the initial values that are found here. Signs do not matter to the losses where A
  /// and B take the same singular vectors.
  @Test(arguments: found)
  func lossesFromOwnValuesEqualPeft(_ name: String) throws {
    let golden = try InitGolden(name)
    let toy = try golden.makeToy()
    try expectLosses(golden, toy, golden.adapted(toy))
  }

  private func expectLosses(_ golden: InitGolden, _ toy: ToyLayer, _ peft: PeftModel) throws {
    let losses = try #require(golden.json["losses"]?.array).compactMap(\.double)
    try #require(losses.count == 10)
    let (x, target) = (try golden.input.tensor("x"), try golden.input.tensor("target"))
    let parameters = peft.trainableTensors.map(\.parameter)
    var firsts = parameters.map { Tensor.zeros($0.shape) }
    var seconds = firsts
    for step in 0..<10 {
      let difference = toy(x) + target.scaled(by: -1)
      let loss = (difference * difference).sum().scaled(by: 1 / Float(difference.count))
      #expect(abs(Double(loss.item) - losses[step]) < 1e-4 * losses[step], "step \(step)")
      let gradients = loss.backward()
      for (place, parameter) in parameters.enumerated() {
        let gradient = try #require(gradients[parameter])
        parameter.update { value in
          value.withMutableSlice { value in
            firsts[place].withMutableSlice { first in
              seconds[place].withMutableSlice { second in
                Optimizers.adamW(
                  parameter: value, gradient: gradient.slice, firstMoment: first,
                  secondMoment: second, step: step + 1, learningRate: 0.01, weightDecay: 0.01)
              }
            }
          }
        }
      }
    }
  }

  /// PiSSA and OLoRA find their initial values again in the base weight; signs may differ from those of
  /// another library, the product does not.
  @Test(arguments: found.filter { !$0.hasPrefix("corda") })
  func initialValuesAreFoundAgain(_ name: String) throws {
    let golden = try InitGolden(name)
    let numbers = try SafetensorsFile("\(golden.folder)/conversion.safetensors")
    let toy = try golden.makeToy()
    try model(toy).load("\(golden.folder)/trained")
    let output = withoutGradients { toy((try? golden.input.tensor("x"))!) }
    #expect(relativeError(output, try numbers.tensor("output.trained")) < 1e-5)
  }

  /// A rank that a weight does not have (case 9b): the plain form has zeros for the rest, so that its
  /// shapes are those of its settings.
  @Test(arguments: [LoRAConfig.Initialization.pissa, .olora])
  func ranksAboveTheWeights(_ initialization: LoRAConfig.Initialization) throws {
    let golden = try InitGolden("pissa-wide")
    let toy = try golden.makeToy()
    let x = try golden.input.tensor("x")
    let peft = model(toy)
    let most = min(toy.layer.inputFeatures, toy.layer.outputFeatures)
    let config = LoRAConfig(
      rank: most + 3, targets: TargetSelection(.list(["layer"])), initialization: initialization)
    try peft.add("large", config)
    let folder = try TemporaryFolder()
    try peft.save(folder("initial"), form: .trained)
    let b = peft.lora("layer", "large").b
    b.assign(b.value.scaled(by: 1.5))
    let output = withoutGradients { toy(x) }
    try peft.save(folder("trained"), form: .trained)
    try peft.save(folder("plain"), form: .plain)
    let files = try LoRAConfig.converted(
      initial: AdapterFolder(folder("initial")), trained: AdapterFolder(folder("trained")))
    try peft.add(
      "files", AdapterValues(name: "files", config: files.config.object, tensors: files.tensors))
    for name in ["trained", "plain"] { try peft.load(folder(name), as: name) }
    for name in ["trained", "plain", "files"] {
      try peft.setActive([name])
      #expect(peft.lora("layer", name).a.shape[0] == (name == "trained" ? most : 2 * (most + 3)))
      #expect(relativeError(withoutGradients { toy(x) }, output) < 1e-5, "\(name)")
    }
  }

  @Test(arguments: ["corda-ipm", "lora-ga-ArB2r-stable"])
  func initialValuesFromDataAreMissed(_ name: String) throws {
    let golden = try InitGolden(name)
    let peft = model(try golden.makeToy())
    let error = #expect(throws: PEFTError.self) { try peft.load("\(golden.folder)/trained") }
    #expect(error?.code == .missingTensor && error?.message.contains("initial values") == true)
    #expect(peft.adapterNames.isEmpty)
  }

  /// What peft refuses: rank-stabilised scaling with patterns, heads, and two of them at once.
  @Test func severalAdaptersOverOneBase() throws {
    let golden = try InitGolden("pissa-wide")
    let toy = try golden.makeToy()
    let x = try golden.input.tensor("x")
    let base = withoutGradients { toy(x) }
    let peft = model(toy)
    var pissa = LoRAConfig(
      rank: 3, alpha: 5, targets: TargetSelection(.list(["layer"])),
      rankPattern: SuffixPatterns([.init("layer", 4)]),
      alphaPattern: SuffixPatterns([.init("layer", 7)]), usesRSLoRA: true,
      initialization: .pissa)
    pissa.unknownKeys = JSONObject([("note", "kept")])
    try peft.add("pissa", pissa)
    try peft.add(
      "olora",
      LoRAConfig(
        rank: 2, targets: TargetSelection(.list(["layer"])), initialization: .olora))
    try peft.add(
      "loftq",
      LoRAConfig(
        rank: 2, targets: TargetSelection(.list(["layer"])),
        initialization: .loftq(LoftQSettings(bits: 2, iterations: 3))))
    for (index, name) in ["pissa", "olora", "loftq"].enumerated() {
      for (place, parameter) in peft.lora("layer", name).parameters.enumerated() {
        let key = DropoutKey(seed: 9, stream: UInt64(10 * index + place))
        let noise = Tensor.normal(parameter.parameter.shape, deviation: 0.1, key: key)
        parameter.parameter.assign(parameter.parameter.value + noise)
      }
    }
    func output(_ names: [String]) throws -> Tensor {
      try peft.setActive(names)
      return withoutGradients { toy(x) }
    }
    // Each changes the base by itself, and the changes add up in any order, merged or not.
    var changes: [String: Tensor] = [:]
    for name in peft.adapterNames {
      changes[name] = try output([name]) + base.scaled(by: -1)
      #expect(changes[name]!.maximumMagnitude > 1e-3)
    }
    for names in [["pissa", "olora"], ["loftq", "pissa", "olora"], ["olora", "loftq"]] {
      let expected = names.reduce(base) { $0 + changes[$1]! }
      #expect(relativeError(try output(names), expected) < 1e-5, "\(names)")
      try peft.merge([names[0]])
      #expect(relativeError(withoutGradients { toy(x) }, expected) < 1e-5, "\(names[0]) merged")
      try peft.merge()
      #expect(relativeError(withoutGradients { toy(x) }, expected) < 1e-5, "\(names) merged")
      peft.unmerge()
    }
    // In a mixed batch each row has its own.
    var context = ForwardContext(SequenceLayout(lengths: [1, 1, 1]))
    context.sequenceAdapters = try peft.sequenceAdapters(["loftq", "__base__", "pissa"])
    let mixed = withoutGradients { (toy.layer as! Linear)(x, context) }
    let wanted = Tensor.stackingRows([
      (base + changes["loftq"]!).rowRange(0..<1), base.rowRange(1..<2),
      (base + changes["pissa"]!).rowRange(2..<3),
    ])
    #expect(relativeError(mixed, wanted) < 1e-5)

    // Plain, with patterns doubled and alphas grown by √2.
    let folder = try TemporaryFolder()
    try peft.save(folder("plain"), adapter: "pissa", form: .plain)
    try peft.load(folder("plain"), as: "plain")
    #expect(relativeError(try output(["plain"]), base + changes["pissa"]!) < 1e-5)
    let config = try #require(peft.config("plain") as? LoRAConfig)
    #expect(config.rankPattern.entries.map(\.value) == [8] && config.rank == 6)
    #expect(config.unknownKeys["note"] == "kept")
    let error = #expect(throws: PEFTError.self) {
      try peft.save(folder("loftq"), adapter: "loftq", form: .plain)
    }
    #expect(error?.location == "layer" && !FileSystem.exists(folder("loftq")))
    try peft.save(folder("loftq"), adapter: "loftq")
    try peft.load(folder("loftq"), as: "again")
    #expect(relativeError(try output(["again"]), base + changes["loftq"]!) < 1e-5)
    for name in peft.adapterNames { try peft.delete(name) }
    #expect(withoutGradients { toy(x).scalars } == base.scalars)
  }

  /// A randomised decomposition is not repeated by peft, so the adapter is saved plain; here its trained
  /// form finds its values even without those beside it.
  @Test func randomizedPiSSAIsSavedPlain() throws {
    let golden = try InitGolden("pissa-niter")
    let toy = try golden.makeToy()
    let x = try golden.input.tensor("x")
    let peft = try golden.adapted(toy)
    let b = peft.lora("layer").b
    b.assign(b.value.scaled(by: 1.5))
    let output = withoutGradients { toy(x) }
    let folder = try TemporaryFolder()
    try peft.save(folder("plain"))
    #expect(try LoRAConfig(AdapterFolder(folder("plain")).config).initialization == .standard)
    #expect(try !FileSystem.list(folder("plain")).contains(AdapterFolder.referencesName))
    try peft.save(folder("trained"), form: .trained)
    for name in ["plain", "trained"] {
      if name == "trained" {
        FileSystem.removeTree(FileSystem.join(folder("trained"), AdapterFolder.referencesName))
      }
      try peft.load(folder(name), as: name)
      try peft.setActive([name])
      #expect(relativeError(withoutGradients { toy(x) }, output) < 1e-5, "\(name)")
    }
  }

  @Test func heads() throws {
    let golden = try GoldenCase("bert")
    let peft = try golden.loadModel()
    try peft.add(
      "a",
      LoRAConfig(
        rank: 4, targets: TargetSelection(.list(["query", "dense"])),
        taskType: .sequenceClassification, initialization: .pissa))
    for tensor in peft.trainableTensors {
      tensor.parameter.update { value in
        value.withMutableSlice { $0[0] += 0.1 }
      }
    }
    let batch = try golden.batch(golden.input)
    let trained = withoutGradients { golden.output(peft, batch) }
    let folder = try TemporaryFolder()
    try peft.save(folder("plain"), form: .plain)
    let other = try golden.loadModel()
    let report = try other.load(folder("plain"), as: "b")
    #expect(report.missing.isEmpty && report.unexpected.isEmpty)
    #expect(report.matched.contains { $0.contains("classifier") })
    #expect(relativeError(withoutGradients { golden.output(other, batch) }, trained) < 1e-5)
  }
}
