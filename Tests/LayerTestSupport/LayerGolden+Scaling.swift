import NN
import PEFTCore
import PEFTSupport
import Tensors
import Testing

extension LayerGolden {
  /// Checks a linear layer at several scales, merged and not, against ``DirectionFormula``: s acts
  /// inside the direction, and whatever was computed for another one is not used again.
  package func expectScales() throws {
    let (host, peft) = try model()
    let layer = try #require(host.stack?.layer("default") as? any ScaledLayer)
    let configured = try #require(record["scaling"]?.double)
    let input = try makeInput().input
    let before = host.parameters.storedWeight
    var last: Tensor?
    func check(_ factor: Double) throws {
      #expect(abs(layer.scaling - factor * configured) < 1e-12)
      let formula = try DirectionFormula(
        host.untouched.matrix.dequantized(), peft.tensors(of: "default"),
        scaling: factor * configured)
      let expected = formula.output(try self.input.tensor("x"), bias: host.parameters.bias?.value)
      if let last { #expect(relativeError(last, expected) > 1e-3, "no other output") }
      last = expected
      func expect(_ what: Comment) {
        let output = withoutGradients { host.run(input, context(input)) }
        #expect(relativeError(output, expected) < 1e-5, what)
      }
      let recorded = host.run(input, context(input)).detached
      #expect(relativeError(recorded, expected) < 1e-5, "in training, \(factor)")
      expect("\(factor)")
      expect("cached, \(factor)")
      try peft.merge()
      expect("merged, \(factor)")
      let merged = host.parameters.matrix.dequantized()
      #expect(relativeError(merged, formula.weight) < 1e-6, "merged weight, \(factor)")
      #expect(throws: PEFTError.self) { try peft.setScale("default", 2) }
      peft.unmerge()
      #expect(host.parameters.storedWeight.scalars == before.scalars)
      expect("unmerged, \(factor)")
    }
    try check(1)
    for factor in [0.25, 3, 0, -1] {
      try peft.setScale("default", factor)
      try check(factor)
    }
    try peft.setScale("default", 0.5)
    try peft.scaleLayers(by: 4)
    try check(2)
    try peft.unscaleLayers(by: 8)
    try check(0.25)
    try peft.unscaleLayers()
    try check(1)
  }
}
