import LayerTestSupport
import NN
import PEFTCore
import Tensors
import Testing
import TunerDoRA
import TunerLoRA

@testable import TunerEDoRA

/// Rows of a batch with adapters of their own: the same as each row alone.
struct RowsTests {
  @Test(arguments: ["linear", "linear-bf16", "gpt2-conv1d", "xs-linear"])
  func rowsUseTheirOwnAdapters(_ name: String) throws {
    let golden = try GoldenTests.golden(name)
    let (host, peft) = try golden.model()
    try peft.convert("default", to: .dora, as: "dora")
    var random = try #require(try peft.config("default") as? EDoRAConfig)
    random.sigma = 0.3
    random.method = .edora
    try peft.add("edora", random, seed: 3)
    random.method = .loraXS
    try peft.add("xs", random, seed: 4)
    let names = ["xs", "default", "__base__", "edora", "dora", "default"]
    let x = Tensor.normal(
      [names.count, host.inputFeatures], deviation: 1, key: DropoutKey(seed: 2, stream: 3))
    var context = ForwardContext(SequenceLayout(lengths: names.map { _ in 1 }))
    context.sequenceAdapters = try peft.sequenceAdapters(names)
    let mixed = withoutGradients { host.run(.features(x), context) }
    for (row, name) in names.enumerated() {
      try peft.setActive(name == "__base__" ? [] : [name])
      let alone = withoutGradients {
        host.run(
          .features(x.rowRange(row..<row + 1)), ForwardContext(SequenceLayout(lengths: [1])))
      }
      #expect(relativeError(mixed.rowRange(row..<row + 1), alone) < 1e-5, "\(name)")
    }
  }
}
