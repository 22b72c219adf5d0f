import NN
import PEFTSupport
import Tensors

/// Adapters on any tree of modules, without a ``PeftModel`` to keep.
///
/// The layers themselves hold the adapters and what is known of them, so each of these calls may
/// be made with nothing but the tree. They are peft's `inject_adapter_in_model`,
/// `get_peft_model_state_dict`, `set_peft_model_state_dict`, `set_adapter`, `delete_adapter` and
/// `set_requires_grad`.
///
/// ```swift
/// let adapters = InjectedAdapters(in: tree, registry: .standard)
/// try adapters.inject(LoRAConfig(rank: 8, targets: .init(.list(["query"]))))
/// ```
public struct InjectedAdapters {
  /// The same adapters as a wrapper sees them, with all that it offers.
  public let model: PeftModel

  /// Finds the adapters in a tree; its parameters are frozen when there are none yet.
  ///
  /// - Parameters:
  ///   - tree: The modules.
  ///   - modelType: config.json's `model_type`, where the targets are to come from it.
  ///   - registry: The methods that can be used.
  public init(in tree: any Module, modelType: String = "", registry: TunerRegistry) {
    model = PeftModel(tree, info: BaseModelInfo(modelType: modelType), registry: registry)
  }

  /// The names of the adapters.
  public var names: [String] { model.adapterNames }

  /// Puts a new adapter into the tree; the first one is active.
  ///
  /// - Parameters:
  ///   - config: The settings.
  ///   - name: Unique in this tree.
  ///   - stateKeys: Keys of a state that decide, in place of the config's targets, which layers
  ///     get an adapter; its values are not used. The report says where config and keys differ.
  ///   - seed: Seed of the initial values.
  ///   - calibration: Batches, for initial values that depend on data.
  /// - Throws: ``PEFTError`` as ``PeftModel/add(_:_:seed:calibration:)``; the tree is as before then.
  @discardableResult
  public func inject(
    _ config: any TunerConfig, as name: String = "default", stateKeys: [String]? = nil,
    seed: UInt64 = 0, calibration: Calibration? = nil
  ) throws(PEFTError) -> TargetReport {
    let origin = AdapterOrigin(layers: stateKeys.map { .named(by: $0) } ?? .targeted)
    return try model.add(
      name, any: config, seed: seed, from: origin, calibration: calibration)
  }

  /// The tensors of an adapter; keys have no prefix, as the tree has no wrapper.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func state(of name: String = "default") throws(PEFTError) -> TensorTable {
    try model.state(of: name, form: .injected)
  }

  /// Overwrites the values of an adapter; keys may have peft's prefix or lack it.
  ///
  /// - Parameters:
  ///   - state: The tensors, a file or an ``TensorTable``.
  ///   - name: The adapter.
  ///   - ignoringMismatchedSizes: Whether tensors of another shape are left out and reported.
  /// - Returns: Which keys were missing, and which belong to nothing.
  /// - Throws: ``PEFTError`` as ``PeftModel/setState(_:of:form:ignoringMismatchedSizes:)``.
  @discardableResult
  public func setState(
    _ state: any TensorFile, of name: String = "default", ignoringMismatchedSizes: Bool = false
  ) throws(PEFTError) -> LoadReport {
    let hasPrefix = state.names.contains { FileKey.name(of: $0) != nil }
    return try model.setState(
      state, of: name, form: hasPrefix ? .file : .injected,
      ignoringMismatchedSizes: ignoringMismatchedSizes)
  }

  /// Makes adapters the active and trainable ones.
  ///
  /// - Throws: ``PEFTError`` as ``PeftModel/setActive(_:isInference:)``.
  public func setActive(_ names: [String]) throws(PEFTError) { try model.setActive(names) }

  /// Decides whether training changes adapters.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` for an unknown name.
  public func setTrainable(_ names: [String], _ isTrainable: Bool) throws(PEFTError) {
    try model.setTrainable(names, isTrainable)
  }

  /// Takes an adapter out of the tree.
  ///
  /// - Throws: ``PEFTError`` as ``PeftModel/delete(_:)``.
  public func delete(_ name: String) throws(PEFTError) { try model.delete(name) }
}
