import PEFTSupport

/// One component of a `tokenizer.json` (an object with a `type`) and where it stands.
struct Component {
  let file: String
  let path: String
  let type: String
  private let object: JSONObject

  /// Takes the object at `path` of `file`.
  init(_ value: JSONValue, file: String, path: String) throws(PEFTError) {
    guard let object = value.object else {
      throw PEFTError(
        .malformedFile, "'\(path)' is \(value.kindName), an object was expected", at: file)
    }
    self.file = file
    self.path = path
    self.object = object
    self.type = object["type"]?.string ?? ""
  }

  /// The component `value`, which is another form of this one.
  func replacing(type: String) throws(PEFTError) -> Component {
    var object = object
    object["type"] = .string(type)
    return try Component(.object(object), file: file, path: path)
  }

  /// The raw value of `key`; `null` counts as absent.
  func value(_ key: String) -> JSONValue? {
    guard let value = object[key], !value.isNull else { return nil }
    return value
  }

  func bool(_ key: String, default fallback: Bool) throws(PEFTError) -> Bool {
    guard let value = value(key) else { return fallback }
    guard let result = value.bool else { throw wrong(key, value, "true or false") }
    return result
  }

  func int(_ key: String, default fallback: Int) throws(PEFTError) -> Int {
    guard let value = value(key) else { return fallback }
    guard let result = value.int, result >= 0 else { throw wrong(key, value, "a count") }
    return result
  }

  func string(_ key: String, default fallback: String? = nil) throws(PEFTError) -> String {
    guard let value = value(key) else {
      if let fallback { return fallback }
      throw PEFTError(.malformedFile, "'\(path)' lacks '\(key)'", at: file)
    }
    guard let result = value.string else { throw wrong(key, value, "a string") }
    return result
  }

  /// A string of exactly one scalar.
  func scalar(_ key: String, default fallback: String? = nil) throws(PEFTError) -> UInt32 {
    let text = try string(key, default: fallback)
    guard let first = text.unicodeScalars.first, text.unicodeScalars.count == 1 else {
      throw PEFTError(
        .malformedFile, "'\(path).\(key)' is '\(text)', one character was expected", at: file)
    }
    return first.value
  }

  /// The components in the list `key`.
  func children(_ key: String) throws(PEFTError) -> [Component] {
    guard let value = value(key), let elements = value.array else {
      throw PEFTError(.malformedFile, "'\(path)' lacks the list '\(key)'", at: file)
    }
    var result: [Component] = []
    for (offset, element) in elements.enumerated() {
      result.append(try Component(element, file: file, path: "\(path).\(key)[\(offset)]"))
    }
    return result
  }

  /// The pattern under `key`: literal text or a regular expression.
  func pattern(_ key: String = "pattern") throws(PEFTError) -> Pattern {
    if let text = value(key)?["String"]?.string { return .literal(text) }
    if let text = value(key)?["Regex"]?.string { return .regex(text) }
    throw PEFTError(
      .malformedFile, "'\(path).\(key)' is neither a String nor a Regex pattern", at: file)
  }

  enum Pattern {
    case literal(String)
    case regex(String)
  }

  /// An error that says that this component, of the given kind, is not implemented.
  func unsupported(_ kind: String) -> PEFTError {
    PEFTError(
      .unsupported, "the \(kind) '\(type)' (at '\(path)') is not supported", at: file,
      remedy: "Export the tokenizer without it, or tokenize outside of this package.")
  }

  /// An error that says that a setting of this component is not implemented.
  func unsupportedSetting(_ key: String, _ found: String) -> PEFTError {
    PEFTError(
      .unsupported,
      "'\(path).\(key)' of the component '\(type)' is \(found), which is not supported",
      at: file, remedy: "Export the tokenizer without it, or tokenize outside of this package.")
  }

  /// An error that says that a value has the wrong type.
  func wrong(_ key: String, _ value: JSONValue, _ expected: String) -> PEFTError {
    PEFTError(
      .malformedFile, "'\(path).\(key)' is \(value.kindName), \(expected) was expected", at: file)
  }
}
