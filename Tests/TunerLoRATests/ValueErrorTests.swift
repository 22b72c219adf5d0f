import LayerTestSupport
import NN
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import PEFTCore
@testable import TunerLoRA

/// Values that an adapter cannot take: of files, states, scalings and combinations. The model is then
/// as it was before.
struct ValueErrorTests {
  private let peft: PeftModel
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    peft = PeftModel(
      AdapterTree.ofEveryKind(), info: BaseModelInfo(modelType: "toy"),
      registry: AdapterTree.registry)
    try peft.add("first", Self.config("lin", "part.plain"), seed: 1)
    try peft.add("second", Self.config("lin", "emb"), seed: 2)
    // What was decided about an active adapter is part of the state.
    try peft.setTrainable(["first"], false)
    try peft.setTrainable(["second"], true)
  }

  private static func config(_ targets: String...) -> LoRAConfig {
    LoRAConfig(rank: 2, targets: TargetSelection(.list(targets)), initialization: .random)
  }

  private static let key = "base_model.model.lin.lora_A.weight"

  /// A state with the values of an adapter, changed.
  private func state(
    of name: String, _ change: (inout [(key: String, tensor: Tensor)]) -> Void
  ) throws -> TensorTable {
    let state = try peft.state(of: name)
    var items = try state.names.map { (key: $0, tensor: try state.tensor($0)) }
    change(&items)
    return try TensorTable(items, path: "the state")
  }

  // MARK: Files and states

  @Test func statesThatDoNotFit() throws {
    let tall = try state(of: "first") { $0[0].tensor = .zeros([3, 10]) }
    try peft.refuses(
      "'\(Self.key)' has shape [3, 10], the model needs [2, 10]", .shapeMismatch, at: "the state",
      remedy: "The adapter was made for another base model or rank."
    ) { try peft.setState(tall, of: "first") }
    try peft.refuses(
      "Adapter nobody not found.", .invalidAdapter, remedy: "There are: first, second.",
      isPefts: true
    ) {
      try peft.setState(tall, of: "nobody")
    }
    let whole = try state(of: "first") { _ in }
    try peft.merge(["first"])
    try peft.refuses(
      "the adapter 'first' is merged", .invalidState, remedy: "Unmerge it first."
    ) { try peft.setState(whole, of: "first") }
  }

  @Test func keysThatNameNoLayer() throws {
    let adapters = InjectedAdapters(in: peft.base, registry: AdapterTree.registry)
    try peft.refuses(
      "no key of the state belongs to a layer of the model", .noMatchingModule,
      remedy: "The first is 'x.lora_A.weight'."
    ) { try adapters.inject(Self.config("lin"), as: "third", stateKeys: ["x.lora_A.weight"]) }
    var config = Self.config("lin")
    config.targetParameters = ["lin.weight"]
    try peft.refuses(
      "Trying to inject a PEFT adapter from a state_dict but the PEFT config uses "
        + "`target_parameters`. This is not supported -- when using `target_parameters`, please "
        + "inject the adapter without the state_dict.", .unsupported, isPefts: true
    ) { try adapters.inject(config, as: "third", stateKeys: [Self.key]) }
  }

  /// An embedding that was saved beside the adapter has to be the model's.
  @Test func baseWeightsOfAnotherModel() throws {
    try peft.save(folder("adapter"), adapter: "second")
    let weights = folder("adapter/adapter_model.safetensors")
    let file = try SafetensorsFile(weights)
    let items = try file.names.map { SafetensorsItem($0, try file.tensor($0)) }
    let key = "base_model.model.emb.base_layer.weight"
    func load() throws { try peft.load(folder("adapter"), as: "third") }
    try SafetensorsWriter.write(items + [SafetensorsItem(key, .zeros([12, 6]))], to: weights)
    try peft.refuses(
      "'\(key)' has shape [12, 6], the base's weight has [11, 6]", .shapeMismatch, at: weights,
      remedy: "The embedding was resized in training: load the adapter on that base.", load)
    try SafetensorsWriter.write(items + [SafetensorsItem(key, .zeros([11, 6]))], to: weights)
    try peft.refuses(
      "'\(key)' holds other values than the base's weight", .unexpectedTensor, at: weights,
      remedy: "The adapter was trained on another base: load it on that one.", load)
    let parts = [
      "the adapter's tensors do not fit the model; missing: '\(Self.key)', "
        + "'base_model.model.lin.lora_B.weight', 'base_model.model.emb.lora_embedding_A' and 1 more",
      "unused: 'a', 'b', 'c' and 1 more",
    ]
    try SafetensorsWriter.write(
      ["a", "b", "c", "d"].map { SafetensorsItem($0, .zeros([1])) }, to: weights)
    try peft.refuses(
      parts.joined(separator: "; "), .missingTensor, at: weights,
      remedy: "The adapter was made for another base model or task, or the file is incomplete.",
      load)
  }

  @Test func filesOfLoralib() throws {
    let path = folder("file.safetensors")
    func load(_ tensors: [String: [Int]]) throws {
      try SafetensorsWriter.write(
        tensors.map { SafetensorsItem($0.key, .zeros($0.value)) }, to: path)
      try peft.loadLoralib(path, as: "third", config: LoRAConfig(rank: 2))
    }
    try peft.refuses(
      "has no tensor whose name ends in lora_A or lora_B", .missingTensor, at: path,
      remedy: "This is not a file of loralib."
    ) { try load(["lin.weight": [8, 10]]) }
    try peft.refuses(
      "'lin.lora_B' has shape [8, 3], the model needs [8, 2]", .shapeMismatch, at: path,
      remedy: "The adapter was made for another base model or rank."
    ) { try load(["lin.lora_A": [2, 10], "lin.lora_B": [8, 3]]) }
  }

  // MARK: Names

  @Test func namesThatCannotBeUsed() throws {
    for name in ["", "a.b", "a/b", "__base__"] {
      let calls: [() throws -> Void] = [
        { try peft.add(name, Self.config("lin")) }, { try peft.rename("first", to: name) },
        { try peft.combine(["first", "second"], weights: [1, 1], into: name) },
      ]
      for call in calls {
        try peft.refuses(
          "'\(name)' cannot be the name of an adapter", .invalidAdapter,
          remedy: "Use a name that is not empty, without '.' and '/', and not '__base__'.", call)
      }
    }
    try peft.refuses("Adapter with name 'second' already exists.", .invalidAdapter) {
      try peft.rename("first", to: "second")
    }
    try peft.refuses(
      "the adapter 'second' is named twice", .invalidAdapter, remedy: "Name every adapter once."
    ) { try peft.setActive(["second", "first", "second"]) }
    try peft.refuses(
      "You passed an invalid `selected_adapters` arguments, current supported adapter names are "
        + "['first', 'second'] - got ['first', 'nobody'].", .invalidAdapter
    ) { try peft.saveAll(folder("all"), adapters: ["first", "nobody"]) }
    try peft.setActive(["first", "second"])
    try peft.refuses(
      "several adapters are active: first, second", .invalidAdapter,
      remedy: "Name the one to save."
    ) { try peft.save(folder("one")) }
    #expect(folder.names.isEmpty)
    for name in ["first", "second"] { try peft.delete(name) }
    for call in [{ try peft.setActive(["first"]) }, { try peft.save(folder("one")) }]
      as [() throws -> Void]
    {
      let error = #expect(throws: PEFTError.self) { try call() }
      #expect(error?.remedy == "There are none.")
    }
  }

  // MARK: Scalings

  @Test func scalesThatCannotBeHad() throws {
    try peft.setScale("first", 3)
    try peft.refuses("Adapter nobody not found.", .invalidAdapter, isPefts: true) {
      try peft.setScale("nobody", 2)
    }
    try peft.refuses(
      "the scale is inf, a finite number was expected", .invalidConfiguration,
      remedy: "Give another factor."
    ) { try peft.scaleLayers(by: .infinity) }
    try peft.refuses(
      "scalings cannot be divided by 0", .invalidConfiguration,
      remedy: "Without a factor the configured scalings are restored."
    ) { try peft.unscaleLayers(by: 0) }
    try peft.merge(["second"])
    try peft.setScale("first", 2)
    try peft.refuses(
      "the adapter 'second' is merged", .invalidState, remedy: "Unmerge it first."
    ) { try peft.setScale("second", 2) }
  }

  // MARK: Combinations

  @Test func combinationsThatCannotBeMade() throws {
    func combine(
      _ names: [String] = ["first", "second"], _ weights: [Double] = [1, 1],
      _ combination: Combination = Combination(.cat)
    ) throws { try peft.combine(names, weights: weights, into: "third", combination) }
    func setting(_ change: (inout Combination) -> Void) -> Combination {
      var combination = Combination(.svd)
      change(&combination)
      return combination
    }
    try peft.refuses(
      "Adapter nobody does not exist", .invalidAdapter, remedy: "Known: first, second.",
      isPefts: true
    ) { try combine(["first", "nobody"]) }
    try peft.refuses("Adapter with name 'first' already exists.", .invalidAdapter, isPefts: true) {
      try peft.combine(["second"], weights: [1], into: "first")
    }
    for (text, remedy, names, weights, combination) in [
      (
        "2 adapters and 1 weights", "Give one weight for each adapter.", ["first", "second"], [1],
        Combination(.cat)
      ),
      (
        "the weight of 'second' is nan, a finite number was expected", nil, ["first", "second"],
        [1, .nan], Combination(.cat)
      ),
      (
        "Found no adapter matching the names in []", "Name the adapters.", [], [], Combination(.cat)
      ),
      (
        "'svd_rank' is 0, a positive number was expected", nil, ["first", "second"], [1, 1],
        setting { $0.svdRank = 0 }
      ),
      (
        "'svd_clamp' is 1.5, a quantile from 0 to 1 was expected", nil, ["first", "second"],
        [1, 1],
        setting { $0.svdClamp = 1.5 }
      ),
      (
        "'density' is missing, combination_type ties needs it",
        "Give the share of values to keep, as 0.5.", ["first", "second"], [1, 1], Combination(.ties)
      ),
      (
        "Density should be >= 0, got -1.0", nil, ["first", "second"], [1, 1],
        Combination(.ties, density: -1)
      ),
    ] as [(String, String?, [String], [Double], Combination)] {
      try peft.refuses(text, .invalidConfiguration, remedy: remedy) {
        try combine(names, weights, combination)
      }
    }
    try peft.refuses(
      "'svd_driver': \"gesvd\" is not supported: it names methods of CUDA", .unsupported,
      remedy: "Leave it out."
    ) { try combine(["first", "second"], [1, 1], setting { $0.svdDriver = "gesvd" }) }
    let kind = #expect(throws: PEFTError.self) { try Combination.Kind(name: "lineal") }
    #expect(kind?.description == "Invalid combination_type: lineal. Did you mean 'linear'?")
    let method = #expect(throws: PEFTError.self) { try Combination.MajoritySign(name: "mean") }
    #expect(
      method?.description
        == "Unimplemented mask method \"mean\". 'majority_sign_method' is total or frequency.")
  }

  @Test func valuesThatAnAdapterHasNoPlaceFor() throws {
    var values = try peft.values(of: "first")
    values.tensors.append(("base_model.model.lin.lora_C.weight", .zeros([1])))
    try peft.refuses(
      "the new adapter 'third' has no place for 'base_model.model.lin.lora_C.weight'",
      .unexpectedTensor, remedy: "The adapters were made for another base model."
    ) { try peft.add("third", values) }
    values.tensors = [values.tensors[0]]
    try peft.refuses(
      "the new adapter 'third' has no values for 'base_model.model.lin.lora_B.weight'",
      .missingTensor,
      remedy: "Its target modules match more modules than the adapters that it comes from."
    ) { try peft.add("third", values) }
  }

  @Test func changesOfDifferentModels() throws {
    func part(_ inputs: Int) throws -> CombinationPart {
      CombinationPart(
        adapter: 0, factors: try FactoredChange(a: .zeros([2, inputs]), b: .zeros([8, 2])),
        scaling: 1, weight: 1)
    }
    let shapes = #expect(throws: PEFTError.self) {
      try Combination(.cat).combine([try part(10), try part(9)], at: "lin", rank: 2)
    }
    #expect(
      shapes?.description
        == "lin: changes of shapes [8, 10] and [8, 9], or of other groups, cannot be combined. The "
        + "adapters were made for different base models.")
    #expect(shapes?.code == .shapeMismatch)
    let factors = #expect(throws: PEFTError.self) {
      try FactoredChange(a: .zeros([2, 10]), b: .zeros([8, 3]))
    }
    #expect(factors?.message == "factors of shapes [2, 10] and [8, 3] have no product")
    #expect(factors?.code == .shapeMismatch)
    for (inputs, isTransposed) in [(9, nil), (10, true)] as [(Int, Bool?)] {
      let base = #expect(throws: PEFTError.self) {
        try BaseWeights.oriented(
          .zeros([8, 10]), outputs: 8, inputs: inputs, isTransposed: isTransposed, at: "lin")
      }
      #expect(
        base?.description
          == "lin: the base's weight has shape [8, 10], the adapter changes one of [8, \(inputs)]. "
          + "The adapter was made for another base model.")
      #expect(base?.code == .shapeMismatch)
    }
    let module = #expect(throws: PEFTError.self) {
      try peft.baseWeights("lin.nothing", outputs: 8, inputs: 10, isEmbedding: false)
    }
    #expect(
      module?.description
        == "the base model has no module 'lin.nothing'. The adapter was made for another base model."
    )
    #expect(module?.code == .noMatchingModule)
  }
}
