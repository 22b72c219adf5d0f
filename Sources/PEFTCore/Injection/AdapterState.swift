import NN
import PEFTSupport
import Tensors

/// How the keys of a state name the tensors of an adapter.
public enum AdapterKeyForm: Sendable {
  /// `base_model.model.layer.lora_A.weight`: peft's files.
  case file
  /// `layer.lora_A.weight`: peft's for layers that were injected without a wrapper.
  case injected
  /// `layer.lora_A`: loralib's.
  case loralib
}

extension PeftModel {
  /// The tensors of an adapter under keys of a form; the adapter's name is not in them.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func state(
    of adapter: String, form: AdapterKeyForm = .file
  ) throws(PEFTError) -> TensorTable {
    try TensorTable(
      try tensors(of: adapter).filter(\.isStored).map {
        (Self.key($0.key, as: form), $0.parameter.value)
      },
      path: "the state of '\(adapter)'")
  }

  /// Overwrites the values of an adapter with those of a state.
  ///
  /// As in peft, tensors that are missing leave their places as they are, and those without a
  /// place are left over; the report lists both.
  ///
  /// - Parameters:
  ///   - state: The tensors.
  ///   - adapter: The adapter.
  ///   - form: How the state's keys name them.
  ///   - ignoringMismatchedSizes: Whether tensors of another shape are left out and reported.
  /// - Throws: ``PEFTError``: `shapeMismatch`, `invalidState` while the adapter is merged, or an
  ///   unknown adapter; no value is changed then.
  @discardableResult
  public func setState(
    _ state: any TensorFile, of adapter: String, form: AdapterKeyForm = .file,
    ignoringMismatchedSizes: Bool = false
  ) throws(PEFTError) -> LoadReport {
    try loadTensors(
      state, into: adapter, strict: false, form: form,
      ignoringMismatchedSizes: ignoringMismatchedSizes)
  }

  static let filePrefix = "base_model.model."

  /// A key of peft's files in another form.
  static func key(_ key: String, as form: AdapterKeyForm) -> String {
    guard form != .file, key.hasPrefix(filePrefix) else { return key }
    let short = String(key.dropFirst(filePrefix.count))
    guard form == .loralib else { return short }
    for factor in ["lora_A", "lora_B"] {
      if short.hasSuffix(".\(factor).weight") { return String(short.dropLast(".weight".count)) }
      if short.hasSuffix(".lora_embedding_\(factor.suffix(1))") {
        return String(short.dropLast("lora_embedding_A".count)) + factor
      }
    }
    return short
  }

  /// The layers for which the keys of a state hold adapters, whatever their form.
  func sites(namedBy keys: [String]) throws(PEFTError) -> [Int] {
    let places = Dictionary(
      uniqueKeysWithValues: hosts.enumerated().map { ($0.element.path, $0.offset) })
    var result: Set<Int> = []
    for key in keys {
      // peft has what is inside of an adapted layer under that layer's `base_layer`.
      let plain = key.replacing(".base_layer.", with: ".")
      let short =
        plain.hasPrefix(Self.filePrefix) ? plain.dropFirst(Self.filePrefix.count) : plain[...]
      // The longest path that the key begins with, and what follows it.
      var end = short.lastIndex(of: ".")
      while let dot = end {
        if let place = places[String(short[..<dot])] {
          let rest = short[short.index(after: dot)...]
          if rest != "weight", rest != "bias" { result.insert(place) }
          break
        }
        end = short[..<dot].lastIndex(of: ".")
      }
    }
    if result.isEmpty {
      throw PEFTError(
        .noMatchingModule, "no key of the state belongs to a layer of the model",
        remedy: keys.first.map { "The first is '\($0)'." })
    }
    return withInnerSites(result.sorted())
  }
}
