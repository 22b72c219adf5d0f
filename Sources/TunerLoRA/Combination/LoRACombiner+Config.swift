import PEFTCore
import PEFTSupport

extension LoRAConfig {
  /// Sets ranks, and the scaling to 1 everywhere.
  ///
  /// - Parameters:
  ///   - ranks: Those of modules by path; the config's own patterns unless given.
  ///   - rank: The rank of modules without a pattern.
  package mutating func setRanks(_ ranks: [String: Int]?, mostly rank: Int) {
    self.rank = rank
    if let ranks { rankPattern = LoRACombiner.pattern(ranks, mostly: rank).pattern }
    alpha = Double(rank)
    alphaPattern = rankPattern
    usesRSLoRA = false
  }
}

extension LoRACombiner {
  /// peft's config: the first adapter's, with one rank.
  func config(rank: Int, targets: TargetSelection) -> JSONObject {
    var config = adapters[0].config
    config["r"] = .int(rank)
    config["lora_alpha"] = .int(rank)
    config["rank_pattern"] = .object(JSONObject())
    config["alpha_pattern"] = .object(JSONObject())
    for (key, value) in targets.members { config[key] = value }
    return config
  }

  /// A config whose scaling is 1 everywhere, with a pattern where ranks differ.
  func config(ranks: [String: Int], targets: TargetSelection) -> JSONObject {
    var config = (adapters.first { $0.settings.usesDoRA } ?? adapters[0]).config
    let (rank, pattern) = Self.pattern(ranks)
    config["r"] = .int(rank)
    config["lora_alpha"] = .int(rank)
    config["rank_pattern"] = pattern.json
    config["alpha_pattern"] = pattern.json
    config["use_rslora"] = false
    config["init_lora_weights"] = true
    if makesBias { config["lora_bias"] = true }
    var saved: [String] = []
    for name in adapters.flatMap(\.settings.modulesToSave) where !saved.contains(name) {
      saved.append(name)
    }
    config["modules_to_save"] = saved.isEmpty ? .null : .array(saved.map { .string($0) })
    let tasks = adapters.compactMap { $0.config["task_type"] }.filter { !$0.isNull }
    if let task = tasks.first { config["task_type"] = task }
    for (key, value) in targets.members { config[key] = value }
    return config
  }

  /// A rank, that of most modules unless given, and a pattern for the others.
  static func pattern(
    _ ranks: [String: Int], mostly given: Int? = nil
  ) -> (rank: Int, pattern: SuffixPatterns) {
    var counts: [Int: Int] = [:]
    for rank in ranks.values { counts[rank, default: 0] += 1 }
    let most = counts.max { ($0.value, $0.key) < ($1.value, $1.key) }?.key
    let rank = given ?? most ?? 1
    var listed = ranks.filter { $0.value != rank }
    // Keys match the ends of names, so a short one may catch modules that it is not meant for:
    // these get a line of their own.
    for path in ranks.keys where listed[path] == nil {
      if listed.keys.contains(where: { path.hasSuffix("." + $0) }) { listed[path] = rank }
    }
    return (rank, ordered(listed))
  }

  /// A pattern with a line for each module; the first match counts, so longer names come first.
  static func ordered(_ ranks: [String: Int]) -> SuffixPatterns {
    let lines = ranks.sorted { ($1.key.utf8.count, $0.key) < ($0.key.utf8.count, $1.key) }
    return SuffixPatterns(lines.map { .init($0.key, Double($0.value)) })
  }

  /// The targets of the new adapter: those of all.
  func newTargets() throws(PEFTError) -> TargetSelection {
    let selections = adapters.map(\.settings.targets)
    let isText = selections.map { selection in
      switch selection.modules {
      case .regex, .allLinear: return true
      default: return false
      }
    }
    if Set(isText).count > 1 {
      if isExact { return exactTargets }
      throw PEFTError(
        .invalidConfiguration,
        "all adapter configs should follow the same target modules type. Combining adapters with "
          + "`target_modules` type being a mix of list/set and string is not supported.",
        remedy: "Combine them without the compatibility with peft.")
    }
    if isExact, selections.allSatisfy({ $0 == selections[0] }) { return selections[0] }
    var result = selections[0]
    result.modules = nil
    let restrictionsDiffer = selections.contains { selection in
      var other = selection
      other.modules = nil
      return other != result
    }
    var names: Set<String> = []
    var patterns: [String] = []
    for selection in selections {
      switch selection.modules {
      case .list(let list): names.formUnion(list)
      case .regex(let pattern): patterns.append(pattern)
      case .allLinear, nil: return exactTargets
      }
    }
    if isExact, restrictionsDiffer { return exactTargets }
    if isExact {
      var seen: Set<String> = []
      patterns = patterns.filter { seen.insert($0).inserted }
    }
    result.modules =
      patterns.isEmpty
      ? .list(names.sorted()) : .regex(patterns.map { "(\($0))" }.joined(separator: "|"))
    return result
  }

  /// An expression that matches the modules one by one.
  private var exactTargets: TargetSelection {
    let names = Set(paths.map(FileKey.targetPath)).sorted()
    return TargetSelection(
      .regex(names.map { $0.replacing(".", with: "\\.") }.joined(separator: "|")))
  }
}
