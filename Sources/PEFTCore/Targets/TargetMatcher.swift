import NN
import PEFTSupport

/// Decides for each module name whether an adapter targets it, by peft's rules
/// (`check_target_module_exists`).
public struct TargetMatcher {
  private enum Rule {
    case names(Set<String>, suffixes: [String])
    case pattern(NamePattern)

    init(_ modules: TargetModules, key: String) throws(PEFTError) {
      switch modules {
      case .list(let names): self = .names(Set(names), suffixes: names.map { "." + $0 })
      case .regex(let pattern): self = .pattern(try NamePattern(pattern, key: key))
      case .allLinear: preconditionFailure("all-linear is expanded before matching")
      }
    }

    func matches(_ name: String) -> Bool {
      switch self {
      case .names(let names, let suffixes):
        return names.contains(name) || suffixes.contains { name.hasSuffix($0) }
      case .pattern(let pattern): return pattern.matches(name)
      }
    }

    func isExact(_ name: String) -> Bool {
      if case .names(let names, _) = self { return names.contains(name) }
      return false
    }
  }

  private let target: Rule
  private let excluded: Rule?
  private let layers: Set<Int>?
  private let layerPatterns: [NamePattern]
  private let savedModules: [String]

  /// Creates a matcher.
  ///
  /// - Parameters:
  ///   - selection: With `modules` set and not `.allLinear`; ``expandAllLinear(in:outputHeads:)``
  ///     turns that into a list.
  ///   - savedModules: Modules trained in full, which are never adapted, nor is what is in them.
  /// - Throws: ``PEFTError`` for an invalid regular expression.
  public init(_ selection: TargetSelection, savedModules: [String] = []) throws(PEFTError) {
    target = try Rule(selection.modules ?? .list([]), key: "target_modules")
    if let modules = selection.excluded {
      excluded = try Rule(modules, key: "exclude_modules")
    } else {
      excluded = nil
    }
    layers = selection.layers.flatMap { $0.isEmpty ? nil : Set($0) }
    var patterns: [NamePattern] = []
    if selection.layersPattern.isEmpty {
      patterns.append(try NamePattern(#".*?\.[^.]*\.(\d+)\."#, key: "layers_to_transform"))
    }
    for pattern in selection.layersPattern {
      patterns.append(
        try NamePattern(
          #"(?:.*?\.)?"# + pattern + #"\.(\d+)\."#, key: "layers_pattern", writtenAs: pattern))
    }
    layerPatterns = patterns
    self.savedModules = savedModules
  }

  /// What became of a name.
  public enum Outcome: Sendable { case matched, excluded, other }

  /// Decides about a module's dotted name.
  public func outcome(_ name: String) -> Outcome {
    if excluded?.matches(name) == true { return .excluded }
    if savedModules.contains(where: { Self.contains(name, $0) }) { return .excluded }
    guard target.matches(name) else { return .other }
    if let layers, !target.isExact(name) {
      guard let index = layerPatterns.lazy.compactMap({ $0.index(name) }).first,
        layers.contains(index)
      else { return .other }
    }
    return .matched
  }

  /// Whether a dotted name has `part` as a run of whole components.
  static func contains(_ name: String, _ part: String) -> Bool {
    ends(name, with: part) || name.hasPrefix(part + ".") || name.contains("." + part + ".")
  }

  /// Whether a dotted name has `part` as its last components, or is that.
  package static func ends(_ name: String, with part: String) -> Bool {
    name == part || name.hasSuffix("." + part)
  }

  /// The last component of a dotted name.
  static func lastComponent(_ name: String) -> String {
    String(name.split(separator: ".").last ?? "")
  }

  /// The names of every linear layer of a model but its output head.
  ///
  /// - Parameters:
  ///   - model: The model.
  ///   - outputHeads: Paths of the output head, or of the classification head.
  public static func expandAllLinear(in model: any Module, outputHeads: [String]) -> [String] {
    model.namedModules().filter { path, module in
      (module is Linear || module is Conv1D) && !outputHeads.contains(path)
    }.map(\.path)
  }
}
