import NN
import PEFTSupport
import Tensors
import Testing

@testable import PEFTCore

/// The life of adapters on a model, with a tuner that is defined here. Expected outputs come from
/// the same model with the change written into its weights.
struct AdapterTests {
  @Test func adaptersAreAddedSwitchedAndDeleted() throws {
    let fixture = try Fixture()
    let peft = fixture.peft
    let base = fixture.output()
    let report = try peft.add("a", DeltaConfig(.list(["up"])), seed: 1)
    #expect(report.matched == ["mlp.up"] && report.saved.isEmpty)
    let a = fixture.output()
    try peft.add("b", DeltaConfig(.list(["up", "down"])), seed: 2)
    #expect(peft.adapterNames == ["a", "b"] && peft.activeAdapters == ["a"])
    #expect(fixture.output() == a && a != base)
    try peft.setActive(["b"])
    let b = fixture.output()
    #expect(b != a && b != base)
    try peft.setActive(["b", "a"])
    let both = fixture.output()
    try peft.setActive(["a", "b"])
    #expect(difference(fixture.output(), both) < 1e-6)
    peft.disable()
    #expect(fixture.output() == base)
    peft.enable()
    #expect(peft.withAdaptersDisabled { fixture.output() } == base)
    #expect(difference(fixture.output(), both) < 1e-6)
    try peft.delete("b")
    #expect(peft.activeAdapters == ["a"] && fixture.output() == a)
    #expect(fixture.model.down.adapters == nil)
    try peft.setActive([])
    #expect(fixture.output() == base)
    try peft.delete("a")
    #expect(peft.adapterNames.isEmpty && fixture.model.up.adapters == nil)
    #expect(fixture.output() == base)
  }

  @Test func deletingTheActiveAdapterActivatesTheNext() throws {
    let peft = try Fixture().peft
    for name in ["a", "b", "c"] { try peft.add(name, DeltaConfig(.list(["up"]))) }
    try peft.delete("b")
    #expect(peft.activeAdapters == ["a"])
    try peft.delete("a")
    #expect(peft.activeAdapters == ["c"])
    try peft.setActive([])
    try peft.add("d", DeltaConfig(.list(["up"])))
    try peft.delete("c")
    #expect(peft.activeAdapters == [])
  }

  @Test func namesAreChecked() throws {
    let peft = try Fixture().peft
    try peft.add("a", DeltaConfig(.list(["up"])))
    let taken = #expect(throws: PEFTError.self) { try peft.add("a", DeltaConfig(.list(["down"]))) }
    #expect(taken?.code == .invalidAdapter)
    #expect(taken?.message == "Adapter with name 'a' already exists.")
    for name in ["", "a.b", "a/b", "__base__"] {
      #expect(throws: PEFTError.self) { try peft.add(name, DeltaConfig(.list(["up"]))) }
    }
    let unknown = #expect(throws: PEFTError.self) { try peft.setActive(["x"]) }
    #expect(unknown?.description == "Adapter x not found. There are: a.")
    let twice = #expect(throws: PEFTError.self) { try peft.setActive(["a", "a"]) }
    #expect(twice?.message == "the adapter 'a' is named twice")
    #expect(throws: PEFTError.self) { try peft.delete("x") }
    #expect(throws: (any Error).self) { try peft.merge(["x"]) }
    #expect(throws: PEFTError.self) { try peft.config("x") }
    #expect(peft.adapterNames == ["a"] && peft.activeAdapters == ["a"])
  }

