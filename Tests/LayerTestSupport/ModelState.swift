import NN
import PEFTCore
import PEFTSupport
import Tensors

/// All of a model with adapters that a call may not change when it is refused.
package struct ModelState {
  private var names: [String]
  private var active: [String]
  private var merged: [String]
  private var isDisabled: Bool
  private var configs: [JSONObject] = []
  private var printed: String
  /// Paths of the modules.
  private var modules: [String] = []
  /// Paths of the layers that have something in their slot.
  private var adapted: Set<String> = []
  private var trainable: Set<String> = []
  private var scalings: [String: Double] = [:]
  /// The bits of every parameter and weight, since broken numbers are not equal to themselves.
  private var values: [String: [UInt32]] = [:]

  /// Takes the state.
  package init(_ peft: PeftModel) throws {
    names = peft.adapterNames
    active = peft.activeAdapters
    merged = peft.mergedAdapters
    isDisabled = peft.selection.isDisabled
    printed = peft.printed.text
    for name in names {
      configs.append(try peft.config(name).object)
      for tensor in try peft.tensors(of: name) {
        values["\(name): \(tensor.key)"] = Self.bits(tensor.parameter.value)
      }
      for layer in try peft.adaptedLayers(of: name) {
        scalings["\(name): \(layer.path)"] = (layer.layer as? any ScaledLayer)?.scaling
      }
    }
    for (path, module) in peft.base.namedModules() {
      modules.append(path)
      if let host = module as? any AdapterHost { add(host, at: path) }
      for (name, host) in module.weightHosts { add(host, at: "\(path).\(name)") }
    }
    for (name, info) in peft.base.namedParameters() {
      if info.isTrainable { trainable.insert(name) }
      values[name] = info.parameter.map { Self.bits($0.value) }
    }
  }

  private mutating func add(_ host: any AdapterHost, at path: String) {
    if host.adapters != nil { adapted.insert(path) }
    values["the weight of \(path)"] = Self.bits(host.parameters.storedWeight)
  }

  private static func bits(_ tensor: Tensor) -> [UInt32] { tensor.scalars.map(\.bitPattern) }

  /// What is another now than it was, in words; empty where nothing has changed.
  package func changes(since before: ModelState) -> [String] {
    var result: [String] = []
    func compare<Value: Equatable>(_ part: String, _ value: KeyPath<ModelState, Value>) {
      if self[keyPath: value] != before[keyPath: value] {
        result.append("\(part): \(before[keyPath: value]) became \(self[keyPath: value])")
      }
    }
    compare("names", \.names)
    compare("active", \.active)
    compare("merged", \.merged)
    compare("disabled", \.isDisabled)
    compare("configs", \.configs)
    compare("modules", \.modules)
    compare("adapted", \.adapted)
    compare("trainable", \.trainable)
    compare("scalings", \.scalings)
    compare("printed", \.printed)
    for key in Set(values.keys).union(before.values.keys).sorted()
    where values[key] != before.values[key] {
      result.append("values of \(key)")
    }
    return result
  }
}
