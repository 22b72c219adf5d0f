import NN
import PEFTCore
import Tensors

/// The layers of one kind on a host, for printing.
package struct PrintedLayers<Layer> {
  /// The layers by adapter.
  package let layers: [(adapter: String, layer: Layer)]

  /// Those that are of the kind, or have a part that is.
  package init(
    _ layers: [(adapter: String, layer: any TunerLayer)],
    part: (any TunerLayer) -> Any = { $0 }
  ) {
    self.layers = layers.compactMap { entry in
      (part(entry.layer) as? Layer).map { (entry.adapter, $0) }
    }
  }

  /// A dictionary of modules by adapter, without those of layers that have none.
  package func modules(_ make: (Layer) -> PrintedModule?) -> PrintedModule {
    PrintedModule(
      "ModuleDict",
      children: layers.compactMap { name, layer in make(layer).map { (name, $0) } })
  }
}

/// How peft prints a layer with LoRA on it.
package struct LoRAPrinter {
  private let own: PrintedLayers<LoRALayer>
  private let magnitudes: PrintedLayers<any MagnitudeLayer>

  /// Creates a printer for the adapters of one layer.
  init(_ layers: [(adapter: String, layer: any TunerLayer)]) {
    own = PrintedLayers(layers) { ($0 as? any MagnitudeLayer)?.factors ?? $0 }
    magnitudes = PrintedLayers(layers)
  }

  /// The tree.
  func printed(around base: PrintedModule) -> PrintedModule {
    let isEmbedding = own.layers.first?.layer.parameters.first?.suffix == LoRAKey.embeddingA
    return Self.wrapper(
      Self.wrapperName(base), around: base,
      dropout: own.modules { Self.dropout($0.configuredDropout) },
      a: isEmbedding ? nil : own.modules { Self.a($0, base) },
      b: isEmbedding ? nil : own.modules(Self.b),
      embeddingA: parameters(isEmbedding ? \.a : nil),
      embeddingB: parameters(isEmbedding ? \.b : nil),
      magnitude: magnitudes.modules(\.printedMagnitude))
  }

  /// What all of peft's wrappers have.
  package static func wrapper(
    _ name: String, around base: PrintedModule, dropout: PrintedModule, a: PrintedModule?,
    b: PrintedModule?, embeddingA: PrintedModule = PrintedModule("ParameterDict"),
    embeddingB: PrintedModule = PrintedModule("ParameterDict"),
    magnitude: PrintedModule = PrintedModule("ModuleDict")
  ) -> PrintedModule {
    PrintedModule(
      "lora.\(name)",
      children: [
        ("base_layer", base), ("lora_dropout", dropout),
        ("lora_A", a ?? PrintedModule("ModuleDict")), ("lora_B", b ?? PrintedModule("ModuleDict")),
        (LoRAKey.embeddingA, embeddingA), (LoRAKey.embeddingB, embeddingB),
        (LoRAKey.magnitude, magnitude),
      ])
  }

  /// A dropout, which peft leaves out where nothing is dropped.
  package static func dropout(_ dropout: Dropout) -> PrintedModule {
    dropout.probability > 0
      ? PrintedModule("Dropout", attributes: dropout.attributes) : PrintedModule("Identity")
  }

  /// peft's class for the layer.
  private static func wrapperName(_ base: PrintedModule) -> String {
    switch base.typeName {
    case "Conv1d", "Conv2d", "Conv3d", "MultiheadAttention": return base.typeName
    default: return base.typeName.hasSuffix("Embedding") ? "Embedding" : "Linear"
    }
  }

  private static func a(_ layer: LoRALayer, _ base: PrintedModule) -> PrintedModule {
    layer.convolutionSettings.map {
      // As peft's: it prints, and has, neither the base's dilation nor its padding mode.
      var plain = $0
      plain.outputChannels = layer.rank
      plain.dilation = plain.kernel.map { _ in 1 }
      plain.groups = 1
      plain.paddingMode = .zeros
      return PrintedModule(base.typeName, attributes: plain.attributes(bias: false))
    } ?? linear(layer.a.shape[1], layer.rank)
  }

  private static func b(_ layer: LoRALayer) -> PrintedModule {
    guard let settings = layer.convolutionSettings else {
      return linear(layer.rank, layer.b.shape[0], hasBias: layer.bias != nil)
    }
    let plain = ConvolutionSettings(
      layer.rank, settings.outputChannels, kernel: settings.kernel.map { _ in 1 },
      groups: settings.groups)
    return PrintedModule(
      "Conv\(settings.kernel.count)d", attributes: plain.attributes(bias: layer.bias != nil))
  }

  /// A linear layer.
  package static func linear(
    _ inputs: Int, _ outputs: Int, hasBias: Bool = false
  ) -> PrintedModule {
    PrintedModule(
      "Linear",
      attributes: "in_features=\(inputs), out_features=\(outputs), bias="
        + (hasBias ? "True" : "False"))
  }

  private func parameters(_ value: KeyPath<LoRALayer, Parameter>?) -> PrintedModule {
    guard let value else { return PrintedModule("ParameterDict") }
    return .tensors(
      "ParameterDict", "Parameter",
      own.layers.map { ($0.adapter, $0.layer[keyPath: value].shape) })
  }
}