  @Test func onlyActiveAdaptersTrain() throws {
    let fixture = try Fixture()
    let peft = fixture.peft
    // The base is frozen even when its layers were made with trainable parameters.
    let loose = try TinyModel()
    loose.up.parameters = loose.up.parameters.trainableCopy()
    let wrapped = PeftModel(loose, info: BaseModelInfo(modelType: "tiny"), registry: peft.registry)
    #expect(wrapped.parameterCounts.trainable == 0)
    try peft.add("a", DeltaConfig(.list(["up"])))
    try peft.add("b", DeltaConfig(.list(["down"])))
    #expect(peft.trainableTensors.map(\.key) == ["base_model.model.mlp.up.test_delta.weight"])
    let gradients = fixture.model(Fixture.ids, fixture.context).sum().backward()
    let (a, b) = (try peft.tensors(of: "a")[0], try peft.tensors(of: "b")[0])
    #expect(gradients[a.parameter] != nil && gradients[b.parameter] == nil)
    try peft.setActive(["b"])
    #expect(!a.parameter.isTrainable && b.parameter.isTrainable)
    // 36 + 6·4 + 6 + 24 + 12 + 3 of the base, 24 each of the adapters.
    #expect(peft.parameterCounts == (trainable: 24, all: 153))
    #expect(
      peft.trainableParametersReport
        == "trainable params: 24 || all params: 153 || trainable%: 15.6863")
  }

  @Test func addingFailsWithoutATrace() throws {
    let fixture = try Fixture()
    let peft = fixture.peft
    let base = fixture.output()
    func fails(_ config: DeltaConfig, _ code: PEFTError.Code, _ text: String) {
      let error = #expect(throws: PEFTError.self) { try peft.add("a", config) }
      #expect(error?.code == code && error?.description == text)
      #expect(peft.adapterNames.isEmpty && fixture.model.up.adapters == nil)
      #expect(fixture.model.embed.adapters == nil && fixture.output() == base)
    }
    fails(
      DeltaConfig(.list(["nothing", "else"])), .noMatchingModule,
      "Target modules {'else', 'nothing'} not found in the base model. Please check the target "
        + "modules and try again.")
    // An embedding is a host that no dispatcher of this tuner knows: the first layer was made.
    fails(
      DeltaConfig(.list(["up", "embed"])), .unsupported,
      "embed: Target module Embedding(9, 4) is not supported. Currently, only the following modules are "
        + "supported: Linear (default).")
    fails(
      DeltaConfig(.list(["mlp"])), .unsupported,
      """
      mlp: Target module MLP(
        (up): Linear(in_features=4, out_features=6, bias=True)
        (act): SiLU()
        (down): Linear(in_features=6, out_features=4, bias=False)
      ) is not supported. Only layers with weights can be adapted. Name the layers inside of it \
      instead.
      """)
    fails(
      DeltaConfig(.list(["up"]), gain: -1), .invalidConfiguration,
      "'gain' is -1.0, it was to be positive")
    fails(
      DeltaConfig(.allLinear, layers: [0]), .invalidConfiguration,
      "`layers_to_transform` cannot be used when `target_modules` is a str.")
    fails(
      DeltaConfig(.list(["up"]), modulesToSave: ["head"]), .noMatchingModule,
      "'modules_to_save': no module of the base model is named 'head'. Please check the names and "
        + "try again.")
    fails(
      DeltaConfig(.list(["up"]), taskType: "POETRY"), .invalidConfiguration,
      "invalid task type: 'POETRY'. It must be one of CAUSAL_LM, FEATURE_EXTRACTION, QUESTION_ANS, "
        + "SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS.")
  }

  @Test func defaultTargetsAreTheTuners() throws {
    let peft = try Fixture().peft
    #expect(try peft.add("a", DeltaConfig(nil)).matched == ["mlp.up"])
    #expect(try peft.add("b", DeltaConfig(.allLinear)).matched == ["mlp.up", "mlp.down"])
    #expect(try peft.config("a").targets.modules == .list(["up"]))
    #expect(try peft.config("a").baseModel == "tiny/model")
    let other = PeftModel(
      try TinyModel(), info: BaseModelInfo(modelType: "other"), registry: peft.registry)
    let error = #expect(throws: PEFTError.self) { try other.add("a", DeltaConfig(nil)) }
    #expect(
      error?.message == "Please specify `target_modules` or `target_parameters`in `peft_config`")
    #expect(error?.remedy == "There is no default for the model type 'other'.")
  }

  // MARK: Modules trained in full

  @Test func savedModulesAreCopiedAndTrained() throws {
    let fixture = try Fixture()
    let peft = fixture.peft
    let base = fixture.output()
    let report = try peft.add("a", DeltaConfig(.list(["up"]), taskType: "SEQ_CLS"))
    #expect(report.saved == ["classifier"])
    #expect(
      peft.trainableTensors.map(\.key)
        == [
          "base_model.model.mlp.up.test_delta.weight", "base_model.model.classifier.weight",
          "base_model.model.classifier.bias",
        ])
    let bias = try #require(peft.trainableTensors.last).parameter
    bias.assign(Tensor(shape: [3], scalars: [100, 200, 300]))
    #expect(fixture.output()[0] > 50)
    #expect(peft.withAdaptersDisabled { fixture.output() } == base)
    try peft.add("b", DeltaConfig(.list(["up"]), taskType: "SEQ_CLS"))
    let error = #expect(throws: PEFTError.self) { try peft.setActive(["a", "b"]) }
    #expect(error?.remedy?.contains("'classifier'") == true)
    #expect(
      error?.message.hasPrefix("Only one adapter can be set at a time for ModulesToSaveWrapper(")
        == true)
    #expect(peft.activeAdapters == ["a"])
    try peft.setActive(["b"])
    #expect(fixture.output()[0] < 50)
    try peft.setActive(["a"])
    // Unloading keeps the trained module, as peft does.
    peft.unload()
    #expect(fixture.model.classifier.parameters.bias?.value.scalars == [100, 200, 300])
    #expect(fixture.model.classifier.adapters == nil && peft.adapterNames.isEmpty)
    #expect(peft.parameterCounts.trainable == 0)
  }

  // MARK: Mixed batches

  @Test func mixedBatchesEqualSeparateRuns() throws {
    let fixture = try Fixture()
    let peft = fixture.peft
    try peft.add("a", DeltaConfig(.list(["up"]), taskType: "SEQ_CLS"), seed: 1)
    try peft.add("b", DeltaConfig(.list(["up", "down"])), seed: 2)
    try #require(peft.trainableTensors.last).parameter.assign(
      Tensor(shape: [3], scalars: [1, 2, 3]))
    func rows(_ adapters: [String]) throws -> [[Float]] {
      try peft.setActive(adapters)
      let all = fixture.output()
      return (0..<6).map { Array(all[$0 * 3..<$0 * 3 + 3]) }
    }
    let (a, b, none) = (try rows(["a"]), try rows(["b"]), try rows([]))
    let expected = [a[0], a[1], a[2], none[3], b[4], b[5]].flatMap { $0 }
    try peft.setActive(["b"])
    #expect(difference(try fixture.output(["a", "__base__", "b"]), expected) < 1e-6)
    // What is merged belongs to no one's share.
    try peft.merge()
    #expect(difference(try fixture.output(["a", "__base__", "b"]), expected) < 1e-6)
    peft.disable()
    #expect(difference(try fixture.output(["a", "a", "a"]), none.flatMap { $0 }) < 1e-6)
  }

  @Test func mixedBatchesTrainEachSequencesAdapter() throws {
    let fixture = try Fixture()
    let peft = fixture.peft
    try peft.add("a", DeltaConfig(.list(["up"])), seed: 1)
    try peft.add("b", DeltaConfig(.list(["up", "down"])), seed: 2)
    try peft.setActive(["a", "b"])
    let parameters = try (peft.tensors(of: "a") + peft.tensors(of: "b")).map(\.parameter)
    var context = fixture.context
    context.sequenceAdapters = try peft.sequenceAdapters(["b", "a", "__base__"])
    let check = GradientCheck(parameters) { fixture.model(Fixture.ids, context) }
    #expect(check.maximumError < 5e-3)
  }

  // MARK: Printing

  @Test func printsTheWrappersOfPeft() throws {
    let peft = try Fixture().peft
    #expect(peft.printed.typeName == "TinyModel")
    try peft.add("a", DeltaConfig(.list(["up"]), taskType: "SEQ_CLS"))
    try peft.add("b", DeltaConfig(.list(["up"])))
    #expect(
      peft.printed.text == """
        PeftModelForSequenceClassification(
          (base_model): DeltaModel(
            (model): TinyModel(
              (embed): Embedding(9, 4)
              (mlp): MLP(
                (up): delta.Linear(
                  (base_layer): Linear(in_features=4, out_features=6, bias=True)
                  (a): Delta()
                  (b): Delta()
                )
                (act): SiLU()
                (down): Linear(in_features=6, out_features=4, bias=False)
              )
              (classifier): ModulesToSaveWrapper(
                (original_module): Linear(in_features=4, out_features=3, bias=True)
                (modules_to_save): ModuleDict(
                  (a): Linear(in_features=4, out_features=3, bias=True)
                )
              )
            )
          )
        )
        """)
  }
}
