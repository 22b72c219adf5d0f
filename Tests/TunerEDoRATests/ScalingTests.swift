import LayerTestSupport
import NN
import PEFTCore
import Tensors
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// s that is changed on a model. Expected values are the formula of the methods in double precision, or
/// those of the adapter that is converted.
struct ScalingTests {
  private static let cases = [
    "linear", "linear-nobias", "gpt2-conv1d", "trained-factors", "xs-linear", "xs-gpt2-conv1d",
  ]

  @Test(arguments: cases)
  func scalesActInsideTheDirection(_ name: String) throws {
    try GoldenTests.golden(name).expectScales()
  }

  /// A scaling that was changed goes into A or R, which have that of the config then.
  @Test(arguments: ["linear", "trained-factors", "xs-linear"])
  func conversionsTakeTheScale(_ name: String) throws {
    let golden = try GoldenTests.golden(name)
    let (host, peft) = try golden.model()
    let input = try golden.makeInput().input
    func output() -> Tensor { withoutGradients { host.run(input, golden.context(input)) } }
    try peft.setScale("default", 0.5)
    let expected = output()
    let forms: [AdapterForm] = name == "xs-linear" ? [.lora, .loraXS] : [.dora, .edora]
    for form in forms {
      #expect(try peft.convert("default", to: form, as: form.rawValue).relativeError == 0)
      try peft.setActive([form.rawValue])
      #expect(relativeError(output(), expected) < 1e-5, "\(form)")
    }
  }
}
