import NN
import PEFTCore
import PEFTSupport

/// Learns one factor for each output feature of a layer: y′ = y ∘ (1 + strength·s).
///
/// The idea is that of (IA)³ (Liu et al., arXiv 2205.05638). The scales s begin at zero, so weight
/// decay pulls the model back to its base.
public enum OutputScaleTuner: Tuner {
  /// The settings.
  public typealias Config = OutputScaleConfig

  /// `peft_type` in config files.
  public static let peftType = "OUTPUT_SCALE"
  /// What the printed tree calls the adapted model.
  public static let modelTypeName = "OutputScaleModel"
  /// What makes layers.
  public static let dispatchers: [any Dispatcher] = [LinearDispatcher()]

  /// The modules that (IA)³ scales, where a config names none.
  public static func defaultTargets(modelType: String) -> TargetModules? {
    switch modelType {
    case "llama", "qwen2": return .list(["k_proj", "v_proj", "up_proj"])
    default: return nil
    }
  }
}

/// Output scales on linear layers.
struct LinearDispatcher: Dispatcher {
  var supports: String { "Linear without bias" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.host is Linear, let config = site.config as? OutputScaleConfig else { return nil }
    // The scale of a bias could not be merged into the weight.
    if site.host.parameters.bias != nil {
      throw PEFTError(.unsupported, "output scales need a layer without bias")
    }
    return OutputScaleLayer(site, config, axis: .rows)
  }
}
