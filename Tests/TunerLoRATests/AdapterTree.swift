import BLASKernels
import NN
import PEFTCore
import PEFTSupport
import Tensors

@testable import TunerLoRA

/// A tree of modules made from the keys of an adapter, for models that are not here: every layer
/// that the keys name is linear, with the widths of the adapter's factors.
final class AdapterTree: Module {
  private(set) var children: [(name: String, module: any Module)] = []
  let typeName = "Tree"

  /// A layer of the given widths; its weight has no values.
  static func layer(_ inputs: Int, _ outputs: Int, bias: Bool = false) -> Linear {
    Linear(
      HostParameters(
        weight: .matrix(ShapeOnlyMatrix(rows: outputs, columns: inputs, format: "float32")),
        bias: bias ? Parameter(.zeros([outputs]), isTrainable: false) : nil),
      inputFeatures: inputs, outputFeatures: outputs)
  }

  /// Puts a module at a path.
  func add(_ path: String, _ module: any Module) {
    guard let dot = path.firstIndex(of: ".") else {
      children.append((path, module))
      return
    }
    let first = String(path[..<dot])
    if !children.contains(where: { $0.name == first }) { children.append((first, AdapterTree())) }
    let part = children.first { $0.name == first }?.module as? AdapterTree
    part?.add(String(path[path.index(after: dot)...]), module)
  }

  /// The tree for the keys of a file, in peft's or loralib's form.
  static func make(for file: any TensorFile) -> AdapterTree {
    let tree = AdapterTree()
    for entry in file.entries {
      var key = entry.name
      if key.hasPrefix("base_model.model.") { key = String(key.dropFirst(17)) }
      for suffix in [".lora_A", ".lora_A.weight"] where key.hasSuffix(suffix) {
        let other = String(entry.name.dropLast(suffix.count)) + suffix.replacing("_A", with: "_B")
        guard let outputs = file[other]?.shape[0] else { continue }
        tree.add(String(key.dropLast(suffix.count)), layer(entry.shape[1], outputs))
      }
      if key.hasSuffix(".weight"), !key.contains("lora_") {
        let bias = file[entry.name.replacing(".weight", with: ".bias")] != nil
        tree.add(
          String(key.dropLast(".weight".count)), layer(entry.shape[1], entry.shape[0], bias: bias))
      }
    }
    return tree
  }

  /// A linear layer with a bias, `lin`, one without, `part.plain`, an embedding, `emb`, and a
  /// convolution in four groups, `conv`.
  static func ofEveryKind() -> AdapterTree {
    let tree = AdapterTree()
    func matrix(_ shape: [Int], _ stream: UInt64) -> DenseMatrix {
      DenseMatrix(.normal(shape, deviation: 1, key: DropoutKey(seed: 3, stream: stream)))
    }
    func linear(_ bias: Bool, _ stream: UInt64) -> Linear {
      Linear(
        HostParameters(
          weight: .matrix(matrix([8, 10], stream)),
          bias: bias ? Parameter(.zeros([8]), isTrainable: false) : nil),
        inputFeatures: 10, outputFeatures: 8)
    }
    tree.add("lin", linear(true, 1))
    tree.add("part.plain", linear(false, 2))
    tree.add(
      "emb",
      Embedding(
        HostParameters(weight: .matrix(matrix([11, 6], 3)), bias: nil), count: 11, width: 6))
    tree.add(
      "conv",
      Convolution(
        matrix([8, 9], 4), bias: nil, ConvolutionSettings(4, 8, kernel: [3, 3], groups: 4)))
    return tree
  }

  static let registry: TunerRegistry = {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return registry
  }()
}
