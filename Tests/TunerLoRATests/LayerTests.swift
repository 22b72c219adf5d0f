import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// LoRA on single layers against W + s·B·A, and on the tiny models.
struct LayerTests {
  private final class Pair: Module {
    let embed: Embedding
    let dense: Linear

    init() throws {
      let builder = ModuleBuilder(RandomSource(seed: 2, deviation: 0.5, precision: .float32))
      embed = try builder.embedding("embed", 11, 6)
      dense = try builder.linear("dense", 6, 5, bias: true)
    }

    var typeName: String { "Pair" }
    var children: [(name: String, module: any Module)] { [("embed", embed), ("dense", dense)] }
  }

  private static var registry: TunerRegistry {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return registry
  }

  private func make(_ config: LoRAConfig) throws -> (Pair, PeftModel) {
    let pair = try Pair()
    let peft = PeftModel(pair, info: BaseModelInfo(modelType: "pair"), registry: Self.registry)
    try peft.add("a", config, seed: 5)
    return (pair, peft)
  }

  /// A tensor's rows in double precision.
  private func rows(_ x: Tensor) -> [[Double]] {
    (0..<x.rows).map { x.rowRange($0..<$0 + 1).scalars.map(Double.init) }
  }

  @Test func linearFollowsItsFormula() throws {
    let config = LoRAConfig(
      rank: 3, alpha: 5, targets: TargetSelection(.list(["dense"])), initialization: .random)
    let (pair, peft) = try make(config)
    let parameters = peft.trainableTensors.map(\.parameter)
    #expect(
      peft.trainableTensors.map(\.key)
        == ["base_model.model.dense.lora_A.weight", "base_model.model.dense.lora_B.weight"])
    let (a, b) = (rows(parameters[0].value), rows(parameters[1].value))
    let x = Tensor.normal([4, 6], deviation: 1, key: DropoutKey(seed: 1, stream: 1))
    let context = ForwardContext(SequenceLayout(lengths: [4]))
    let actual = withoutGradients { pair.dense(x, context) }
    let base = rows(withoutGradients { pair.dense.base(.features(x), pair.dense.parameters) })
    for (i, row) in rows(x).enumerated() {
      let low = a.map { zip($0, row).reduce(0) { $0 + $1.0 * $1.1 } }
      for j in 0..<5 {
        let expected = base[i][j] + 5 / 3 * zip(b[j], low).reduce(0) { $0 + $1.0 * $1.1 }
        #expect(abs(Double(actual.scalars[i * 5 + j]) - expected) < 1e-5)
      }
    }
    #expect(GradientCheck(parameters) { pair.dense(x, context) }.maximumError < 5e-3)
    try peft.merge()
    let merged = withoutGradients { pair.dense(x, context) }
    #expect(relativeError(merged, actual) < 1e-6)
  }

  /// Row of the table plus s·B·A[:, id].
  @Test func embeddingFollowsItsFormula() throws {
    let config = LoRAConfig(
      rank: 2, alpha: 3, targets: TargetSelection(.list(["embed"])), initialization: .random)
    let (pair, peft) = try make(config)
    #expect(
      peft.trainableTensors.map(\.key)
        == ["base_model.model.embed.lora_embedding_A", "base_model.model.embed.lora_embedding_B"])
    let parameters = peft.trainableTensors.map(\.parameter)
    #expect(parameters[0].shape == [2, 11] && parameters[1].shape == [6, 2])
    let (a, b) = (rows(parameters[0].value), rows(parameters[1].value))
    let table = rows(pair.embed.parameters.matrix.dequantized())
    let ids: [Int32] = [10, 0, 3, 10]
    let context = ForwardContext(SequenceLayout(lengths: [4]))
    let actual = withoutGradients { pair.embed(ids, context) }
    for (i, id) in ids.enumerated() {
      for j in 0..<6 {
        let delta = (0..<2).reduce(0.0) { $0 + b[j][$1] * a[$1][Int(id)] }
        let expected = table[Int(id)][j] + 1.5 * delta
        #expect(abs(Double(actual.scalars[i * 6 + j]) - expected) < 1e-5)
      }
    }
    #expect(GradientCheck(parameters) { pair.embed(ids, context) }.maximumError < 5e-3)
    try peft.merge()
    #expect(relativeError(withoutGradients { pair.embed(ids, context) }, actual) < 1e-6)
    #expect(
      peft.printed.text.contains(
        "(lora_embedding_A): ParameterDict(  (a): Parameter containing: "
          + "[torch.FloatTensor of size 2x11])"))
  }

  /// Dropout acts on the input of A alone, and only in training.
  @Test func dropoutActsOnTheAdapterAlone() throws {
    let (pair, _) = try make(
      LoRAConfig(
        rank: 3, alpha: 3, dropout: 0.5, targets: TargetSelection(.list(["dense"])),
        initialization: .random))
    let x = Tensor.normal([8, 6], deviation: 1, key: DropoutKey(seed: 1, stream: 1))
    var context = ForwardContext(SequenceLayout(lengths: [8]))
    let plain = withoutGradients { pair.dense(x, context).scalars }
    context.dropoutSeed = 3
    let dropped = withoutGradients { pair.dense(x, context).scalars }
    #expect(plain != dropped)
    #expect(dropped == withoutGradients { pair.dense(x, context).scalars })
    let (undropped, _) = try make(
      LoRAConfig(rank: 3, alpha: 3, dropout: 0.5, targets: TargetSelection(.list(["dense"]))))
    // B begins as zero: whatever is dropped, the base's output stays.
    let base = withoutGradients {
      undropped.dense.base(.features(x), undropped.dense.parameters).scalars
    }
    #expect(withoutGradients { undropped.dense(x, context).scalars } == base)
  }

  @Test func initializationsAreOfTheirSize() throws {
    for (initialization, factor) in [
      (LoRAConfig.Initialization.standard, "A"), (.gaussian, "A"), (.random, "AB"),
    ] {
      let (_, peft) = try make(
        LoRAConfig(
          rank: 4, targets: TargetSelection(.list(["dense"])), initialization: initialization))
      let (a, b) = (
        peft.trainableTensors[0].parameter.value, peft.trainableTensors[1].parameter.value
      )
      #expect(a.maximumMagnitude > 0)
      #expect((b.maximumMagnitude > 0) == (factor == "AB"))
      if initialization != .gaussian { #expect(a.maximumMagnitude <= 1 / Float(6).squareRoot()) }
    }
    let (_, same) = try make(LoRAConfig(targets: TargetSelection(.list(["dense"]))))
    let (_, again) = try make(LoRAConfig(targets: TargetSelection(.list(["dense"]))))
    #expect(
      same.trainableTensors[0].parameter.value.scalars
        == again.trainableTensors[0].parameter.value.scalars)
  }

  @Test func settingsMadeInCodeAreChecked() throws {
    let peft = PeftModel(
      try Pair(), info: BaseModelInfo(modelType: "pair"), registry: Self.registry)
    for (config, text) in [
      (LoRAConfig(rank: 0, targets: TargetSelection(.list(["dense"]))), "`r` should be a positive"),
      (
        LoRAConfig(dropout: 1, targets: TargetSelection(.list(["dense"]))),
        "'lora_dropout' is 1.0"
      ),
      (
        LoRAConfig(
          targets: TargetSelection(.list(["dense"])),
          rankPattern: SuffixPatterns([.init("dense", -1)])),
        "`r` should be a positive"
      ),
      (
        LoRAConfig(
          targets: TargetSelection(.list(["dense"])), rankPattern: SuffixPatterns([.init("(", 1)])),
        "'rank_pattern': '"
      ),
    ] {
      let error = #expect(throws: PEFTError.self) { try peft.add("a", config) }
      #expect(error?.code == .invalidConfiguration && error?.message.hasPrefix(text) == true)
      #expect(peft.adapterNames.isEmpty)
    }
  }
}
