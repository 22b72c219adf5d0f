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

/// Conversions between LoRA, DoRA, EDoRA and LoRA-XS: the same output where the form can hold the
/// change, and the smallest possible difference where it cannot.
struct ConversionTests {
  private func output(
    _ golden: LayerGolden, _ host: any AdapterHost, _ peft: PeftModel, _ adapter: String
  ) throws -> Tensor {
    try peft.setActive([adapter])
    let input = try golden.makeInput().input
    return withoutGradients { host.run(input, golden.context(input)) }
  }

  /// R goes into A; the expected A is the transcription's.
  @Test(
    arguments: [
      ("linear", AdapterForm.dora), ("linear-bf16", .dora), ("gpt2-conv1d", .dora),
      ("trained-factors", .dora), ("xs-linear", .lora), ("xs-gpt2-conv1d", .lora),
    ])
  func foldingIsExact(_ name: String, _ form: AdapterForm) throws {
    let golden = try GoldenTests.golden(name)
    let (host, peft) = try golden.model()
    let report = try peft.convert("default", to: form, as: "folded")
    #expect(report.relativeError == 0)
    let expected = try golden.expected.tensor("output.active")
    #expect(relativeError(try output(golden, host, peft, "folded"), expected) < 1e-5)
    let tensors = try peft.tensors(of: "folded")
    #expect(tensors.count == (form == .dora ? 3 : 2))
    if golden.expected["folded.A"] != nil {
      #expect(
        relativeError(tensors[0].parameter.value, try golden.expected.tensor("folded.A")) < 1e-6)
    }
    // What is saved is a plain DoRA or LoRA adapter.
    let folder = try TemporaryFolder()
    try peft.save(folder("saved"), adapter: "folded")
    let config = try FileSystem.readJSON(folder("saved/adapter_config.json"))
    #expect(config["peft_type"] == "LORA" && config["use_dora"] == .bool(form == .dora))
    #expect(!FileSystem.exists(folder("saved/reconstr_config.json")))
    let (other, plain) = try golden.model([])
    try plain.load(folder("saved"), as: "plain")
    #expect(relativeError(try output(golden, other, plain, "plain"), expected) < 1e-5)
  }

  /// LoRA becomes DoRA with the norms as magnitude.
  @Test func loraBecomesDoRA() throws {
    let golden = try GoldenTests.golden("xs-linear")
    let (host, peft) = try golden.model()
    try peft.convert("default", to: .lora, as: "lora")
    #expect(try peft.convert("lora", to: .dora, as: "dora").relativeError == 0)
    let expected = try golden.expected.tensor("output.active")
    #expect(relativeError(try output(golden, host, peft, "dora"), expected) < 1e-5)
  }

  /// A decomposed change has full rank: with all singular values it is kept, with fewer the error is
  /// that of the best approximation, and falls with the rank.
  @Test func doraBecomesLoRAByItsSingularValues() throws {
    let golden = try GoldenTests.golden("linear")
    let (host, peft) = try golden.model()
    var errors: [Double] = []
    for rank in [1, 3, 6, 10, 11] {
      let report = try peft.convert("default", to: .lora, as: "r\(rank)", rank: rank)
      errors.append(report.relativeError)
    }
    #expect(
      Array(errors[..<4]) == errors[..<4].sorted(by: >) && errors[0] > 0.1 && errors[3] < 1e-5)
    let expected = try golden.expected.tensor("output.active")
    #expect(relativeError(try output(golden, host, peft, "r10"), expected) < 1e-5)
    // There are ten.
    #expect(errors[4] == errors[3])
    #expect(try peft.tensors(of: "r11")[0].parameter.shape[0] == 10)
  }

  /// A change within the span of the singular vectors comes back whole; the factors are found again.
  @Test func projectionFindsR() throws {
    for (name, plain, back) in [
      ("linear", AdapterForm.dora, AdapterForm.edora), ("xs-linear", .lora, .loraXS),
    ] {
      let golden = try GoldenTests.golden(name)
      let (host, peft) = try golden.model()
      try peft.convert("default", to: plain, as: "plain")
      let report = try peft.convert("plain", to: back, as: "back")
      #expect(report.relativeError < 1e-4)
      let expected = try golden.expected.tensor("output.active")
      #expect(relativeError(try output(golden, host, peft, "back"), expected) < 1e-4)
      // Half of the rank holds less of it.
      let smaller = try peft.convert("plain", to: back, as: "smaller", rank: 1)
      #expect(smaller.relativeError > 1e-2)
    }
  }

  /// A and B that the recipe makes again can be left out, whatever their signs; others cannot.
  @Test func fullFormBecomesCompact() throws {
    let golden = try GoldenTests.golden("linear")
    let (host, peft) = try golden.model()
    let expected = try golden.expected.tensor("output.active")
    let tensors = try peft.tensors(of: "default")
    // Other signs: the same adapter with R → D·R·D.
    let signs = Tensor(shape: [3], scalars: [1, -1, -1])
    tensors[0].parameter.update { $0 = $0.scalingRows(by: signs) }
    tensors[1].parameter.update { $0 = $0.scalingColumns(by: signs) }
    tensors[2].parameter.update { $0 = $0.scalingRows(by: signs).scalingColumns(by: signs) }
    #expect(relativeError(try output(golden, host, peft, "default"), expected) < 1e-5)
    try peft.convert("default", to: .edora, as: "compact", isCompact: true)
    #expect(relativeError(try output(golden, host, peft, "compact"), expected) < 1e-4)
    let folder = try TemporaryFolder()
    try peft.save(folder("compact"), adapter: "compact")
    let (other, again) = try golden.model([])
    try again.load(folder("compact"), as: "c")
    #expect(relativeError(try output(golden, other, again, "c"), expected) < 1e-4)

    tensors[0].parameter.update { $0 = $0.scaled(by: 1.1) }
    let error = #expect(throws: PEFTError.self) {
      try peft.convert("default", to: .edora, as: "no", isCompact: true)
    }
    #expect(error?.message.contains("cannot be left out") == true && error?.location == "layer")
    #expect(!peft.adapterNames.contains("no"))
  }

  /// The truncated decomposition of the whole change, into a file of plain LoRA: R is in the factors.
  @Test(arguments: [("linear", 10), ("xs-linear", 3)])
  func anyChangeBecomesLoRA(_ name: String, _ rank: Int) throws {
    let golden = try GoldenTests.golden(name)
    let (host, peft) = try golden.model()
    let conversion = try peft.convertToLoRA("default", rank: .fixed(rank))
    #expect(
      conversion.values.tensors.map(\.key) == [
        "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight",
      ])
    try peft.add("lora", conversion.values)
    let expected = try golden.expected.tensor("output.active")
    #expect(relativeError(try output(golden, host, peft, "lora"), expected) < 1e-4)
  }

  /// These methods refer to nothing but the base, so their plain form is the form that is saved, and
  /// values that are taken from one model go to another.
  @Test(arguments: EDoRAConfig.Method.allCases, [false, true])
  func plainFormIsTheSavedOne(_ method: EDoRAConfig.Method, _ isCompact: Bool) throws {
    let golden = try GoldenTests.golden("linear")
    let (host, peft) = try golden.model([])
    try peft.add(
      "a",
      EDoRAConfig(
        method, rank: 3, alpha: 6, targets: TargetSelection(.list(["layer"])), sigma: 0.3,
        isCompact: isCompact))
    let (state, plain) = (try peft.state(of: "a"), try peft.plainState(of: "a"))
    #expect(plain.names == state.names)
    for name in state.names {
      #expect(try plain.tensor(name).scalars == state.tensor(name).scalars, "\(name)")
    }
    let (other, again) = try golden.model([])
    try again.add("b", try peft.values(of: "a"))
    #expect(
      try output(golden, other, again, "b").scalars == output(golden, host, peft, "a").scalars)
  }

  /// The head goes with the adapter.
  @Test func headsAreKept() throws {
    let loaded = try ModelLoader.load(TestData.golden("bert/model"))
    let peft = PeftModel(
      loaded.model, info: BaseModelInfo(modelType: "bert", outputHeads: loaded.outputHeads),
      registry: GoldenTests.registry)
    try peft.load(TestData.golden("edora/classifier/adapter"), as: "e")
    try peft.convert("e", to: .dora, as: "d")
    let heads = try ["e", "d"].map { name in
      try peft.tensors(of: name).filter { $0.key.contains("classifier") }.map(\.parameter.value)
    }
    #expect(heads[0].count == 2 && heads[0].map(\.scalars) == heads[1].map(\.scalars))
  }

  @Test func senselessRequestsAreRefused() throws {
    let (_, peft) = try GoldenTests.golden("linear").model()
    for (form, rank, compact, text) in [
      (AdapterForm.dora, 5, false, "keeps it"), (.dora, nil, true, "no compact form"),
      (.edora, 5, false, "keeps it"),
    ] as [(AdapterForm, Int?, Bool, String)] {
      let error = #expect(throws: PEFTError.self) {
        try peft.convert("default", to: form, as: "x", rank: rank, isCompact: compact)
      }
      #expect(error?.message.contains(text) == true)
      #expect(peft.adapterNames == ["default"])
    }
  }
}
