import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

extension LayerGolden {
  /// What can happen to a layer between two passes.
  package enum Change: Sendable, CaseIterable {
    /// Each parameter of the adapter gets another value.
    case values
    /// All get values from a file.
    case loading
    /// Another s.
    case scale
    /// Another frozen weight.
    case weight
    /// A weight that is trained itself.
    case trainedWeight
    /// Another adapter goes into the weight and out of it again.
    case merging
    /// The adapter's layers are exchanged for those of a folder.
    case exchange
  }

  /// Checks that the output follows a change; the expected one is that of a layer which is made anew
  /// from the same values, and so has nothing of before.
  package func expectOutput(toFollow change: Change) throws {
    let (host, peft) = try model()
    let input = try makeInput().input
    func output(_ host: any AdapterHost) -> Tensor {
      withoutGradients { host.run(input, context(input)) }
    }
    var before = output(host)
    func check(_ what: String = "", isChange: Bool = true) throws {
      let expected = output(try anew(host, peft).host)
      let recorded = host.run(input, context(input)).detached
      let now = output(host)
      #expect(relativeError(recorded, expected) < 1e-5, "\(what), in training")
      #expect(relativeError(now, expected) < 1e-5, "\(what)")
      if isChange { #expect(relativeError(now, before) > 1e-3, "\(what): no change") }
      before = now
    }
    func noise(_ shape: [Int], _ stream: UInt64) -> Tensor {
      .normal(shape, deviation: 0.3, key: DropoutKey(seed: 17, stream: stream))
    }
    switch change {
    case .values:
      for tensor in try peft.tensors(of: "default") {
        tensor.parameter.update { $0 = $0.scaled(by: 1.25) }
        try check(tensor.key)
      }
    case .loading:
      let values = try peft.tensors(of: "default").map {
        ($0.key, $0.parameter.value.scaled(by: 1.25))
      }
      try peft.loadTensors(TensorTable(values), into: "default")
      try check()
    case .scale:
      try peft.setScale("default", 2.5)
      try check("scaled")
      try peft.unscaleLayers()
      try check("as configured")
    case .weight:
      let weight = host.parameters.matrix.dequantized()
      host.parameters.weight = .matrix(DenseMatrix(weight + noise(weight.shape, 1)))
      try check()
    case .trainedWeight:
      let parameter = Parameter(host.parameters.storedWeight)
      host.parameters.weight = .parameter(parameter)
      try check("at first", isChange: false)
      for step in 1...2 {
        parameter.update { $0 = $0 + noise($0.shape, UInt64(step)) }
        try check("step \(step)")
      }
    case .merging:
      try peft.add("other", any: peft.config("default"), seed: 1)
      for (place, tensor) in try peft.tensors(of: "other").enumerated() {
        tensor.parameter.update { $0 = $0 + noise($0.shape, UInt64(place)) }
      }
      try peft.setActive(["default", "other"])
      let both = output(host)
      try peft.setActive(["default"])
      try peft.merge(["other"])
      #expect(relativeError(output(host), both) < 1e-5, "merged")
      peft.unmerge()
      #expect(output(host).scalars == before.scalars, "unmerged")
    case .exchange:
      let (other, copy) = try anew(host, peft)
      for tensor in try copy.tensors(of: "default") {
        tensor.parameter.update { $0 = $0.scaled(by: 1.25) }
      }
      let folder = try TemporaryFolder()
      try copy.save(folder("new"), adapter: "default")
      try peft.hotSwap("default", from: folder("new"))
      #expect(relativeError(output(host), output(other)) < 1e-5)
      try check()
    }
  }

  /// A layer with the values that another one has now.
  private func anew(
    _ host: any AdapterHost, _ peft: PeftModel
  ) throws -> (host: any AdapterHost, peft: PeftModel) {
    let (other, copy) = try model([])
    other.parameters.weight = .matrix(host.untouched.matrix)
    try copy.add("default", any: peft.config("default"), seed: 0)
    for (new, old) in zip(try copy.tensors(of: "default"), try peft.tensors(of: "default")) {
      new.parameter.assign(old.parameter.value)
    }
    let layer = try #require(host.stack?.layer("default") as? any ScaledLayer)
    try #require(other.stack?.layer("default") as? any ScaledLayer).scaling = layer.scaling
    return (other, copy)
  }
}
