import NN
import PEFTSupport
import Tensors

/// A parameter of an adapter with the key that it has in peft's files.
public struct AdapterTensor {
  /// `base_model.model.<path>.<suffix>`.
  public let key: String
  /// The value.
  public let parameter: Parameter
  /// Other keys that are read as well.
  public var otherKeys: [String] = []
  /// Whether files hold it.
  public var isStored = true

  /// Names a parameter.
  public init(key: String, parameter: Parameter) {
    self.key = key
    self.parameter = parameter
  }
}

extension PeftModel {
  /// The parameters of an adapter under their keys, in model order.
  public func tensors(of adapter: String) throws(PEFTError) -> [AdapterTensor] {
    let record = try record(adapter)
    let places = Set(record.sites).union(record.saved).sorted()
    var result: [AdapterTensor] = []
    for place in places {
      let host = hosts[place].host
      guard let stack = host.adapters as? AdapterStack else { continue }
      let path = filePath(place, among: record.sites)
      if let layer = stack.layer(adapter) { result += Self.tensors(of: layer, at: path) }
      result += Self.tensors(of: stack.copy(adapter), at: path)
    }
    return result
  }

  /// The parameters of a layer, at the path that files have it under.
  static func tensors(of layer: any TunerLayer, at path: String) -> [AdapterTensor] {
    layer.parameters.map { parameter in
      let keys = parameter.keys(at: path)
      var tensor = AdapterTensor(key: keys[0], parameter: parameter.parameter)
      tensor.otherKeys = Array(keys.dropFirst())
      tensor.isStored = parameter.isStored
      return tensor
    }
  }

  /// Those of a module that is trained in full.
  static func tensors(of copy: HostParameters?, at path: String) -> [AdapterTensor] {
    (copy?.info ?? []).compactMap { info in
      info.parameter.map { AdapterTensor(key: "\(filePrefix)\(path).\(info.name)", parameter: $0) }
    }
  }

  /// The parameters that training changes: those of the active adapters.
  public var trainableTensors: [AdapterTensor] {
    selection.active.flatMap { name in
      ((try? tensors(of: name)) ?? []).filter { $0.parameter.isTrainable }
    }
  }

  /// Numbers of parameters, counted as peft counts them.
  public var parameterCounts: (trainable: Int, all: Int) {
    var trainable = 0
    var all = 0
    for (_, info) in base.namedParameters() {
      all += info.count
      if info.isTrainable { trainable += info.count }
    }
    return (trainable, all)
  }

  /// What peft's `print_trainable_parameters` prints.
  public var trainableParametersReport: String {
    let (trainable, all) = parameterCounts
    let percent = all == 0 ? 0 : 100 * Double(trainable) / Double(all)
    return "trainable params: \(grouped(trainable)) || all params: \(grouped(all)) || "
      + "trainable%: \(fixed(percent, digits: 4))"
  }

  func forEachParameter(of record: AdapterRecord, _ body: (Parameter, Bool) -> Void) {
    for place in Set(record.sites).union(record.saved) {
      guard let stack = hosts[place].host.adapters as? AdapterStack else { continue }
      for parameter in stack.layer(record.name)?.parameters ?? [] {
        body(parameter.parameter, parameter.isTrained)
      }
      for info in stack.copy(record.name)?.info ?? [] {
        if let parameter = info.parameter { body(parameter, true) }
      }
    }
  }
}

/// An integer with commas between groups of three digits.
func grouped(_ number: Int) -> String {
  var text = ""
  for (offset, digit) in String(number).reversed().enumerated() {
    if offset > 0, offset % 3 == 0 { text.append(",") }
    text.append(digit)
  }
  return String(text.reversed())
}

/// A number with a fixed count of decimals.
func fixed(_ number: Double, digits: Int) -> String {
  var scale = 1.0
  for _ in 0..<digits { scale *= 10 }
  let scaled = Int((number * scale).rounded(.toNearestOrEven))
  let fraction = String(scaled % Int(scale))
  let padding = String(repeating: "0", count: digits - fraction.count)
  return "\(scaled / Int(scale)).\(padding)\(fraction)"
}
