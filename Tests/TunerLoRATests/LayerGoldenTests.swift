import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// LoRA on every layer type; the expected numbers are peft's, or those of the formula where peft is
/// wrong (Tests/Goldens/layers, made by Tests/Goldens/generator/layers.py).
struct LayerGoldenTests {
  static let cases = LayerGolden.names("layers")

  private func open(_ name: String) throws -> LayerGolden {
    try LayerGolden(name, registry: AdapterTree.registry)
  }

  @Test func allCasesAreThere() {
    #expect(Self.cases.count == 31)
  }

  @Test(arguments: cases)
  func outputsEqualPeft(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try golden.model([])
    let base = try #require(try golden.number("output.base"))
    #expect(relativeError(try golden.value(host), base) < 1e-5)
    let report = try peft.load(golden.folder("adapter"))
    let keys = try #require(golden.record["keys"]?.object)
    #expect(Set(report.matched) == Set(keys.members.map(\.key)))
    for tensor in try peft.tensors(of: "default") {
      #expect(tensor.parameter.shape == keys[tensor.key]?.array?.compactMap(\.int), "\(tensor.key)")
    }
    let active = try #require(try golden.number("output.active"))
    #expect(active.shape == (try golden.value(host)).shape)
    #expect(relativeError(try golden.value(host), active) < 1e-5)
    peft.disable()
    #expect(relativeError(try golden.value(host), base) < 1e-5)
    peft.enable()
    #expect(relativeError(try golden.value(host), active) < 1e-5)
    try peft.setActive([])
    #expect(relativeError(try golden.value(host), base) < 1e-5)
  }

  @Test(arguments: cases)
  func printedTreesEqualPeft(_ name: String) throws {
    let golden = try open(name)
    let (_, peft) = try golden.model()
    let text = String(decoding: try FileSystem.read(golden.folder("printed.txt")), as: UTF8.self)
    #expect(peft.printed.text + "\n" == text)
  }

  @Test(arguments: cases)
  func gradientsEqualTorch(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try golden.model()
    let inputs = try golden.makeInputs()
    let output = try golden.output(host, inputs)
    let gradients = (output * (try golden.input.tensor("upstream"))).sum().backward()
    let tensors = peft.trainableTensors
    #expect(golden.numbers("grad.") == Set(tensors.map(\.key)))
    for tensor in tensors {
      let expected = try #require(try golden.number("grad.\(tensor.key)"))
      let gradient = try #require(gradients[tensor.parameter], "\(tensor.key)")
      #expect(relativeError(gradient, expected) < 1e-4, "\(tensor.key)")
    }
    #expect(golden.numbers("grad_input.") == Set(inputs.keys))
    for (key, parameter) in inputs {
      let expected = try #require(try golden.number("grad_input.\(key)"))
      let gradient = try #require(gradients[parameter], "\(key)")
      #expect(relativeError(gradient, expected) < 1e-4, "\(key)")
    }
  }

  @Test(arguments: cases)
  func lossesEqualTorch(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try golden.model()
    let expected = golden.losses
    try #require(expected.count == 10)
    for (loss, wanted) in zip(try golden.train(host, peft), expected) {
      #expect(abs(loss - wanted) < 1e-4 * wanted)
    }
  }

  /// Merged weights and outputs; unmerging gives the weights back to the bit.
  @Test(arguments: cases)
  func mergedWeightsEqualPeft(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try golden.model()
    let hosts = peft.base.namedModules().compactMap { path, module in
      (module as? any AdapterHost).map { (path, $0) }
    }
    func weights() -> [String: Tensor] {
      var result: [String: Tensor] = [:]
      for (path, host) in hosts {
        let parameters = host.parameters
        result["\(path).\(parameters.names.weight)"] = parameters.storedWeight
        if let bias = parameters.bias { result["\(path).\(parameters.names.bias)"] = bias.value }
      }
      return result
    }
    let before = weights().mapValues(\.scalars)
    let active = try golden.value(host)
    let merged = golden.numbers("merged.")
    if merged.isEmpty {
      // Grouped convolutions: no weight of the layer does what the adapter does.
      let error = #expect(throws: PEFTError.self) { try peft.merge(safe: true) }
      #expect(error?.message == golden.record["merge_error"]?["text"]?.string)
      #expect(error?.location == "layer" && peft.mergedAdapters.isEmpty)
      #expect(try golden.value(host).scalars == active.scalars)
      return
    }
    try peft.merge(safe: true)
    let after = weights()
    for key in merged {
      let own = try #require(after[key], "\(key)")
      var expected = try #require(try golden.number("merged.\(key)"))
      #expect(own.shape == expected.shape, "\(key)")
      if golden.isHalf {
        expected = HalfMatrix(rounding: expected, to: .bfloat16).dequantized()
      }
      #expect(relativeError(own, expected) < 1e-6, "\(key)")
    }
    for (key, values) in before where !merged.contains(key) {
      #expect(after[key]?.scalars == values, "\(key)")
    }
    // A weight that is rounded to bf16 gives outputs that are.
    let output = try #require(try golden.number("output.merged"))
    #expect(relativeError(try golden.value(host), output) < (golden.isHalf ? 1e-2 : 1e-5))
    peft.unmerge()
    #expect(weights().mapValues(\.scalars) == before)
    #expect(try golden.value(host).scalars == active.scalars)
    try peft.mergeAndUnload()
    #expect(weights().mapValues(\.scalars) == after.mapValues(\.scalars))
    #expect(host.adapters == nil)
  }

