/// How the keys of a state name the tensors of an adapter.
public enum AdapterKeyForm: Sendable {
  /// `base_model.model.layer.lora_A.weight`: peft's files.
  case file
  /// `layer.lora_A.weight`: peft's for layers that were injected without a wrapper.
  case injected
  /// `layer.lora_A`: loralib's.
  case loralib

  /// A key of peft's files in this form.
  func key(_ fileKey: String) -> String {
    guard self != .file, let name = FileKey.name(of: fileKey) else { return fileKey }
    guard self == .loralib else { return name }
    for factor in ["lora_A", "lora_B"] {
      if name.hasSuffix(".\(factor).weight") { return String(name.dropLast(".weight".count)) }
      if name.hasSuffix(".lora_embedding_\(factor.suffix(1))") {
        return String(name.dropLast("lora_embedding_A".count)) + factor
      }
    }
    let bias = FileKey.inside("") + ".bias"
    return name.hasSuffix(bias) ? name.dropLast(bias.count) + ".bias" : name
  }
}

/// The keys of peft's files: a module's path and the end of the tensor's name, behind the two
/// wrappers that peft has around a model.
package enum FileKey {
  private static let prefix = "base_model.model."
  /// What peft calls a layer, or a parameter, inside of what it wraps around it.
  private static let wrapped = ".base_layer"

  /// The key of a name.
  package static func key(_ name: String) -> String { prefix + name }

  /// The name of a key; `nil` for a key of another form.
  package static func name(of key: String) -> String? {
    key.hasPrefix(prefix) ? String(key.dropFirst(prefix.count)) : nil
  }

  /// The path under which files have what is inside of a layer with adapters.
  static func inside(_ path: String) -> String { path + wrapped }

  /// A path of files as the model has it: layers inside of adapted ones have their own names.
  package static func modulePath(_ path: String) -> String {
    path.replacing("\(wrapped).", with: ".")
  }

  /// The path of the module that was targeted: of what is inside of an adapted layer, that layer's.
  package static func targetPath(_ path: String) -> String {
    path.firstRange(of: "\(wrapped).").map { String(path[..<$0.lowerBound]) } ?? path
  }

  /// The longest path that a name begins with and that is known, and what follows it.
  ///
  /// - Parameter known: What is known of a path, if anything.
  package static func split<Value>(
    _ name: String, _ known: (String) -> Value?
  ) -> (path: String, value: Value, rest: String)? {
    var end = name.lastIndex(of: ".")
    while let dot = end {
      let path = String(name[..<dot])
      if let value = known(path) { return (path, value, String(name[name.index(after: dot)...])) }
      end = name[..<dot].lastIndex(of: ".")
    }
    return nil
  }
}
