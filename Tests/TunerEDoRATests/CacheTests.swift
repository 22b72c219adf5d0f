import LayerTestSupport
import Testing

@testable import TunerEDoRA

/// What is kept of earlier passes. Expected outputs are those of a layer that is made anew from the same
/// values.
struct CacheTests {
  @Test(
    arguments: ["linear", "gpt2-conv1d", "trained-factors", "xs-linear", "xs-gpt2-conv1d"],
    LayerGolden.Change.allCases)
  func cachesFollow(_ name: String, _ change: LayerGolden.Change) throws {
    try GoldenTests.golden(name).expectOutput(toFollow: change)
  }
}
