import NN
import PEFTSupport
import Tensors
import Testing

@testable import PEFTCore

/// Merging and unmerging.
struct MergingTests {
  @Test(arguments: [WeightPrecision.float32, .bfloat16])
  func unmergingRestoresToTheBit(_ precision: WeightPrecision) throws {
    let fixture = try Fixture(precision)
    let peft = fixture.peft
    let model = fixture.model
    let before = [model.up, model.down].map { $0.parameters.matrix.dequantized().scalars }
    let base = fixture.output()
    try peft.add("a", DeltaConfig(.allLinear), seed: 1)
    try peft.add("b", DeltaConfig(.list(["down"])), seed: 2)
    try peft.setActive(["a", "b"])
    let unmerged = fixture.output()
    try peft.merge()
    #expect(peft.mergedAdapters == ["a", "b"])
    let merged = fixture.output()
    // bf16 weights are rounded once more when they are merged, by 2⁻⁹ relative each.
    let scale = unmerged.map(abs).max() ?? 1
    #expect(difference(merged, unmerged) < (precision == .float32 ? 1e-6 : 0.02) * scale)
    #expect(peft.withAdaptersDisabled { fixture.output() } == base)
    peft.unmerge()
    #expect(peft.mergedAdapters.isEmpty && fixture.output() == unmerged)
    let after = [model.up, model.down].map { $0.parameters.matrix.dequantized().scalars }
    #expect(after == before)
  }

  @Test func adaptersMergeOneByOneAsTogether() throws {
    let fixture = try Fixture(.bfloat16)
    let peft = fixture.peft
    for (seed, name) in ["a", "b", "c"].enumerated() {
      try peft.add(name, DeltaConfig(.list(["up"])), seed: UInt64(seed))
    }
    try peft.setActive(["a", "b", "c"])
    try peft.merge()
    let together = fixture.output()
    peft.unmerge()
    try peft.merge(["a", "a"])
    #expect(peft.mergedAdapters == ["a"])
    // The others go on contributing unmerged.
    #expect(difference(fixture.output(), together) < 0.05)
    try peft.merge(["a", "b"])
    try peft.merge()
    #expect(fixture.output() == together)
    let error = #expect(throws: PEFTError.self) { try peft.delete("b") }
    #expect(error?.code == .invalidState)
    // Choosing adapters unmerges.
    try peft.setActive(["a"])
    #expect(peft.mergedAdapters.isEmpty)
  }

  @Test(arguments: [Float.nan, .infinity])
  func safeMergeRefusesWhatIsNotFinite(_ value: Float) throws {
    let fixture = try Fixture()
    let peft = fixture.peft
    try peft.add("a", DeltaConfig(.list(["up", "down"])))
    let base = peft.withAdaptersDisabled { fixture.output() }
    let bad = try #require(peft.trainableTensors.last).parameter
    bad.update { $0.withMutableSlice { $0[5] = value } }
    let error = #expect(throws: PEFTError.self) { try peft.merge(safe: true) }
    #expect(error?.code == .numericalFailure && error?.location == "mlp.down")
    #expect(
      error?.message == "NaNs detected in the merged weights. The adapter a seems to be broken")
    #expect(peft.mergedAdapters.isEmpty)
    #expect(peft.withAdaptersDisabled { fixture.output() } == base)
    #expect(throws: PEFTError.self) { try peft.mergeAndUnload(safe: true) }
    #expect(peft.adapterNames == ["a"])
    try peft.merge()
    #expect(peft.mergedAdapters == ["a"])
    peft.unmerge()
    #expect(peft.withAdaptersDisabled { fixture.output() } == base)
  }

  @Test func unloadingLeavesThePlainModel() throws {
    for keepsChange in [false, true] {
      let fixture = try Fixture()
      let peft = fixture.peft
      let base = fixture.output()
      try peft.add("a", DeltaConfig(.list(["up"])), seed: 1)
      try peft.add("b", DeltaConfig(.list(["down"])), seed: 2)
      try peft.setActive(["a", "b"])
      let adapted = fixture.output()
      // One of them is merged already; the other must not be lost.
      try peft.merge(["a"])
      peft.disable()
      if keepsChange { try peft.mergeAndUnload() } else { peft.unload() }
      #expect(difference(fixture.output(), keepsChange ? adapted : base) < 1e-5)
      #expect(keepsChange || fixture.output() == base)
      #expect(peft.adapterNames.isEmpty && peft.activeAdapters.isEmpty)
      #expect(fixture.model.up.adapters == nil && fixture.model.down.adapters == nil)
      try peft.add("a", DeltaConfig(.list(["up"])), seed: 3)
      #expect(fixture.output() != base)
    }
  }

  @Test func mergingATiedWeightUnties() throws {
    let fixture = try Fixture()
    var tied = fixture.model.up.parameters
    tied.isTied = true
    fixture.model.up.parameters = tied
    let peft = fixture.peft
    let count = peft.parameterCounts.all
    try peft.add("a", DeltaConfig(.list(["up"])))
    try peft.mergeAndUnload()
    #expect(peft.parameterCounts.all == count + 24)
  }
}
