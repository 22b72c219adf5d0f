import PEFTCore
import PEFTSupport

/// Low-rank adaptation (Hu et al., arXiv 2106.09685): W + s·B·A with s = alpha/r.
public enum LoRATuner: Tuner {
  public typealias Config = LoRAConfig

  public static let peftType = "LORA"
  public static let modelTypeName = "LoraModel"
  public static let dispatchers: [any Dispatcher] = [
    LoRALinearDispatcher(), LoRAEmbeddingDispatcher(),
  ]

  public static func accepts(_ config: JSONObject) -> Bool {
    config["peft_type"]?.string == peftType
  }

  public static func defaultTargets(modelType: String) -> TargetModules? {
    defaultTargetTable[modelType]
  }
}
