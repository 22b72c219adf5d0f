import LayerTestSupport
import Testing

@testable import TunerDoRA

/// What is kept of earlier passes. Expected outputs are those of a layer that is made anew from the same
/// values.
struct CacheTests {
  @Test(
    arguments: ["linear", "gpt2-conv1d", "embedding", "conv2d-3x3", "conv2d-groups"],
    LayerGolden.Change.allCases)
  func cachesFollow(_ name: String, _ change: LayerGolden.Change) throws {
    // A convolution with groups cannot be merged.
    if change == .merging, name == "conv2d-groups" { return }
    try GoldenTests.golden(name).expectOutput(toFollow: change)
  }
}
