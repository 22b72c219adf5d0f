import PEFTCore
import TunerDoRA
import TunerEDoRA
import TunerLoRA

extension TunerRegistry {
  /// A registry of the methods that come with this package.
  ///
  /// It is a value: a copy can be extended without touching this one.
  ///
  /// ```swift
  /// var registry = TunerRegistry.standard
  /// registry.register(MyTuner.self)
  /// ```
  public static let standard: TunerRegistry = {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    registry.register(DoRATuner.self)
    registry.register(EDoRATuner.self)
    registry.register(LoRAXSTuner.self)
    return registry
  }()
}
