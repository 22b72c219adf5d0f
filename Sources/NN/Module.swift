import Tensors

/// A part of a model: a layer, or a group of them.
///
/// The tree of modules has PyTorch's names and structure, since adapter targets, tensor keys and
/// ``printed`` all speak of them. A module lists its children by hand, in the order in which
/// Hugging Face's class declares them.
public protocol Module: AnyObject {
  /// The class name that PyTorch prints.
  var typeName: String { get }
  /// What PyTorch prints between the parentheses of a leaf, `in_features=3, …`.
  var attributes: String { get }
  /// The parts, with their attribute names.
  var children: [(name: String, module: any Module)] { get }
  /// The parameters that belong to this module itself, not to a child.
  var ownParameters: [ParameterInfo] { get }
  /// Weights of this module itself that adapters can change though no layer holds them, such as the
  /// stacked weights of experts; in the order in which Hugging Face's class declares them.
  var weightHosts: [(name: String, host: any WeightHost)] { get }
}

extension Module {
  /// What PyTorch prints between the parentheses.
  public var attributes: String { "" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] { [] }
  /// The parameters that belong to this module itself.
  public var ownParameters: [ParameterInfo] { [] }
  /// Weights of this module itself that adapters can change.
  public var weightHosts: [(name: String, host: any WeightHost)] { [] }

  /// This module and all below it in depth-first order, each with its dotted path; the path of
  /// this module is empty.
  public func namedModules() -> [(path: String, module: any Module)] {
    var result: [(String, any Module)] = []
    func visit(_ path: String, _ module: any Module) {
      result.append((path, module))
      for (name, child) in module.children {
        visit(path.isEmpty ? name : "\(path).\(name)", child)
      }
    }
    visit("", self)
    return result
  }

  /// All parameters with their full names, `encoder.layer.0.….weight`; tied ones once.
  public func namedParameters() -> [(name: String, info: ParameterInfo)] {
    var seen: Set<Parameter.ID> = []
    var result: [(String, ParameterInfo)] = []
    for (path, module) in namedModules() {
      let own =
        module.weightHosts.flatMap { name, host in
          [host.info(named: name)] + (host.adapters?.ownParameters ?? [])
        } + module.ownParameters
      for info in own {
        if let parameter = info.parameter, !seen.insert(parameter.id).inserted { continue }
        result.append((path.isEmpty ? info.name : "\(path).\(info.name)", info))
      }
    }
    return result
  }
}

/// What there is to know about a parameter, whether it is trainable or a frozen matrix.
public struct ParameterInfo {
  /// The name within its module: "weight", "bias".
  public let name: String
  /// Its shape.
  public let shape: [Int]
  /// Its storage format: "float32", "bfloat16", …
  public let format: String
  /// The parameter when it may be trained, `nil` for a frozen matrix.
  public let parameter: Parameter?

  /// Describes a parameter.
  public init(_ name: String, _ parameter: Parameter) {
    self.name = name
    shape = parameter.shape
    format = "float32"
    self.parameter = parameter
  }

  /// Describes a frozen matrix; its shape in files where that is another than its own.
  public init(_ name: String, _ matrix: any WeightMatrix, shape: [Int]? = nil) {
    self.name = name
    self.shape = shape ?? [matrix.rows, matrix.columns]
    format = matrix.format
    parameter = nil
  }

  /// Number of elements.
  public var count: Int { shape.reduce(1, *) }
  /// Whether training changes it.
  public var isTrainable: Bool { parameter?.isTrainable ?? false }
}

/// Modules in a row, named by their index.
public final class ModuleList<Element: Module>: Module {
  /// The modules; replication of layers repeats some of them.
  public var elements: [Element]

  /// Creates a list.
  public init(_ elements: [Element]) { self.elements = elements }

  /// The class name that PyTorch prints.
  public var typeName: String { "ModuleList" }
  /// The parts, with their attribute names.
  public var children: [(name: String, module: any Module)] {
    elements.enumerated().map { (String($0.offset), $0.element) }
  }
}

/// A model whose stack of layers can be put together anew from its own layers, several times the
/// same one if so wished (peft's `layer_replication`).
public protocol ReplicatesLayers: Module {
  /// Number of layers.
  var layerCount: Int { get }
  /// Makes the stack anew: place i becomes a copy of the layer `sources[i]`, with the same base
  /// weights and with slots of its own.
  ///
  /// - Returns: Puts the layers back that were there before.
  func replicateLayers(_ sources: [Int]) -> () -> Void
}

/// A module without parameters that stands in the tree as PyTorch shows it: an activation, the
/// rotary embedding.
public final class Inert: Module {
  /// The class name that PyTorch prints.
  public let typeName: String
  /// What PyTorch prints between the parentheses.
  public let attributes: String

  /// Creates a stand-in.
  public init(_ typeName: String, _ attributes: String = "") {
    self.typeName = typeName
    self.attributes = attributes
  }
}
