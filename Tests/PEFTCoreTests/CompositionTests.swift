import NN
import PEFTSupport
import Tensors
import Testing

@testable import PEFTCore

/// Adapters whose change depends on what the base computes, beside others: W_eff = W + Σᵢ ΔWᵢ.
struct CompositionTests {
  private func fixture() throws -> Fixture {
    var registry = TunerRegistry()
    registry.register(DeltaTuner.self)
    try registry.prepend(EchoDispatcher(), to: DeltaTuner.self)
    let fixture = try Fixture(registry: registry)
    for name in ["a", "echo", "echo2"] {
      try fixture.peft.add(name, DeltaConfig(.list(["down"])), seed: 3)
    }
    return fixture
  }

  @Test func orderDoesNotMatter() throws {
    let fixture = try fixture()
    try fixture.peft.setActive(["a", "echo", "echo2"])
    let output = fixture.output()
    let scale = output.map(abs).max() ?? 1
    for names in [["echo", "a", "echo2"], ["echo2", "echo", "a"]] {
      try fixture.peft.setActive(names)
      #expect(difference(fixture.output(), output) < 1e-6 * scale)
    }
  }

  /// Merged or not, what an adapter adds goes by the untouched weight.
  @Test(arguments: [["a"], ["echo"], ["a", "echo"], ["a", "echo", "echo2"]])
  func mergingSomeChangesNothing(_ merged: [String]) throws {
    let fixture = try fixture()
    try fixture.peft.setActive(["a", "echo", "echo2"])
    let output = fixture.output()
    try fixture.peft.merge(merged)
    #expect(difference(fixture.output(), output) < 1e-5 * (output.map(abs).max() ?? 1))
  }
}

/// Handles the adapters whose name begins with "echo".
private struct EchoDispatcher: Dispatcher {
  var supports: String { "Linear (echo)" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    site.adapter.hasPrefix("echo") ? EchoLayer() : nil
  }
}

/// ΔW = W: adds the base's output once more.
private final class EchoLayer: TunerLayer {
  var parameters: [AdapterParameter] { [] }
  var needsBaseOutput: Bool { true }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard let base = call.base else { preconditionFailure("the base's output was asked for") }
    sum = sum + base
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    block = block + base.dequantized(rows: rows)
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule { base }
}