  /// With a given draw, dropout is a change of the input of A alone; the draw itself is in other
  /// tests, since every generator has its own.
  @Test(arguments: ["layers/linear-dropout", "layers/conv2d-dropout"])
  func dropoutActsOnTheInputOfA(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try golden.model()
    let x = try golden.input.tensor("x")
    let dropped = Parameter(x * (try golden.input.tensor("dropout")))
    func base(_ x: Parameter) throws -> Tensor {
      try peft.withAdaptersDisabled { try golden.output(host, ["x": x]) }
    }
    let change = try golden.output(host, ["x": dropped]) + (try base(dropped).scaled(by: -1))
    let output = try base(Parameter(x)) + change
    #expect(relativeError(output, try golden.expected.tensor("dropout.output")) < 1e-5)
    let gradients = (output * (try golden.input.tensor("upstream"))).sum().backward()
    for tensor in peft.trainableTensors {
      let expected = try golden.expected.tensor("dropout.grad.\(tensor.key)")
      let gradient = try #require(gradients[tensor.parameter])
      #expect(relativeError(gradient, expected) < 1e-4, "\(tensor.key)")
    }
    // The mask of a pass in training drops elements of the input, not of what A makes of it.
    let ones = Parameter(Tensor(repeating: 1, shape: x.shape))
    let site = Dropout(0.25, path: "layer.lora_dropout.default")
    var training = ForwardContext(SequenceLayout(lengths: [x.shape[0]]))
    training.dropoutSeed = 4
    let mask = site(ones.value, training)
    let masked = Parameter(x * mask)
    let expected =
      try base(Parameter(x)) + golden.output(host, ["x": masked])
      + (try base(masked).scaled(by: -1))
    let actual = try golden.output(host, ["x": Parameter(x)]) { $0.dropoutSeed = 4 }
    #expect(relativeError(actual, expected) < 1e-5)
  }

  /// Two adapters: their changes add up in any order, merged or not; a mixed batch gives each row
  /// its own.
  @Test(arguments: cases)
  func severalAdaptersAddUp(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try golden.model()
    var config = try #require(try peft.config("default") as? LoRAConfig)
    config.initialization = .random
    config.dropout = 0
    try peft.add("second", config, seed: 8)
    func value(_ names: [String]) throws -> Tensor {
      try peft.setActive(names)
      return try golden.value(host)
    }
    let (first, second) = (try value(["default"]), try value(["second"]))
    let base = try value([])
    // Attention is not linear in its projections, and a grouped convolution does not merge.
    let isAttention = host is MultiheadAttention
    let both = try value(["default", "second"])
    #expect(relativeError(try value(["second", "default"]), both) < 1e-5)
    if !isAttention {
      #expect(relativeError(both, first + second + base.scaled(by: -1)) < 1e-5)
    }
    if host.groups == 1, !golden.isHalf {
      try peft.merge()
      #expect(relativeError(try golden.value(host), both) < 1e-5)
      peft.unmerge()
    }
    try mixedRowsFollowTheirAdapter(
      golden, host, peft, ["default": first, "second": second], base)
  }

  private func mixedRowsFollowTheirAdapter(
    _ golden: LayerGolden, _ host: any AdapterHost, _ peft: PeftModel, _ single: [String: Tensor],
    _ base: Tensor
  ) throws {
    let module = golden.record["module"]
    // The dimension that counts examples: the second one in attention that is not batch_first.
    let isSecond = module?["batch_first"]?.bool == false
    let shape = base.shape
    let examples = shape[isSecond ? 1 : 0]
    let names = (0..<examples).map { ["second", "__base__", "default"][$0 % 3] }
    let lengths = [Int](
      repeating: host is Convolution || host is MultiheadAttention
        ? 1 : shape.dropFirst().dropLast().reduce(1, *), count: examples)
    let adapters = try peft.sequenceAdapters(names, count: examples)
    let mixed = try withoutGradients {
      try golden.output(host, try golden.makeInputs()) {
        $0.sequences = SequenceLayout(lengths: lengths)
        $0.sequenceAdapters = adapters
      }
    }
    let inner = shape.dropFirst(isSecond ? 2 : 1).reduce(1, *)
    var expected = [Float](repeating: .nan, count: base.count)
    for place in 0..<base.count / inner {
      let example = isSecond ? place % examples : place
      let source = single[names[example]] ?? base
      for i in place * inner..<(place + 1) * inner { expected[i] = source.scalars[i] }
    }
    #expect(relativeError(mixed, Tensor(shape: shape, scalars: expected)) < 1e-5)
  }

  /// A new adapter changes nothing, whatever the layer.
  @Test(arguments: cases)
  func newAdaptersAreWithoutEffect(_ name: String) throws {
    let golden = try open(name)
    let (host, peft) = try golden.model([])
    let base = try golden.value(host)
    let folder = try AdapterFolder(golden.folder("adapter"))
    try peft.add("new", try LoRAConfig(folder.config), seed: 3)
    #expect(try golden.value(host).scalars == base.scalars)
    let keys = try #require(golden.record["keys"]?.object)
    for tensor in try peft.tensors(of: "new") {
      #expect(tensor.parameter.shape == keys[tensor.key]?.array?.compactMap(\.int), "\(tensor.key)")
    }
  }

  /// What is saved is what was loaded.
  @Test(arguments: cases)
  func savedAdaptersEqualPeft(_ name: String) throws {
    let golden = try open(name)
    let (_, peft) = try golden.model()
    let folder = try TemporaryFolder()
    try peft.save(folder("adapter"))
    let own = try AdapterFolder(folder("adapter")).tensors
    let theirs = try AdapterFolder(golden.folder("adapter")).tensors
    #expect(Set(own.names) == Set(theirs.names))
    for name in theirs.names {
      #expect(try own.entry(name).shape == theirs.entry(name).shape, "\(name)")
      #expect(try own.tensor(name).scalars == theirs.tensor(name).scalars, "\(name)")
    }
  }
}
