import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import PEFTCore
@testable import TunerLoRA

/// One entry of Tests/Goldens/combine/cases.json.
struct CombinationCase: CustomTestStringConvertible, Sendable {
  let name: String
  let entry: JSONObject
  /// Whether random masks are those of the golden.
  var usesMasks = true

  var testDescription: String { name }

  static func path(_ name: String) -> String { TestData.golden("combine/\(name)") }

  static func all() throws -> [CombinationCase] {
    try (FileSystem.readJSON(path("cases.json")).array ?? []).compactMap { value in
      value.object.map { CombinationCase(name: $0["name"]?.string ?? "", entry: $0) }
    }
  }

  static var registry: TunerRegistry {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return registry
  }

  static func adapter(_ name: String) throws -> AdapterValues {
    // From the config and the tensors: LoRA alone does not read a DoRA config.
    let folder = try AdapterFolder(path("adapters/\(name)"))
    return AdapterValues(
      name: name, config: folder.config,
      tensors: try folder.tensors.names.map { ($0, try folder.tensors.tensor($0)) })
  }

  var kind: String { entry["combination_type"]?.string ?? "" }
  var adapters: [String] { (entry["adapters"]?.array ?? []).compactMap(\.string) }
  var weights: [Double] { (entry["weights"]?.array ?? []).compactMap(\.double) }
  var error: String? { entry["error"]?["text"]?.string }
  var result: JSONObject { entry["result"]?.object ?? JSONObject() }

  func combination(_ compatibility: Compatibility, seed: UInt64 = 0) throws -> Combination {
    var combination = Combination(
      try Combination.Kind(name: kind), density: entry["density"]?.double,
      majoritySign: try entry["majority_sign_method"]?.string.map { (name) throws(PEFTError) in
        try Combination.MajoritySign(name: name)
      } ?? .total,
      svdRank: entry["svd_rank"]?.int, svdClamp: entry["svd_clamp"]?.double, seed: seed,
      compatibility: compatibility)
    combination.svdFullMatrices = entry["svd_full_matrices"]?.bool ?? true
    if usesMasks, combination.kind.isRandom,
      // Where peft fails there are none.
      let file = try? SafetensorsFile(Self.path("\(name).safetensors"))
    {
      combination.draws = { draw in
        guard
          let mask = try? file.integers("mask.\(draw.adapter).\(draw.side).\(draw.module)")
        else { return nil }
        let values = Tensor(
          shape: [mask.shape[0], mask.values.count / mask.shape[0]],
          scalars: mask.values.map { Float($0) })
        // Masks of whole changes are laid out as the weights are.
        let isTransposed = draw.side == "delta" && ["gpt2", "embed"].contains(draw.module)
        return isTransposed ? values.transposed() : values.reshaped(draw.shape)
      }
    }
    if combination.svdClamp != nil, compatibility == .peft {
      // The limit depends on signs of singular vectors, which are LAPACK's choice.
      let file = try SafetensorsFile(Self.path("\(name).safetensors"))
      combination.signs = { module, right in
        guard let a = try? file.tensor("A.\(module)") else { return [] }
        return (0..<right.rows).map { row in
          guard row < a.shape[0] else { return 1 }
          let own = right.rowRange(row..<row + 1).scalars
          let peft = a.reshaped([a.shape[0], a.count / a.shape[0]]).rowRange(row..<row + 1).scalars
          return zip(own, peft).reduce(0) { $0 + $1.0 * $1.1 } < 0 ? -1 : 1
        }
      }
    }
    return combination
  }

  func sources() throws -> [CombinationSource] {
    try zip(adapters, weights).map { name, weight in
      guard FileSystem.isDirectory(Self.path("adapters/\(name)")) else {
        throw PEFTError(.invalidAdapter, "Adapter \(name) does not exist")
      }
      return CombinationSource(try Self.adapter(name), weight: weight)
    }
  }

  func combine(
    _ compatibility: Compatibility, seed: UInt64 = 0
  ) throws -> (state: AdapterValues, warnings: [String]) {
    try Self.registry.combine(
      try sources(), try combination(compatibility, seed: seed), base: try Self.base())
  }

  static func base() throws -> BaseWeights {
    let file = try SafetensorsFile(path("base.safetensors"))
    return BaseWeights { (module, outputs, inputs, isEmbedding) throws(PEFTError) in
      try BaseWeights.oriented(
        try file.tensor("\(module).weight"), outputs: outputs, inputs: inputs,
        isTransposed: isEmbedding ? true : nil, at: module)
    }
  }

  // MARK: Expectations

  func expectError(_ compatibility: Compatibility, _ text: String) throws {
    let error = #expect(throws: PEFTError.self, "\(name)") { _ = try combine(compatibility) }
    #expect(error?.message == text, "\(name)")
  }

  /// The golden of a module's weight or its change, `[outputs, inputs]`.
  func matrix(_ file: SafetensorsFile, _ key: String, _ module: String) throws -> Tensor {
    let tensor = try file.tensor(key)
    let matrix = tensor.reshaped([tensor.shape[0], tensor.count / tensor.shape[0]])
    return ["gpt2", "embed"].contains(module) ? matrix.transposed() : matrix
  }

