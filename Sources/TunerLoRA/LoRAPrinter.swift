import NN
import PEFTCore
import Tensors

/// How peft prints a layer with LoRA on it.
struct LoRAPrinter {
  private let layers: [(adapter: String, layer: LoRALayer)]

  /// Creates a printer for the adapters of one layer.
  init(_ layers: [(adapter: String, layer: LoRALayer)]) { self.layers = layers }

  /// The tree.
  func printed(around base: PrintedModule) -> PrintedModule {
    let isEmbedding = layers.first?.layer.parameters.first?.suffix == "lora_embedding_A"
    func modules(_ make: (LoRALayer) -> PrintedModule) -> PrintedModule {
      PrintedModule("ModuleDict", children: layers.map { ($0.adapter, make($0.layer)) })
    }
    return PrintedModule(
      "lora.\(Self.wrapperName(base))",
      children: [
        ("base_layer", base),
        (
          "lora_dropout",
          modules { Self.dropout($0.dropout) }
        ),
        ("lora_A", isEmbedding ? PrintedModule("ModuleDict") : modules { Self.a($0, base) }),
        ("lora_B", isEmbedding ? PrintedModule("ModuleDict") : modules(Self.b)),
        ("lora_embedding_A", parameters(isEmbedding ? \.a : nil)),
        ("lora_embedding_B", parameters(isEmbedding ? \.b : nil)),
        ("lora_magnitude_vector", PrintedModule("ModuleDict")),
      ])
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
    } ?? linear(layer.a.shape[1], layer.rank, hasBias: false)
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

  /// A dropout site.
  static func dropout(_ site: Dropout) -> PrintedModule {
    site.probability > 0
      ? PrintedModule("Dropout", attributes: site.attributes) : PrintedModule("Identity")
  }

  /// A linear layer.
  static func linear(_ inputs: Int, _ outputs: Int, hasBias: Bool) -> PrintedModule {
    PrintedModule(
      "Linear",
      attributes: "in_features=\(inputs), out_features=\(outputs), bias="
        + (hasBias ? "True" : "False"))
  }

  private func parameters(_ value: KeyPath<LoRALayer, Parameter>?) -> PrintedModule {
    guard let value else { return PrintedModule("ParameterDict") }
    let lines = layers.map { adapter, layer in
      let size = layer[keyPath: value].shape.map(String.init).joined(separator: "x")
      return "  (\(adapter)): Parameter containing: [torch.FloatTensor of size \(size)]"
    }
    return PrintedModule("ParameterDict", attributes: lines.joined(separator: "\n"))
  }
}
