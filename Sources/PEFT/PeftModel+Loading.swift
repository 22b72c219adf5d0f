import Models
import PEFTCore
import PEFTSupport

extension PeftModel {
  /// Wraps a model that was read from a folder.
  ///
  /// - Parameters:
  ///   - loaded: What ``ModelLoader`` returned.
  ///   - name: The name that adapters record as their base; the folder by default.
  ///   - registry: The methods that can be used.
  public convenience init(
    _ loaded: LoadedModel, name: String? = nil, registry: TunerRegistry = .standard
  ) {
    self.init(
      loaded.model,
      info: BaseModelInfo(
        modelType: loaded.model.configuration.modelType, nameOrPath: name ?? loaded.folder,
        outputHeads: loaded.outputHeads),
      registry: registry)
  }
}
