import Models
import PEFT
import TestSupport

@testable import PEFTCore

/// The models of the conformance cases: small ones by their description, trees of modules of which
/// only the names count, and the tiny Llama and BERT of the goldens.
final class ConformanceModel: Module {
  let typeName: String
  private(set) var children: [(name: String, module: any Module)] = []

  init(_ typeName: String) { self.typeName = typeName }

  /// A model of the section `models`, with its weights.
  static func described(
    _ name: String, _ description: JSONValue, _ weights: SafetensorsFile
  ) throws -> ConformanceModel {
    let root = ConformanceModel("Toy")
    for (path, kind) in ["layers": "ModuleList", "wrapped": "ModuleDict"]
    where description["modules"]?.object?.keys.contains(where: { $0.hasPrefix("\(path).") }) == true
    {
      root.add(path, ConformanceModel(kind))
    }
    for (path, module) in description["modules"]?.object?.members ?? [] {
      root.add(path, try layer(module, "\(name).\(path)", weights))
    }
    return root
  }

  /// A model of the section `trees`.
  static func tree(_ description: JSONValue) -> ConformanceModel {
    let root = ConformanceModel("Branch")
    for (path, kind) in description["modules"]?.object?.members ?? [] {
      root.add(path, placeholder(kind.string ?? ""))
    }
    return root
  }

  func add(_ path: String, _ module: any Module) {
    guard let dot = path.firstIndex(of: ".") else {
      // A module that has others inside: its own name is listed after or before theirs.
      if let place = children.firstIndex(where: { $0.name == path }) {
        children[place].module = module
      } else {
        children.append((path, module))
      }
      return
    }
    let first = String(path[..<dot])
    if !children.contains(where: { $0.name == first }) {
      children.append((first, ConformanceModel("Branch")))
    }
    let part = children.first { $0.name == first }?.module as? ConformanceModel
    part?.add(String(path[path.index(after: dot)...]), module)
  }

  subscript(path: String) -> any Module { namedModules().first { $0.path == path }!.module }

  private static func layer(
    _ description: JSONValue, _ key: String, _ weights: SafetensorsFile
  ) throws -> any Module {
    func number(_ name: String) -> Int { description[name]?.int ?? 0 }
    func list(_ name: String) -> [Int] { description[name]?.array?.compactMap(\.int) ?? [] }
    func parameters(_ path: String) throws -> HostParameters {
      let bias =
        weights["\(path).bias"] == nil ? nil : Parameter(try weights.tensor("\(path).bias"))
      return HostParameters(weight: .matrix(try weights.matrix("\(path).weight")), bias: bias)
    }
    switch description["type"]?.string ?? "" {
    case "Linear":
      return Linear(
        try parameters(key), inputFeatures: number("in_features"),
        outputFeatures: number("out_features"))
    case "Conv1D":
      return Conv1D(try weights.matrix("\(key).weight"), bias: try parameters(key).bias)
    case "Embedding":
      return Embedding(
        try parameters(key), count: number("num_embeddings"), width: number("embedding_dim"))
    case "LayerNorm":
      return LayerNorm(
        weight: Parameter(try weights.tensor("\(key).weight")),
        bias: Parameter(try weights.tensor("\(key).bias")), width: number("size"), epsilon: 1e-5)
    case "MultiheadAttention":
      return MultiheadAttention(
        packed: try weights.matrix("\(key).in_proj_weight"),
        bias: Parameter(try weights.tensor("\(key).in_proj_bias")),
        output: try parameters("\(key).out_proj"), heads: number("num_heads"),
        batchFirst: description["batch_first"] == true, dropout: Dropout(0, path: key))
    default:
      return Convolution(
        try weights.matrix("\(key).weight"), bias: try parameters(key).bias,
        ConvolutionSettings(
          number("in_channels"), number("out_channels"), kernel: list("kernel_size"),
          groups: number("groups")))
    }
  }

