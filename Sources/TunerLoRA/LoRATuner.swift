import PEFTCore
import PEFTSupport

/// Low-rank adaptation (Hu et al., arXiv 2106.09685): W + s·B·A with s = alpha/r.
public enum LoRATuner: Tuner {
  /// The settings of the method.
  public typealias Config = LoRAConfig

  /// The method's name, `peft_type` in config files.
  public static let peftType = "LORA"
  /// The class name that peft prints around the base model.
  public static let modelTypeName = "LoraModel"
  /// What makes layers, in order; the first that returns one wins.
  public static let dispatchers: [any Dispatcher] = [
    LoRAParameterDispatcher(), LoRATiedDispatcher(), FusedDispatcher(), LoRADispatcher(),
  ]

  /// Whether `peft_type` is LORA and the update is not weight-decomposed.
  public static func accepts(_ config: JSONObject) -> Bool {
    config["peft_type"]?.string == peftType && config["use_dora"] != true
  }

  /// A folder's config; what it says of a norm is about a magnitude that it had before it was
  /// converted.
  public static func config(of folder: AdapterFolder) throws(PEFTError) -> JSONObject? {
    guard accepts(folder.config) else { return nil }
    return folder.config.filter { key, _ in key != "dora_detach_norm" }
  }

  /// The targets for a model type when the config names none.
  public static func defaultTargets(modelType: String) -> TargetModules? {
    defaultTargetTable[modelType]
  }

  /// Mamba's own kernels read these weights and bypass the modules.
  public static func unreachableModules(modelType: String) -> Set<String> {
    let types: Set = ["mamba", "mamba2", "falcon_h1", "falcon_mamba", "nemotron_h"]
    return types.contains(modelType) ? ["out_proj", "conv1d"] : []
  }

  /// Runs the model on the batches for initial values that depend on data.
  public static func prepare(_ plan: inout AdapterPlan) throws(PEFTError) {
    guard let config = plan.config as? LoRAConfig, !plan.isLoading else { return }
    switch config.initialization {
    case .eva(let settings): try EVA.prepare(&plan, settings)
    case .corda(let settings): try CorDA.prepare(&plan, settings)
    case .loraGA(let settings): try LoRAGA.prepare(&plan, settings)
    default: break
    }
  }
}