  /// W and ΔW of an adapter, DoRA's magnitudes included, in double precision.
  func dense(_ part: LoRAPart, _ module: String) throws -> (base: [Double], change: [Double]) {
    let file = try SafetensorsFile(Self.path("base.safetensors"))
    let base = try matrix(file, "\(module).weight", module).scalars.map { Double($0) }
    let (rows, columns) = (part.factors.outputs, part.factors.inputs)
    var change = Reference.product(part.factors).map { $0 * part.scaling }
    if let magnitude = part.magnitude {
      for row in 0..<rows {
        let range = row * columns..<(row + 1) * columns
        let length = range.reduce(0) { $0 + (base[$1] + change[$1]) * (base[$1] + change[$1]) }
          .squareRoot()
        let factor = Double(magnitude.scalars[row]) / length
        for place in range { change[place] = factor * (base[place] + change[place]) - base[place] }
      }
    }
    return (base, change)
  }

  /// Settings, factors where they are unique, and changes of weights are peft's.
  func expectPeft(_ state: AdapterValues) throws {
    for key in [
      "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
      "target_modules",
    ] {
      #expect(state.config[key] == result[key], "\(name): \(key)")
    }
    let file = try SafetensorsFile(Self.path("\(name).safetensors"))
    if name == "dare-empty" {
      // Nothing is kept, and peft divides by that; no reader takes such an adapter.
      #expect(state.tensors.allSatisfy { $0.value.scalars.allSatisfy(\.isNaN) })
      return
    }
    let parts = try LoRAParts(CombinationSource(state, weight: 1))
    let scalings = result["scaling"]?.object ?? JSONObject()
    #expect(Set(parts.paths) == Set(scalings.keys), "\(name)")
    for (path, part) in parts.modules {
      #expect(abs(part.scaling - (scalings[path]?.double ?? 0)) < 1e-12, "\(name): \(path)")
      for (side, own) in [("A", part.a), ("B", part.b)] {
        guard file["\(side).\(path)"] != nil else { continue }
        // Where peft's factors are smaller than its config says, ours have zeros.
        let golden = try file.tensor("\(side).\(path)")
        let kept = side == "A" ? golden.shape[0] : golden.shape[1]
        let rows = golden.reshaped([golden.shape[0], golden.count / golden.shape[0]])
        let expected = side == "A" ? rows : rows.transposed()
        let flat = own.reshaped([own.shape[0], own.count / own.shape[0]])
        let actual = side == "A" ? flat : flat.transposed()
        expectClose(
          actual.rowRange(0..<kept).scalars, expected.scalars.map { Double($0) }, 1e-5,
          "\(name): \(side) of \(path)")
        #expect(actual.rowRange(kept..<actual.rows).scalars.allSatisfy { $0 == 0 })
      }
      let (base, change) = try dense(part, path)
      let expected = try matrix(file, "delta.\(path)", path).scalars.map { Double($0) }
      expectClose(change, expected, 1e-5, "\(name): change of \(path)")
      let merged = zip(base, expected).map { $0 + $1 }
      let scale = merged.map(\.magnitude).max()!
      let difference = zip(change, expected).map { abs($0 - $1) }.max()!
      // peft's own factors are 6e-6 off for this one (in double precision, to compare).
      let limit = name == "svd-clamp" ? 2e-6 : 1e-6
      #expect(difference <= limit * scale, "\(name): merged \(path): \(difference / scale)")
    }
  }

  /// Changes of weights are what the formula of the kind gives in double precision.
  func expectExact(_ state: AdapterValues, hasExactRanks: Bool = true) throws {
    let made = try LoRAParts(CombinationSource(state, weight: 1))
    let own = try sources().map { try LoRAParts($0) }
    let (combination, _) = try combination(.exact).resolved(weights: weights, adapters: adapters)
    // Limits to a quantile are not about the change; see `clampsToAQuantile`.
    if combination.svdClamp != nil { return }
    #expect(state.config["use_rslora"] == false, "\(name)")
    for (path, part) in made.modules {
      #expect(part.scaling == 1, "\(name): \(path)")
      let sources = own.enumerated().compactMap { index, adapter in
        adapter.modules[path].map { (index, $0, adapter.weight) }
      }
      let rank = combination.svdRank ?? sources.map(\.1.recordedRank).max()!
      let reference = try Reference(
        sources, combination, path, rank: rank,
        changes: sources.map { try dense($0.1, path).change })
      let (base, change) = try dense(part, path)
      let scale = zip(base, reference.change).map { ($0 + $1).magnitude }.max()!
      let difference = zip(change, reference.change).map { abs($0 - $1) }.max()!
      #expect(difference <= 2e-6 * scale, "\(name): \(path): \(difference / scale)")
      if hasExactRanks, let expected = reference.rank {
        #expect(part.recordedRank == expected, "\(name): \(path)")
      }
    }
    if let sumName = entry["sum_in"]?.string, ["linear", "cat"].contains(kind) {
      let sums = try SafetensorsFile(Self.path("\(sumName).safetensors"))
      for (path, part) in made.modules {
        let expected = try matrix(sums, "sum.\(path)", path).scalars.map { Double($0) }
        expectClose(try dense(part, path).change, expected, 1e-5, "\(name): sum of \(path)")
      }
    }
  }
}

/// The largest difference is small beside the largest expected value.
func expectClose<T: BinaryFloatingPoint>(
  _ actual: [T], _ expected: [Double], _ tolerance: Double, _ what: String
) {
  guard actual.count == expected.count else {
    Issue.record("\(what): \(actual.count) values, \(expected.count) expected")
    return
  }
  let difference = zip(actual, expected).map { abs(Double($0) - $1) }.max() ?? 0
  // What cancels is compared with what it was made of, which is about 1.
  let scale = max(expected.map(\.magnitude).max() ?? 0, 0.05)
  #expect(difference <= tolerance * scale, "\(what): \(difference / scale)")
}
