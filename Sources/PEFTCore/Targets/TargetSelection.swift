import PEFTSupport

/// Which modules an adapter goes to, as `target_modules` says.
public enum TargetModules: Sendable, Equatable {
  /// Names or dotted suffixes of names.
  case list([String])
  /// A regular expression that must match the whole name.
  case regex(String)
  /// Every linear layer but the output head.
  case allLinear
}

/// How the modules of an adapter are chosen: the keys `target_modules`, `exclude_modules`,
/// `layers_to_transform` and `layers_pattern`.
public struct TargetSelection: Sendable, Equatable {
  /// What is chosen; `nil` takes the tuner's default for the model type.
  public var modules: TargetModules?
  /// What is left out of it.
  public var excluded: TargetModules?
  /// Indices of the layers that a list is restricted to.
  public var layers: [Int]?
  /// Names of the lists that those indices count in.
  public var layersPattern: [String]
  /// Whether the file gives one index instead of a list.
  var isSingleLayer = false
  /// Whether the file gives one name instead of a list.
  var isSinglePattern = false

  /// Creates a selection.
  public init(
    _ modules: TargetModules? = nil, excluding excluded: TargetModules? = nil,
    layers: [Int]? = nil, layersPattern: [String] = []
  ) {
    self.modules = modules
    self.excluded = excluded
    self.layers = layers
    self.layersPattern = layersPattern
  }

  /// Reads the four keys.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` for wrong types and for combinations that
  ///   peft refuses.
  public init(_ reader: inout ConfigReader) throws(PEFTError) {
    modules = try Self.modules("target_modules", &reader)
    excluded = try Self.modules("exclude_modules", &reader)
    layers = try reader.ints("layers_to_transform")
    isSingleLayer = reader.value("layers_to_transform")?.int != nil
    layersPattern = try reader.strings("layers_pattern")?.filter { !$0.isEmpty } ?? []
    isSinglePattern = reader.value("layers_pattern")?.string != nil
    try validate()
  }

  /// Refuses combinations that peft refuses.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`.
  func validate() throws(PEFTError) {
    let isPattern: Bool
    switch modules {
    case .regex, .allLinear: isPattern = true
    default: isPattern = false
    }
    if isPattern, layers != nil {
      throw PEFTError(
        .invalidConfiguration,
        "`layers_to_transform` cannot be used when `target_modules` is a str.")
    }
    if isPattern, !layersPattern.isEmpty {
      throw PEFTError(
        .invalidConfiguration, "`layers_pattern` cannot be used when `target_modules` is a str.")
    }
    if !layersPattern.isEmpty, layers == nil {
      throw PEFTError(
        .invalidConfiguration,
        "When `layers_pattern` is specified, `layers_to_transform` must also be specified.")
    }
  }

  /// The four keys for a config file; lists are sorted, so that equal configs give equal files.
  public var members: [(String, JSONValue)] {
    [
      ("target_modules", Self.json(modules)), ("exclude_modules", Self.json(excluded)),
      ("layers_to_transform", layersValue), ("layers_pattern", patternValue),
    ]
  }

  private var layersValue: JSONValue {
    guard let layers else { return .null }
    if isSingleLayer, layers.count == 1 { return .int(layers[0]) }
    return .array(layers.map { .int($0) })
  }

  private var patternValue: JSONValue {
    if layersPattern.isEmpty { return .null }
    if isSinglePattern, layersPattern.count == 1 { return .string(layersPattern[0]) }
    return .array(layersPattern.map { .string($0) })
  }

  /// What a message that names the layers says of them, in peft's words.
  var layersNote: String {
    func python(_ value: JSONValue) -> String { value.string ?? PythonText.value(value) }
    var text = ""
    if layers != nil {
      text += " Note: You specified 'layers_to_transform': \(python(layersValue))."
    }
    if !layersPattern.isEmpty {
      text += " You also specified 'layers_pattern': \(python(patternValue))."
    }
    return text
  }

  /// What to do about a pattern that looks like a list of names.
  var listNote: String? {
    guard case .regex(let pattern) = modules, pattern.contains(",") else { return nil }
    return "A text is one pattern; a list of names is written [q_proj, v_proj]."
  }

  private static func modules(
    _ key: String, _ reader: inout ConfigReader
  ) throws(PEFTError) -> TargetModules? {
    guard let value = reader.value(key) else { return nil }
    if let text = value.string {
      return text.lowercased() == "all-linear" ? .allLinear : .regex(text)
    }
    return .list(try reader.strings(key) ?? [])
  }

  private static func json(_ modules: TargetModules?) -> JSONValue {
    switch modules {
    case nil: return .null
    case .list(let names): return .array(Set(names).sorted().map { .string($0) })
    case .regex(let pattern): return .string(pattern)
    case .allLinear: return "all-linear"
    }
  }
}
