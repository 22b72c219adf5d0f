import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// The tensors of an adapter under keys of a form; the adapter's name is not in them.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func state(
    of adapter: String, form: AdapterKeyForm = .file, embeddings: EmbeddingSaving = .automatic
  ) throws(PEFTError) -> TensorTable {
    warnings = []
    var items = try tensors(of: adapter).filter(\.isStored).map { (key: $0.key, value: $0.value) }
    if form != .loralib {
      items += embeddingTensors(of: try record(adapter), saving: embeddings)
    }
    return try TensorTable(
      items.map { (form.key($0.key), $0.value) }, path: "the state of '\(adapter)'")
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

  /// The layers for which the keys of a state hold adapters, whatever their form.
  func sites(namedBy keys: [String]) throws(PEFTError) -> [Int] {
    var result: Set<Int> = []
    for key in keys {
      let plain = FileKey.modulePath(FileKey.name(of: key) ?? key)
      guard let found = FileKey.split(plain, { places[$0] }) else { continue }
      // Trained rows of an embedding are none of its layers.
      if found.rest != "weight", found.rest != "bias", !found.rest.hasPrefix("token_adapter.") {
        result.insert(found.value)
      }
    }
    if result.isEmpty {
      throw PEFTError(
        .noMatchingModule, "no key of the state belongs to a layer of the model",
        remedy: keys.first.map { "The first is '\($0)'." })
    }
    return result.sorted()
  }
}
