import NN
import PEFTCore
import PEFTSupport
import TunerLoRA

/// Weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353): each row of W + s·B·A is
/// rescaled to a trained length, W′ = m∘(W + s·B·A)/‖W + s·B·A‖.
///
/// In files it is a LoRA config with `use_dora`, so its settings, its factors and their
/// initialisation are LoRA's; this tuner adds the magnitude m.
public enum DoRATuner: Tuner {
  /// The settings of the method: LoRA's.
  public typealias Config = LoRAConfig

  /// The method's name, `peft_type` in config files.
  public static let peftType = LoRATuner.peftType
  /// The method's name in the settings of a run.
  public static let methodName = "dora"
  /// The class name that peft prints around the base model.
  public static let modelTypeName = LoRATuner.modelTypeName
  /// `peft_type` and `use_dora`.
  public static let identifyingMembers = JSONObject([
    ("peft_type", .string(peftType)), ("use_dora", true),
  ])
  /// What makes layers, in order; the first that returns one wins.
  public static let dispatchers: [any Dispatcher] = [DoRADispatcher()]

  /// The targets for a model type when the config names none.
  public static func defaultTargets(modelType: String) -> TargetModules? {
    LoRATuner.defaultTargets(modelType: modelType)
  }

  /// Those that LoRA does not reach.
  public static func unreachableModules(modelType: String) -> Set<String> {
    LoRATuner.unreachableModules(modelType: modelType)
  }

  /// What LoRA does: the factors are its own.
  public static func prepare(_ plan: inout AdapterPlan) throws(PEFTError) {
    if let config = plan.config as? LoRAConfig, !config.initialization.isPlainProduct {
      throw PEFTError(
        .unsupported,
        "'init_lora_weights': \(config.initialization.json.text()) is not supported for DoRA, whose "
          + "norms are those of the untouched base weight",
        remedy: "Use true, false, \"gaussian\", \"orthogonal\" or \"eva\", or 'use_dora': false.")
    }
    try LoRATuner.prepare(&plan)
  }
}

/// DoRA on the layers that LoRA adapts by two factors.
struct DoRADispatcher: Dispatcher {
  var supports: String { "Linear, Embedding, Conv1d, Conv2d, Conv3d, Conv1D" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard let config = site.config as? LoRAConfig, site.target == site.path else { return nil }
    switch site.host {
    case is Linear, is Embedding, is Convolution, is Conv1D: break
    case is MultiheadAttention:
      throw PEFTError(
        .unsupported,
        "MultiheadAttention does not support DoRA (yet), please set use_dora to False")
    default: return nil
    }
    if site.tied != nil {
      throw PEFTError(
        .unsupported, "'ensure_weight_tying' is not supported for DoRA on a tied layer",
        remedy: "Set it to false, or do not target the tied layer.")
    }
    for dispatcher in LoRATuner.dispatchers {
      guard let layer = try dispatcher.makeLayer(for: site) else { continue }
      guard let factors = layer as? any LoRAFactors else { return nil }
      return DoRALayer(factors, site, detachesNorm: config.detachesNorm)
    }
    return nil
  }
}
