import PEFTCore
import PEFTSupport
import Tensors

extension LoRATuner: CombinableTuner {
  /// Whether all configs are LoRA's, in any variant.
  public static func combines(_ configs: [JSONObject]) -> Bool {
    configs.allSatisfy { $0["peft_type"]?.string == peftType }
  }

  /// Makes one LoRA adapter of several; see ``Combination``.
  ///
  /// Scalings are in the new factors: the new adapter's is 1 everywhere. Modules trained in full
  /// are taken over from the one adapter that has them. DoRA adapters combine exactly, with the base's weights: their sum is a
  /// DoRA adapter again.
  ///
  /// - Throws: ``PEFTError``: tensors that do not fit each other, settings that exclude each other, or
  ///   a base that is needed and missing.
  public static func combine(
    _ sources: [CombinationSource], _ combination: Combination, base: BaseWeights?
  ) throws(PEFTError) -> (state: AdapterValues, warnings: [String]) {
    var adapters: [LoRAParts] = []
    for source in sources { adapters.append(try LoRAParts(source)) }
    return try LoRACombiner(adapters: adapters, combination: combination, base: base).run()
  }
}

/// One combination of LoRA adapters.
struct LoRACombiner {
  let adapters: [LoRAParts]
  let combination: Combination
  let base: BaseWeights?

  var isExact: Bool { combination.compatibility == .exact }
  /// Whether the new adapter is a DoRA adapter.
  var makesDoRA: Bool {
    isExact ? adapters.contains { $0.settings.usesDoRA } : adapters[0].settings.usesDoRA
  }
  /// Whether the new adapter has biases beside B.
  var makesBias: Bool {
    isExact ? adapters.contains { $0.settings.hasBias } : adapters[0].settings.hasBias
  }
  /// Paths of all changed modules, in the order of the first adapter, then the others.
  var paths: [String] {
    var seen: Set<String> = []
    return adapters.flatMap(\.paths).filter { seen.insert($0).inserted }
  }

  func run() throws(PEFTError) -> (state: AdapterValues, warnings: [String]) {
    try check()
    let newRank = isExact ? nil : try rankInPeft()
    let targets = try newTargets()
    let paths = paths
    var made: [String: Change] = [:]
    for path in paths {
      do { made[path] = try change(of: path, newRank: newRank) } catch {
        throw error.located(at: path)
      }
    }
    // Modules that share a line of the config have one rank.
    var ranks: [String: Int] = [:]
    for path in paths {
      let target = FileKey.targetPath(path)
      ranks[target] = max(ranks[target] ?? 0, newRank ?? made[path]!.recordedRank)
    }
    var tensors: [(key: String, value: Tensor)] = []
    for path in paths {
      tensors += made[path]!.tensors(path, recordedRank: ranks[FileKey.targetPath(path)]!)
    }
    if isExact { tensors += others }
    let config =
      newRank.map { self.config(rank: $0, targets: targets) }
      ?? self.config(ranks: ranks, targets: targets)
    let name = adapters.map(\.name).joined(separator: " + ")
    return (AdapterValues(name: name, config: config, tensors: tensors), warnings)
  }

  /// A module's new change.
  struct Change {
    /// One of the changes that it was made of, for shapes.
    let like: LoRAPart
    let factors: FactoredChange
    let bias: Tensor?
    let magnitude: Tensor?

    var recordedRank: Int {
      LoRAPart.recordedRank(factors, isMatrix: like.a.shape.count == 2)
    }

    func tensors(_ path: String, recordedRank: Int) -> [(key: String, value: Tensor)] {
      let padded = factors.padded(toGroupRank: like.groupRank(recorded: recordedRank))
      let a = padded.a.reshaped([padded.rank] + like.a.shape.dropFirst())
      let b = padded.b.reshaped([padded.outputs, padded.groupRank] + like.b.shape.dropFirst(2))
      let keys = LoRAKey.factors(ofEmbedding: like.isEmbedding)
      var result = [(keys.a, a), (keys.b, b)]
      if let bias { result.append((LoRAKey.bias, bias)) }
      if let magnitude { result.append((LoRAKey.magnitude, magnitude)) }
      return result.map { (key: FileKey.key("\(path).\($0.0)"), value: $0.1) }
    }
  }

  private func change(of path: String, newRank: Int?) throws(PEFTError) -> Change {
    let present = adapters.enumerated().compactMap { index, adapter in
      adapter.modules[path].map { (index: index, weight: adapter.weight, part: $0) }
    }
    let like = present[0].part
    if let other = present.first(where: { $0.part.isEmbedding != like.isEmbedding }) {
      let pair = like.isEmbedding ? (present[0], other) : (other, present[0])
      throw PEFTError(
        .shapeMismatch,
        "is an embedding to the adapter '\(adapters[pair.0.index].name)' and none to "
          + "'\(adapters[pair.1.index].name)'", at: path,
        remedy: "The adapters were made for different base models.")
    }
    // What the config counts as the rank, as rows of A.
    let recorded =
      newRank ?? combination.svdRank ?? present.map(\.part.recordedRank).max()!
    let rank = like.groupRank(recorded: recorded) * like.factors.groups
    let parts = present.map {
      CombinationPart(
        adapter: $0.index, factors: $0.part.factors, scaling: $0.part.scaling, weight: $0.weight)
    }
    var bias: Tensor?
    if makesBias, !like.isEmbedding {
      bias = .zeros([like.factors.outputs])
      if isExact {
        for (_, weight, part) in present {
          if let own = part.bias { bias = bias! + own.scaled(by: Float(weight * part.scaling)) }
        }
      }
    }
    if makesDoRA {
      let (factors, magnitude) = try decomposedChange(
        parts, magnitudes: present.map(\.part.magnitude), at: path, like, rank: rank)
      return Change(like: like, factors: factors, bias: bias, magnitude: magnitude)
    }
    return Change(
      like: like, factors: try combination.combine(parts, at: path, rank: rank), bias: bias,
      magnitude: nil)
  }