  private static func placeholder(_ kind: String) -> any Module {
    let matrix = DenseMatrix(
      Tensor.normal([2, 2], deviation: 1, key: DropoutKey(seed: 1, stream: 1)))
    let bias = Parameter(.zeros([2]))
    let parameters = HostParameters(weight: .matrix(matrix), bias: bias)
    switch kind {
    case "Linear": return Linear(parameters, inputFeatures: 2, outputFeatures: 2)
    case "Conv1D": return Conv1D(matrix, bias: bias)
    case "Embedding":
      let table = DenseMatrix(Tensor.zeros([3, 2]))
      return Embedding(
        HostParameters(weight: .matrix(table), bias: nil), count: 3, width: 2)
    case "Conv2d":
      return Convolution(matrix, bias: bias, ConvolutionSettings(2, 2, kernel: [1, 1]))
    case "LayerNorm":
      return LayerNorm(
        weight: Parameter(.zeros([2])), bias: Parameter(.zeros([2])), width: 2, epsilon: 1e-5)
    case "LSTM": return Inert("LSTM", "2, 2")
    case "Bilinear":
      return Inert("Bilinear", "in1_features=2, in2_features=2, out_features=2, bias=True")
    default: return Inert(kind)
    }
  }
}

/// What the models compute, as the section `models` says in words.
struct ConformanceForward {
  let name: String
  let model: ConformanceModel
  let weights: SafetensorsFile

  /// The number of rows that adapters can be assigned to.
  func rows() throws -> Int { weights["\(name).input"]?.shape[0] ?? 0 }

  private func layout() throws -> SequenceLayout {
    let shape = weights["\(name).input"]?.shape ?? []
    let isSequence = ["embedded", "attending"].contains(name)
    return SequenceLayout(lengths: .init(repeating: isSequence ? shape[1] : 1, count: shape[0]))
  }

  func output(_ change: (inout ForwardContext) -> Void) throws -> Tensor {
    var context = ForwardContext(try layout())
    change(&context)
    func linear(_ path: String, _ x: Tensor) -> Tensor {
      switch model[path] {
      case let layer as Linear: return layer(x, context)
      case let layer as Conv1D: return layer(x, context)
      default: return (model[path] as! LayerNorm)(x, context)
      }
    }
    func relu(_ x: Tensor) -> Tensor { Activation.relu(x) }
    /// The mean over places of `[n, channels, places…]`.
    func mean(_ x: Tensor) -> Tensor {
      let (n, channels) = (x.shape[0], x.shape[1])
      let places = x.count / (n * channels)
      let weight = Tensor(repeating: 1 / Float(places), shape: [1, places])
      return Tensors.linear(x.reshaped([n * channels, places]), weight).reshaped([n, channels])
    }
    if name == "embedded" {
      let ids = try weights.integers("embedded.input").values
      let rows = (model["emb"] as! Embedding)(ids, context)
      return linear("lin0", relu(linear("conv1d", rows)))
    }
    var x = try weights.tensor("\(name).input")
    switch name {
    case "mlp", "mlp_nobias": return linear("lin1", relu(linear("lin0", x)))
    case "deep":
      for layer in 0..<3 {
        x = x + linear("layers.\(layer).lin1", relu(linear("layers.\(layer).lin0", x)))
      }
      return linear("head", x)
    case "convolved":
      let images = relu((model["conv2d"] as! Convolution)(x, context))
      return linear("lin0", mean((model["pointwise"] as! Convolution)(images, context)))
    case "line": return linear("lin0", mean(relu((model["conv1d"] as! Convolution)(x, context))))
    case "grouped": return (model["conv2d"] as! Convolution)(x, context)
    case "attending":
      return linear("lin0", (model["mha"] as! MultiheadAttention)(x, .init(), context))
    case "normed": return linear("lin1", linear("norm", linear("lin0", x)))
    case "headed":
      x = linear("mlp.2", relu(linear("mlp.0", relu(linear("lin0", x)))))
      let (one, other) = (linear("score", x), linear("my_score", x))
      return Tensor.stackingRows([one.transposed(), other.transposed()]).transposed()
    default:
      for part in ["default", "other", "lora_linear", "my_weight", "my_bias", "linear_weight"] {
        x = x + relu(linear(part, x))
      }
      return x + linear("wrapped.weight", x) + linear("wrapped.default", x)
    }
  }
}
