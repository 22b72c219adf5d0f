import PEFTSupport

/// Shortens long lists of module names to the suffixes that tell them from all other names, since
/// every name is compared with every module (peft, `_find_minimal_target_modules`).
enum MinimalTargets {
  /// Lists shorter than this stay as they are.
  static let threshold = 20

  /// The shortest suffixes, in whole components, that match all targets and none of the others.
  ///
  /// - Throws: ``PEFTError`` when there are no targets, one is empty, or one is among the others.
  static func suffixes(of targets: [String], others: [String]) throws(PEFTError) -> [String] {
    let targets = Set(targets)
    guard !targets.isEmpty else {
      throw PEFTError(
        .invalidConfiguration, "target_modules should be a list or set of strings.")
    }
    guard !targets.contains("") else {
      throw PEFTError(
        .invalidConfiguration, "target_modules should not contain an empty string.")
    }
    guard targets.isDisjoint(with: others) else {
      throw PEFTError(
        .invalidConfiguration, "target_modules and other_module_names contain common elements")
    }
    let taken = Set(others.flatMap { endings(of: $0) })
    var found: Set<String> = []
    let order = targets.map { ($0, endings(of: $0)) }.sorted {
      $0.1.lexicographicallyPrecedes($1.1)
    }
    for (name, endings) in order {
      for ending in endings where !found.contains(ending) && !taken.contains(ending) {
        if !found.contains(where: { name.hasSuffix("." + $0) }) {
          found.insert(ending)
          break
        }
      }
    }
    return found.sorted()
  }

  /// "a.b.c" as "c", "b.c", "a.b.c".
  private static func endings(of name: String) -> [String] {
    let parts = name.split(separator: ".", omittingEmptySubsequences: false)
    return parts.indices.reversed().map { parts[$0...].joined(separator: ".") }
  }

  /// Shortens a selection's list when it is long.
  static func shorten(
    _ selection: inout TargetSelection, modules: [String]
  ) throws(PEFTError) {
    guard case .list(let names) = selection.modules, Set(names).count >= threshold else { return }
    let targets = Set(names)
    let suffixes = targets.map { "." + $0 }
    let others = modules.filter { name in
      !targets.contains(name) && !suffixes.contains { name.hasSuffix($0) }
    }
    let short = try Self.suffixes(of: names, others: others)
    if short.count < targets.count { selection.modules = .list(short) }
  }
}