  // MARK: Checks

  private func check() throws(PEFTError) {
    for adapter in adapters where adapter.settings.hasTargetParameters {
      throw PEFTError(
        .unsupported,
        "add_weighted_adapter does not support targeting nn.Parameter (problematic adapter "
          + "'\(adapter.name)')")
    }
    try checkSavedModules()
    guard isExact else { return }
    for adapter in adapters {
      if adapter.settings.baseBias != "none" {
        throw PEFTError(
          .unsupported,
          "'bias': \"\(adapter.settings.baseBias)\": biases of the base that were trained cannot be "
            + "combined", at: adapter.name,
          remedy: "Leave the adapter out, or use the compatibility with peft, which drops them.")
      }
      let mutating = ["pissa", "olora", "corda", "lora_ga", "loftq"]
      if let name = adapter.settings.initialization?.lowercased(),
        mutating.contains(where: { name.hasPrefix($0) })
      {
        throw PEFTError(
          .unsupported,
          "'init_lora_weights': \"\(name)\": the adapter belongs to a changed base, so its factors "
            + "alone cannot be combined", at: adapter.name,
          remedy: "Convert it to plain LoRA first.")
      }
    }
    for key in ["layer_replication", "trainable_token_indices", "enable_lora"] {
      let values = adapters.map { $0.config[key] ?? .null }
      if let other = values.firstIndex(where: { $0 != values[0] }) {
        throw PEFTError(
          .unsupported,
          "'\(key)' differs between the adapters '\(adapters[0].name)' and "
            + "'\(adapters[other].name)', so they cannot be combined",
          remedy: key == "enable_lora"
            ? "Make plain LoRA of it first (expandParts)." : "Leave one of them out.")
      }
    }
  }

  private func checkSavedModules() throws(PEFTError) {
    var owners: [String: Set<Int>] = [:]
    for (index, adapter) in adapters.enumerated() {
      for path in Set(adapter.others.compactMap { savedModule($0.key, adapter) }) {
        owners[path, default: []].insert(index)
      }
    }
    let shared = owners.filter { $0.value.count > 1 }.keys.sorted()
    if !shared.isEmpty {
      throw PEFTError(
        .unsupported,
        "Cannot add weighted adapters if they target the same module with modules_to_save, but "
          + "found \(shared.count) such instance(s).",
        remedy: "Leave out all but one of the adapters that hold \(shared.joined(separator: ", "))."
      )
    }
    for path in owners.keys.sorted() {
      if let adapted = paths.first(where: { $0 == path || $0.hasPrefix(path + ".") }) {
        let owner = adapters[owners[path]!.min()!].name
        let other = adapters.first { $0.modules[adapted] != nil }!.name
        throw PEFTError(
          .unsupported,
          "the adapter '\(owner)' trains '\(path)' in full, '\(other)' adapts it", at: adapted,
          remedy: "Leave one of them out.")
      }
    }
  }

  /// The module trained in full that a tensor of an adapter belongs to; `nil` for weights and biases
  /// of the base.
  private func savedModule(_ key: String, _ adapter: LoRAParts) -> String? {
    if key.hasSuffix(".base_layer.weight") { return nil }
    var path = FileKey.name(of: key) ?? key
    path = path.lastIndex(of: ".").map { String(path[..<$0]) } ?? path
    // The outermost module that is named, as that is what was replaced.
    let names = adapters.flatMap(\.settings.modulesToSave)
    let components = path.split(separator: ".").map(String.init)
    for count in 1...max(components.count, 1) {
      let prefix = components.prefix(count).joined(separator: ".")
      if names.contains(where: { TargetMatcher.ends(prefix, with: $0) }) { return prefix }
    }
    if key.hasSuffix(".bias"), adapter.settings.baseBias != "none" { return nil }
    return path
  }

  /// What is taken over unchanged: each tensor from the first adapter that has it.
  private var others: [(key: String, value: Tensor)] {
    var seen: Set<String> = []
    return adapters.flatMap(\.others).filter { seen.insert($0.key).inserted }
  }

  /// The one rank of all modules in peft.
  private func rankInPeft() throws(PEFTError) -> Int {
    let ranks = adapters.map(\.settings.largestRank)
    switch combination.kind {
    case .cat: return ranks.reduce(0, +)
    case let kind where kind.decomposes: return combination.svdRank ?? ranks.max()!
    default:
      guard Set(ranks).count == 1 else { throw Combination.unequalRanks(ranks) }
      return ranks[0]
    }
  }

  private var warnings: [String] {
    var result: [String] = []
    let bases = Set(adapters.compactMap { $0.config["base_model_name_or_path"]?.string })
    if bases.count > 1 {
      result.append(
        "The adapters were made for different base models: "
          + "\(bases.sorted().joined(separator: ", ")).")
    }
    return result
  }
}
