import PEFT

/// What an adapter folder holds, as text.
struct AdapterSummary {
  private let folder: AdapterFolder
  private let config: JSONObject

  /// Summarises a folder of any method, also of one that this program does not know.
  ///
  /// - Throws: ``PEFTError`` when a file cannot be read.
  init(_ folder: AdapterFolder, registry: TunerRegistry = .standard) throws(PEFTError) {
    self.folder = folder
    config = try registry.members(of: folder)
  }

  /// Settings, then tensors.
  var text: String {
    let names = settings.map(\.name)
    let width = names.map(\.count).max() ?? 0
    var lines = [folder.path]
    for (name, value) in settings {
      lines.append("  \(padded(name, width))  \(value)")
    }
    let entries = folder.tensors.entries
    let parameters = entries.reduce(0) { $0 + $1.count }
    let bytes = entries.reduce(0) { $0 + $1.byteCount }
    lines.append(
      "\(grouped(parameters)) parameters in \(entries.count) tensors, \(byteSize(bytes))")
    let groups = TensorGroup.folding(entries)
    let nameWidth = groups.map(\.name.count).max() ?? 0
    let typeWidth = groups.map(\.type.rawValue.count).max() ?? 0
    for group in groups {
      lines.append(
        "  \(padded(group.name, nameWidth))  \(padded(group.type.rawValue, typeWidth))  "
          + "\(group.shape)" + (group.count > 1 ? "  \(group.count) x" : ""))
    }
    return lines.joined(separator: "\n")
  }

  /// The members of the config that say something: what is null, empty or the default goes without
  /// saying.
  private var settings: [(name: String, value: String)] {
    let named = [
      ("peft_type", "method"), ("task_type", "task"), ("base_model_name_or_path", "base model"),
      ("r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout"),
      ("target_modules", "targets"), ("modules_to_save", "saved modules"),
    ]
    let silent = ["inference_mode", "peft_version", "auto_mapping", "revision"]
    var result: [(String, String)] = []
    for (key, name) in named {
      if let value = config[key], !value.isNull {
        result.append((name, Self.plain(value)))
      }
    }
    for (key, value) in config.members.sorted(by: { $0.key < $1.key }) {
      if named.contains(where: { $0.0 == key }) || silent.contains(key) { continue }
      if Self.isDefault(key, value) { continue }
      result.append((key, Self.plain(value)))
    }
    return result
  }

  /// Whether a member says nothing, or what it says by default; that is not `false` for every switch.
  private static func isDefault(_ key: String, _ value: JSONValue) -> Bool {
    switch value {
    case .null: return true
    case .array(let elements): return elements.isEmpty
    case .object(let object): return object.members.isEmpty
    default: return value == (key == "dora_detach_norm" ? true : defaults[key])
    }
  }

  private static let defaults = LoRAConfig().object

  private static func plain(_ value: JSONValue) -> String {
    switch value {
    case .string(let text): return text
    case .array(let elements):
      let texts = elements.compactMap(\.string)
      return texts.count == elements.count
        ? texts.sorted().joined(separator: ", ") : value.text(.spaced)
    default: return value.text(.spaced)
    }
  }

  private func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }
}

/// Tensors that differ in nothing but a layer's number.
struct TensorGroup: Equatable {
  /// The name, with the layers as in `layer.(0-5).attention`.
  var name: String
  var type: ElementType
  var shape: [Int]
  var count: Int

  /// Folds tensors of the same name, type and shape over the layers, in order of name.
  static func folding(_ entries: [TensorEntry]) -> [TensorGroup] {
    struct Key: Hashable {
      var head: String
      var tail: String
      var type: ElementType
      var shape: [Int]
    }
    var order: [Key] = []
    var layers: [Key: [Int]] = [:]
    for entry in entries {
      let parts = entry.name.split(separator: ".", omittingEmptySubsequences: false)
      let place = parts.firstIndex { Int($0) != nil } ?? parts.endIndex
      let key = Key(
        head: parts[..<place].joined(separator: "."),
        tail: parts.dropFirst(place + 1).joined(separator: "."), type: entry.type,
        shape: entry.shape)
      if layers[key] == nil {
        order.append(key)
        layers[key] = []
      }
      if place < parts.endIndex { layers[key]?.append(Int(parts[place])!) }
    }
    return order.map { key in
      let numbers = (layers[key] ?? []).sorted()
      let middle =
        numbers.isEmpty ? "" : numbers.count == 1 ? "\(numbers[0])" : "(\(ranges(numbers)))"
      let name = [key.head, middle, key.tail].filter { !$0.isEmpty }.joined(separator: ".")
      return TensorGroup(
        name: name, type: key.type, shape: key.shape, count: max(1, numbers.count))
    }.sorted { $0.name < $1.name }
  }

  /// `[0, 1, 2, 5]` as "0-2,5".
  private static func ranges(_ numbers: [Int]) -> String {
    var runs: [ClosedRange<Int>] = []
    for number in numbers {
      if let last = runs.last, last.upperBound + 1 == number {
        runs[runs.count - 1] = last.lowerBound...number
      } else {
        runs.append(number...number)
      }
    }
    return runs.map { $0.count == 1 ? "\($0.lowerBound)" : "\($0.lowerBound)-\($0.upperBound)" }
      .joined(separator: ",")
  }
}
