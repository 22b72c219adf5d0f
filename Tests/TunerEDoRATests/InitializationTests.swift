import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// LoRA's initialisations where other methods meet them. Expected outputs are those of the adapter that
/// is converted.
struct InitializationTests {
  private let host: Linear
  private let peft: PeftModel
  private let x = Tensor.normal([5, 12], deviation: 1, key: DropoutKey(seed: 4, stream: 4))

  init() {
    let weight = Tensor.normal([8, 12], deviation: 0.4, key: DropoutKey(seed: 1, stream: 1))
    host = Linear(
      HostParameters(weight: .matrix(DenseMatrix(weight)), bias: nil), inputFeatures: 12,
      outputFeatures: 8)
    peft = PeftModel(
      SingleLayer(host), info: BaseModelInfo(modelType: "toy"), registry: GoldenTests.registry)
  }

  private var output: Tensor {
    withoutGradients {
      host.run(.features(x), ForwardContext(SequenceLayout(lengths: [x.rows])))
    }
  }

  private func config(_ initialization: LoRAConfig.Initialization) -> LoRAConfig {
    LoRAConfig(
      rank: 3, alpha: 6, targets: TargetSelection(.list(["layer"])),
      initialization: initialization)
  }

  /// What is measured from initial values becomes plain factors of twice the rank.
  @Test(arguments: [LoRAConfig.Initialization.pissa, .olora, .standard])
  func convertsWithItsReference(_ initialization: LoRAConfig.Initialization) throws {
    try peft.add("source", config(initialization))
    for (place, tensor) in try peft.tensors(of: "source").enumerated() {
      let key = DropoutKey(seed: 9, stream: UInt64(place))
      let noise = Tensor.normal(tensor.parameter.shape, deviation: 0.2, key: key)
      tensor.parameter.assign(tensor.parameter.value + noise)
    }
    let expected = output
    for form in [AdapterForm.lora, .dora] {
      try peft.convert("source", to: form, as: form.rawValue)
      try peft.setActive([form.rawValue])
      #expect(relativeError(output, expected) < 1e-5, "\(form)")
    }
  }

  @Test(arguments: [
    LoRAConfig.Initialization.pissa, .randomizedPiSSA(iterations: 4), .corda(CorDASettings()),
    .loftq(LoftQSettings()),
  ])
  func doraRefusesWhatChangesTheBase(_ initialization: LoRAConfig.Initialization) throws {
    var config = self.config(initialization)
    config.usesDoRA = true
    let error = #expect(throws: PEFTError.self) { try peft.add("a", config) }
    #expect(error?.code == .unsupported)
    #expect(error?.message.contains("'init_lora_weights'") == true)
    #expect(peft.adapterNames.isEmpty)
  }
}
