import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// Adds an adapter from a file of loralib's `lora_state_dict`, pickled or as safetensors.
  ///
  /// Such a file has no settings: its keys say which layers are adapted, `layer.lora_A`, and which
  /// modules were trained in full; rank, alpha and dropout are the caller's to know. Every tensor
  /// must find its place. ``state(of:form:)`` with the form `loralib` gives the same keys back.
  ///
  /// - Parameters:
  ///   - path: The file.
  ///   - name: The adapter's name.
  ///   - config: The settings; without targets, those that the keys name are recorded.
  /// - Returns: What was loaded.
  /// - Throws: ``PEFTError``: a malformed file, keys that no module has, other shapes. The model is
  ///   then as it was before.
  @discardableResult
  public func loadLoralib(
    _ path: String, as name: String = "default", config: any TunerConfig
  ) throws(PEFTError) -> LoadReport {
    let file: any TensorFile =
      path.hasSuffix(".safetensors") ? try SafetensorsFile(path) : try TorchFile(path)
    let factors = file.names.filter { $0.hasSuffix(".lora_A") || $0.hasSuffix(".lora_B") }
    if factors.isEmpty {
      throw PEFTError(
        .missingTensor, "has no tensor whose name ends in lora_A or lora_B", at: path,
        remedy: "This is not a file of loralib.")
    }
    var config = config
    // Modules that are wholly in the file, unless the config or the task saves them already.
    let saved = try config.modulesToSave + taskModules(config)
    for key in file.names where !factors.contains(key) {
      guard let dot = key.lastIndex(of: ".") else { continue }
      let module = String(key[..<dot])
      // Biases that the settings ask for are no modules that are trained in full.
      let isBias = config.bias != .none && key[dot...] == ".bias"
      if isBias, file[module + ".weight"] == nil { continue }
      if !(saved + config.modulesToSave).contains(where: { TargetMatcher.contains(module, $0) }) {
        config.modulesToSave.append(module)
      }
    }
    if config.targets.modules == nil {
      do {
        let paths = try sites(namedBy: factors).map { hosts[$0].path }
        config.targets.modules = .list(shortened(paths))
      } catch {
        throw error.located(at: path)
      }
    }
    let origin = AdapterOrigin(layers: .named(by: factors), isLoading: true)
    return try add(name, any: config, from: origin, path: path) { () throws(PEFTError) in
      try loadTensors(
        file, into: name, strict: true, form: .loralib, ignoringMismatchedSizes: false)
    }.filled
  }

  /// The last components of paths, if no other layer has one of them; else the paths.
  private func shortened(_ paths: [String]) -> [String] {
    let names = Set(paths.map(TargetMatcher.lastComponent))
    let all = Set(paths)
    let reachesOthers = hosts.contains {
      names.contains(TargetMatcher.lastComponent($0.path)) && !all.contains($0.path)
    }
    return (reachesOthers ? all : names).sorted()
  }
}
