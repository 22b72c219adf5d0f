import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Every case of Tests/Goldens/combine: what `add_weighted_adapter` of peft 0.21 makes of the same
/// adapters (generator/combine.py), in peft's compatibility mode, and the right numbers, by formula
/// or from the exact sums there.
struct CombinationGoldenTests {
  static let cases: [CombinationCase] = (try? CombinationCase.all()) ?? []

  @Test func findsTheCases() { #expect(Self.cases.count == 90) }

  @Test(arguments: cases)
  func equalsPeft(_ golden: CombinationCase) throws {
    guard let text = golden.error else {
      let made = try golden.combine(.peft)
      return try golden.expectPeft(made.state)
    }
    // Where peft stops by accident the right thing is done, or the setting is named.
    switch golden.name {
    case "svd-rank-8", "conv1d-svd", "conv3d-svd", "conv1d-ties-svd":
      let made = try golden.combine(.peft).state
      try golden.expectExact(made, hasExactRanks: false)
    case "no-density":
      try golden.expectError(.peft, "'density' is missing, combination_type ties needs it")
    default:
      try golden.expectError(.peft, text)
      // The right way needs equal ranks only where factors are combined element by element, and
      // lists of targets and expressions go together.
      let isAddition = ["linear", "dare_linear", "magnitude_prune"].contains(golden.kind)
      if text.hasPrefix("All adapters must have") && isAddition
        || text.hasPrefix("all adapter configs should follow the same target modules type")
      {
        try golden.expectExact(try golden.combine(.exact).state)
      } else {
        try golden.expectError(.exact, text)
      }
    }
  }

  @Test(arguments: cases.filter { $0.error == nil })
  func isRightByDefault(_ golden: CombinationCase) throws {
    try golden.expectExact(try golden.combine(.exact).state)
  }

  /// Adapters of other ranks, and of other ranks in other modules, add up exactly.
  @Test(arguments: [
    "ranks-linear", "pattern-unequal", "ranks-dare-linear", "ranks-magnitude-prune",
  ])
  func addsAdaptersOfUnequalRanks(_ name: String) throws {
    let golden = try #require(Self.cases.first { $0.name == name })
    try golden.expectExact(try golden.combine(.exact).state)
  }

  /// Sums of DoRA adapters, also with plain ones in other modules, are DoRA adapters.
  @Test(arguments: [
    ("dora", "dora2", "cat"), ("dora", "dora2", "linear"), ("part", "dora", "linear"),
    ("dora2", "a", "cat"),
  ])
  func addsMagnitudes(_ first: String, _ second: String, _ kind: String) throws {
    let entry: JSONValue = [
      "adapters": [.string(first), .string(second)], "weights": [0.7, -0.4],
      "combination_type": .string(kind),
    ]
    let golden = CombinationCase(
      name: "\(first)-\(second)", entry: try #require(entry.object))
    let made = try golden.combine(.exact).state
    #expect(made.config["use_dora"] == true)
    try golden.expectExact(made)
    // As a decomposition of enough ranks.
    var combination = Combination(.svd, svdRank: 8)
    let decomposed = try CombinationCase.registry.combine(
      try golden.sources(), combination, base: try CombinationCase.base()
    ).state
    try golden.expectExact(decomposed, hasExactRanks: false)
    combination = Combination(.ties, density: 0.5)
    let error = #expect(throws: PEFTError.self) {
      _ = try CombinationCase.registry.combine(
        try golden.sources(), combination, base: try CombinationCase.base())
    }
    #expect(error?.message == "combination_type ties is not defined for DoRA adapters")
    let missing = #expect(throws: PEFTError.self) {
      _ = try CombinationCase.registry.combine(try golden.sources(), Combination(.cat))
    }
    #expect(
      missing?.message == "combining DoRA adapters needs the weights of the base model")
  }

  /// Rows without a direction, and magnitudes that training made zero: a DoRA adapter by itself at
  /// weight 1, or beside one that does not touch the row, is the sum W + Σ wᵢΔWᵢ, whose rows with
  /// ‖W + s·B·A‖ = 0 are zero (as `ColumnScale` has them) and with m = 0 too.
  @Test(arguments: [1, 2], [Combination.Kind.cat, .linear])
  func addsRowsOfZeros(_ count: Int, _ kind: Combination.Kind) throws {
    // Row 1 of the base is zero, and both B's; row 2 has magnitude 0 in the first adapter.
    func values(_ seed: UInt64, zeros: [Int]) -> (a: Tensor, b: Tensor) {
      let b = Tensor.normal([4, 2], deviation: 1, key: DropoutKey(seed: seed, stream: 2))
      let kept = Tensor(shape: [4], scalars: (0..<4).map { zeros.contains($0) ? 0 : 1 })
      return (
        .normal([2, 3], deviation: 1, key: DropoutKey(seed: seed, stream: 1)),
        b.scalingRows(by: kept)
      )
    }
    let weight = Tensor.normal([4, 3], deviation: 1, key: DropoutKey(seed: 1, stream: 1))
      .scalingRows(by: Tensor(shape: [4], scalars: [1, 0, 1, 1]))
    let (first, second) = (values(2, zeros: [1]), values(3, zeros: [1, 2]))
    let magnitude: [Float] = [0.7, 0.4, 0, 1.3]
    let path = "base_model.model.lin"
    var config = LoRAConfig(rank: 2, alpha: 2, targets: TargetSelection(.list(["lin"])))
    let plain = AdapterValues(
      name: "plain", config: config.object,
      tensors: [("\(path).lora_A.weight", second.a), ("\(path).lora_B.weight", second.b)])
    config.usesDoRA = true
    let dora = AdapterValues(
      name: "dora", config: config.object,
      tensors: [
        ("\(path).lora_A.weight", first.a), ("\(path).lora_B.weight", first.b),
        ("\(path).lora_magnitude_vector", Tensor(shape: [4], scalars: magnitude)),
      ])
    /// m∘V/‖V‖ in double precision.
    func decomposed(_ part: (a: Tensor, b: Tensor), _ magnitude: [Float]) throws -> [Double] {
      let change = Reference.product(try FactoredChange(a: part.a, b: part.b))
      var result = zip(weight.scalars, change).map { Double($0) + $1 }
      for row in 0..<4 {
        let length = (0..<3).reduce(0) { $0 + result[3 * row + $1] * result[3 * row + $1] }
          .squareRoot()
        for column in 0..<3 {
          result[3 * row + column] *= length == 0 ? 0 : Double(magnitude[row]) / length
        }
      }
      return result
    }
    let sum = try CombinationCase.registry.combine(
      [CombinationSource(dora, weight: 1), CombinationSource(plain, weight: 1)].prefix(count)
        .map { $0 }, Combination(kind),
      base: BaseWeights { (_, _, _, _) throws(PEFTError) in weight }
    ).state
    var expected = try decomposed(first, magnitude)
    if count == 2 {
      let more = Reference.product(try FactoredChange(a: second.a, b: second.b))
      expected = zip(expected, more).map { $0 + $1 }
    }
    let made = try #require(
      try LoRAParts(CombinationSource(sum, weight: 1)).modules["lin"])
    let actual = try decomposed((made.a, made.b), try #require(made.magnitude).scalars)
    #expect(made.scaling == 1)
    expectClose(actual, expected, 1e-6, "sum")
  }

  /// Each value beyond the quantile of all values of A and B is replaced by it.
  @Test func clampsToAQuantile() throws {
    let golden = try #require(Self.cases.first { $0.name == "svd-clamp" })
    var combination = try golden.combination(.exact)
    let made = try CombinationCase.registry.combine(try golden.sources(), combination).state
    combination.svdClamp = nil
    let free = try CombinationCase.registry.combine(try golden.sources(), combination).state
    let parts = try LoRAParts(CombinationSource(free, weight: 1)).modules
    for (path, part) in try LoRAParts(CombinationSource(made, weight: 1)).modules {
      let whole = try #require(parts[path])
      let sorted = (whole.a.scalars + whole.b.scalars).sorted()
      let place = 0.9 * Double(sorted.count - 1)
      let (low, high) = (Double(sorted[Int(place)]), Double(sorted[Int(place) + 1]))
      let limit = low + (place - place.rounded(.down)) * (high - low)
      for (own, other) in [(part.a, whole.a), (part.b, whole.b)] {
        expectClose(
          own.scalars, other.scalars.map { min(max(Double($0), -limit), limit) }, 1e-6, path)
      }
    }
  }

  @Test func drawsAreSeeded() throws {
    var golden = try #require(Self.cases.first { $0.name == "dare-linear-svd" })
    golden.usesMasks = false
    let first = try golden.combine(.exact, seed: 3).state
    let same = try golden.combine(.exact, seed: 3).state
    let other = try golden.combine(.exact, seed: 4).state
    for (key, value) in first.tensors {
      #expect(same[key]?.scalars == value.scalars)
    }
    #expect(first.tensors.contains { other[$0.key]?.scalars != $0.value.scalars })
  }

  /// What is written is read again with the same values, and the config is LoRA's.
  @Test func isSaved() throws {
    let golden = try #require(Self.cases.first { $0.name == "pattern-svd" })
    let made = try golden.combine(.exact).state
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    let folder = try TemporaryFolder()
    try made.save(folder("new"), registry: registry)
    #expect(folder.names == ["new"])
    let read = try AdapterValues(folder: AdapterFolder(folder("new")), registry: registry)
    #expect(read.tensors.count == made.tensors.count)
    for (key, value) in made.tensors { #expect(read[key]?.scalars == value.scalars) }
    let config = try LoRAConfig(read.config)
    for (path, part) in try LoRAParts(CombinationSource(read, weight: 1)).modules {
      #expect(try config.rank(path) == part.factors.rank)
      #expect(part.scaling == 1)
    }
  }

  @Test func refusesWhatCannotBeCombined() throws {
    func expect(
      _ change: (inout [CombinationSource]) -> Void, _ text: String,
      _ combination: Combination = Combination(.cat)
    ) throws {
      var sources = try ["a", "b"].map {
        CombinationSource(try CombinationCase.adapter($0), weight: 1)
      }
      change(&sources)
      let error = #expect(throws: PEFTError.self) {
        _ = try CombinationCase.registry.combine(sources, combination)
      }
      #expect(error?.description.contains(text) == true, "\(error?.description ?? "")")
    }
    try expect(
      { $0[1].state.config["target_parameters"] = ["experts.up"] },
      "add_weighted_adapter does not support targeting nn.Parameter (problematic adapter '")
    try expect(
      {
        for place in $0.indices {
          $0[place].state.config["modules_to_save"] = ["score"]
          for name in ["dense", "out"] {
            $0[place].state.tensors.append(
              ("base_model.model.score.\(name).weight", Tensor.zeros([2, 2])))
          }
        }
      },
      "Cannot add weighted adapters if they target the same module with modules_to_save, but found "
        + "1 such instance(s).")
    try expect({ $0[0].state.config["peft_type"] = "IA3" }, "IA3, LORA cannot be combined")
    try expect({ $0[0].state.config["bias"] = "all" }, "'bias': \"all\"")
    try expect(
      { $0[1].state.config["init_lora_weights"] = "pissa_niter_4" }, "belongs to a changed base")
    try expect({ $0[1].weight = .nan }, "a finite number was expected")
    try expect(
      { $0[1].state.tensors.removeAll { $0.key.hasSuffix("conv.lora_B.weight") } },
      "'conv' has no lora_B.weight")
    try expect(
      {
        $0[1].state.tensors = $0[1].state.tensors.map {
          $0.key.hasSuffix("linear.lora_A.weight") ? ($0.key, Tensor.zeros([4, 8])) : $0
        }
      }, "linear: changes of shapes [7, 9] and [7, 8]")
    try expect(
      {
        $0[1].state.tensors = $0[1].state.tensors.map {
          $0.key.hasSuffix("linear.lora_B.weight")
            ? ($0.key, Tensor(repeating: .nan, shape: $0.value.shape)) : $0
        }
      }, "'linear' has values that are not finite")
    try expect({ $0 = [] }, "Found no adapter matching the names in []")
    var combination = Combination(.svd, svdRank: 0)
    try expect({ _ in }, "'svd_rank' is 0", combination)
    combination = Combination(.svd, svdClamp: 1.5)
    try expect({ _ in }, "'svd_clamp' is 1.5", combination)
    combination = Combination(.svd)
    combination.svdDriver = "gesvd"
    try expect({ _ in }, "'svd_driver': \"gesvd\"", combination)
  }

  /// A head that one adapter has trained stays with the combination.
  @Test func keepsSavedModulesAndBiases() throws {
    var first = try CombinationCase.adapter("a")
    var second = try CombinationCase.adapter("b")
    second.config["modules_to_save"] = ["score"]
    let head = Tensor(shape: [1, 2], scalars: [3, 4])
    second.tensors.append(("base_model.model.score.weight", head))
    // s is 1.5 and 1.
    first.config["lora_bias"] = true
    first.tensors.append(
      ("base_model.model.linear.lora_B.bias", Tensor(shape: [7], scalars: [1, 2, 3, 4, 5, 6, 7])))
    second.scalings["linear"] = 3
    let made = try CombinationCase.registry.combine(
      [CombinationSource(first, weight: 2), CombinationSource(second, weight: 0.5)],
      Combination(.linear)
    ).state
    #expect(made["base_model.model.score.weight"]?.scalars == [3, 4])
    #expect(made.config["modules_to_save"] == ["score"])
    #expect(made.config["lora_bias"] == true)
    #expect(
      made["base_model.model.linear.lora_B.bias"]?.scalars == [3, 6, 9, 12, 15, 18, 21])
    #expect(made["base_model.model.gpt2.lora_B.bias"]?.scalars == [Float](repeating: 0, count: 7))
    #expect(made["base_model.model.embed.lora_B.bias"] == nil)
  }

  /// Short names are ends of longer ones: each module still gets its own rank.
  @Test func ranksOfNamesWithinNames() throws {
    let ranks = ["linear": 2, "block.linear": 4, "other.linear": 4, "deep.block.linear": 3]
    let (rank, pattern) = LoRACombiner.pattern(ranks)
    #expect(rank == 4)
    for (path, expected) in ranks {
      let found = try pattern.value(for: path, configKey: "rank_pattern") ?? Double(rank)
      #expect(found == Double(expected), "\(path)")
    }
  }

  /// Each group of outputs has its own rows of A: sums keep them apart.
  @Test(arguments: [Combination.Kind.linear, .cat, .svd, .dareLinear, .tiesSVD])
  func keepsGroupsApart(_ kind: Combination.Kind) throws {
    func values(_ shape: [Int], _ seed: UInt64) -> Tensor {
      .normal(shape, deviation: 1, key: DropoutKey(seed: seed, stream: 1))
    }
    let first = try FactoredChange(a: values([4, 3, 3], 1), b: values([6, 2, 1], 2))
    let second = try FactoredChange(a: values([2, 3, 3], 3), b: values([6, 1, 1], 4))
    #expect(first.groups == 2)
    let parts = [
      CombinationPart(adapter: 0, factors: first, scaling: 2, weight: 0.5),
      CombinationPart(adapter: 1, factors: second, scaling: 3, weight: -1),
    ]
    let combination = Combination(kind, density: 1)
    let made = try combination.combine(parts, at: "conv", rank: 6)
    #expect(made.groups == 2)
    let expected: [Double]
    if kind == .tiesSVD {
      expected = Reference.elected(
        [first.product(scale: 2).scalars, second.product(scale: 3).scalars], [0.5, -1], .total)
    } else {
      expected = zip(first.product().scalars, second.product().scalars).map {
        Double($0) - 3 * Double($1)
      }
    }
    expectClose(made.product().scalars, expected, 1e-5, "\(kind)")
  }
}
