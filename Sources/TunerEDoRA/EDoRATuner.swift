import NN
import PEFTCore
import PEFTSupport
import TunerLoRA

/// Extremely low-rank weight-decomposed adaptation (Nasiri and Garraghan, arXiv 2501.12067):
/// W′ = m∘(W + s·B·R·A)/‖W + s·B·R·A‖, where A and B are frozen, from the singular vectors of W,
/// and R, r×r, and m train.
public enum EDoRATuner: Tuner {
  /// The settings of the method.
  public typealias Config = EDoRAConfig

  /// The method's name in a config that has everything in one object; see ``EDoRAConfig/files``.
  public static let peftType = EDoRAConfig.Method.edora.rawValue
  /// The class name that peft prints around the base model.
  public static let modelTypeName = LoRATuner.modelTypeName
  /// What makes layers.
  public static let dispatchers: [any Dispatcher] = [EDoRADispatcher()]
  /// `adapter_config.json` and the recipe of the repository's form.
  public static let settingsFiles: Set<String> = RepositoryForm.settingsFiles

  /// A folder with the tensors or the recipe of the EDoRA repository is one of EDoRA's, although its
  /// config is that of DoRA.
  public static func config(of folder: AdapterFolder) throws(PEFTError) -> JSONObject? {
    try RepositoryForm.config(of: folder, .edora)
  }

  /// The targets for a model type when the config names none.
  public static func defaultTargets(modelType: String) -> TargetModules? {
    LoRATuner.defaultTargets(modelType: modelType)
  }

  /// Those that LoRA does not reach.
  public static func unreachableModules(modelType: String) -> Set<String> {
    LoRATuner.unreachableModules(modelType: modelType)
  }
}

/// LoRA-XS (Bałazy et al., arXiv 2405.17604): W′ = W + s·B·R·A, where A and B are frozen, from the
/// singular vectors of W, and R, r×r, trains.
public enum LoRAXSTuner: Tuner {
  /// The settings of the method.
  public typealias Config = EDoRAConfig

  /// The method's name in a config that has everything in one object; see ``EDoRAConfig/files``.
  public static let peftType = EDoRAConfig.Method.loraXS.rawValue
  /// The method's name in the settings of a run.
  public static let methodName = "lora-xs"
  /// The class name that peft prints around the base model.
  public static let modelTypeName = LoRATuner.modelTypeName
  /// What makes layers.
  public static let dispatchers: [any Dispatcher] = [EDoRADispatcher()]
  /// `adapter_config.json` and the recipe of the repository's form.
  public static let settingsFiles: Set<String> = RepositoryForm.settingsFiles

  /// A folder with the tensors of the LoRA-XS repository, although its config is that of LoRA.
  public static func config(of folder: AdapterFolder) throws(PEFTError) -> JSONObject? {
    try RepositoryForm.config(of: folder, .loraXS)
  }

  /// The targets for a model type when the config names none.
  public static func defaultTargets(modelType: String) -> TargetModules? {
    LoRATuner.defaultTargets(modelType: modelType)
  }

  /// Those that LoRA does not reach.
  public static func unreachableModules(modelType: String) -> Set<String> {
    LoRATuner.unreachableModules(modelType: modelType)
  }
}

/// What the EDoRA and the LoRA-XS repository save: a LoRA config of peft 0.10, tensors of LoRA with R
/// beside them, and the recipe in `reconstr_config.json`.
enum RepositoryForm {
  /// The members of our config from such a folder; `nil` when it is none, or of the other method.
  static func config(
    of folder: AdapterFolder, _ method: EDoRAConfig.Method
  ) throws(PEFTError) -> JSONObject? {
    var object = folder.config
    // Adapters that had a magnitude before they were converted may have it from there.
    if method == .loraXS { object["dora_detach_norm"] = nil }
    if object["peft_type"]?.string == method.rawValue { return object }
    guard object["peft_type"]?.string == LoRATuner.peftType,
      (object["use_dora"] == true) == (method == .edora)
    else { return nil }
    let hasLatent = folder.tensors.names.contains { $0.contains(Self.latentName) }
    let own = FileSystem.join(folder.path, EDoRAConfig.reconstructionFile)
    // The repository's training script writes the recipe one level above the adapter.
    let above = FileSystem.join(folder.path, "../\(EDoRAConfig.reconstructionFile)")
    var recipe = JSONObject()
    if FileSystem.exists(own) {
      recipe = try Self.recipe(own)
    } else if !hasLatent {
      return nil
    } else if FileSystem.exists(above) {
      recipe = try Self.recipe(above)
    }
    object["peft_type"] = .string(method.rawValue)
    object["use_dora"] = nil
    object["init_lora_weights"] = nil
    if let sigma = recipe["init_sigma"] {
      object["init_sigma"] = sigma
      recipe["init_sigma"] = nil
    }
    // An R that the recipe has and the tensors lack was lost by a program that does not know it; the
    // recipe stays as it is, so that R is missing rather than taken for the identity.
    if hasLatent || recipe["r_squared"]?.isNull != false { recipe["r_squared"] = .bool(hasLatent) }
    // A and B are in the file, whatever the rank was that they were made with.
    if var svd = recipe["svd"]?.object {
      svd["rank"] = nil
      recipe["svd"] = .object(svd)
    }
    object["reconstruct_config"] = .object(recipe)
    return object
  }

  /// The members of the config that such a folder has: the repositories' peft, 0.10, takes the keys of
  /// its own `LoraConfig` and fails at any other, so what came later is left out at its default.
  static func members(of config: LoRAConfig) -> JSONObject {
    let defaults = LoRAConfig().object
    return config.object.filter { key, value in
      keys.contains(key) || key != "peft_version" && value != defaults[key]
    }
  }

  /// The fields of `LoraConfig` in peft 0.10.0.
  private static let keys: Set<String> = [
    "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type",
    "inference_mode", "r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias",
    "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "use_dora",
    "layer_replication",
  ]

  /// The files of such a folder beside the weights.
  static let settingsFiles: Set<String> = [
    AdapterFolder.configName, EDoRAConfig.reconstructionFile,
  ]

  /// What every name of an R has in it.
  static let latentName = "lora_latent_mapping"

  private static func recipe(_ path: String) throws(PEFTError) -> JSONObject {
    guard let object = try FileSystem.readJSON(path).object else {
      throw PEFTError(
        .malformedFile, "is not a JSON object", at: path,
        remedy: "It holds the members of 'reconstruct_config'.")
    }
    return object
  }
}

/// EDoRA and LoRA-XS on linear layers.
struct EDoRADispatcher: Dispatcher {
  var supports: String { "Linear, Conv1D" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.host is Linear || site.host is Conv1D, site.target == site.path,
      site.tied == nil, let config = site.config as? EDoRAConfig
    else { return nil }
    return try EDoRALayer(site, config)
  }
}
