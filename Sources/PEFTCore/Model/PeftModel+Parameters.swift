import NN
import PEFTSupport
import Tensors

/// A parameter of an adapter with the key that it has in peft's files.
public struct AdapterTensor {
  /// `base_model.model.<path>.<suffix>`.
  public let key: String
  /// The value.
  public let parameter: Parameter
  /// Whether the file holds the transpose of the value.
  public let isTransposed: Bool
  /// Whether another tensor of the adapter has the same parameter; training changes it once.
  public let isShared: Bool
  /// Another key that a file may have it under.
  let otherKey: String?

  /// Names a parameter.
  public init(
    key: String, parameter: Parameter, isTransposed: Bool = false, isShared: Bool = false,
    otherKey: String? = nil
  ) {
    self.key = key
    self.parameter = parameter
    self.isTransposed = isTransposed
    self.isShared = isShared
    self.otherKey = otherKey
  }

  /// The value as the file holds it.
  public var value: Tensor { isTransposed ? parameter.value.transposed() : parameter.value }
  /// The shape that it has in the file.
  public var shape: [Int] { isTransposed ? parameter.shape.reversed() : parameter.shape }
  /// Takes over a value from a file.
  public func assign(_ value: Tensor) {
    parameter.assign(isTransposed ? value.transposed() : value)
  }
}

extension PeftModel {
  /// The parameters of an adapter under their keys, in model order.
  public func tensors(of adapter: String) throws(PEFTError) -> [AdapterTensor] {
    let record = try record(adapter)
    var result: [AdapterTensor] = []
    var seen: Set<Parameter.ID> = []
    func add(
      _ key: String, _ parameter: Parameter, isTransposed: Bool = false, otherKey: String? = nil
    ) {
      result.append(
        AdapterTensor(
          key: "base_model.model.\(key)", parameter: parameter, isTransposed: isTransposed,
          isShared: !seen.insert(parameter.id).inserted,
          otherKey: otherKey.map { "base_model.model.\($0)" }))
    }
    for place in record.places {
      let (path, host) = hosts[place]
      guard let stack = host.adapters as? AdapterStack else { continue }
      let prefix = record.prefixes[place] ?? path
      for parameter in stack.layer(adapter)?.parameters ?? [] {
        add(
          "\(prefix).\(parameter.suffix)", parameter.parameter,
          isTransposed: parameter.isTransposed)
      }
      for info in stack.copy(adapter)?.info ?? [] {
        if let parameter = info.parameter { add("\(path).\(info.name)", parameter) }
      }
      if let rows = stack.tokens(adapter), !rows.isShared {
        add("\(path).token_adapter.trainable_tokens_delta", rows.rows)
      }
      if record.biases.contains(place), let bias = stack.trainedBias?.trained {
        let (plain, wrapped) = ("\(path).bias", "\(path).base_layer.bias")
        let isWrapped = !stack.layers.isEmpty
        add(isWrapped ? wrapped : plain, bias, otherKey: isWrapped ? plain : wrapped)
      }
    }
    return result
  }

  /// The parameters that training changes: those of the active adapters.
  public var trainableTensors: [AdapterTensor] {
    selection.active.flatMap { name in
      ((try? tensors(of: name)) ?? []).filter {
        $0.parameter.isTrainable && !$0.isShared
      }
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
    for place in record.places {
      guard let stack = hosts[place].host.adapters as? AdapterStack else { continue }
      for parameter in stack.layer(record.name)?.parameters ?? [] where !parameter.isTransposed {
        body(parameter.parameter, parameter.isTrained)
      }
      for info in stack.copy(record.name)?.info ?? [] {
        if let parameter = info.parameter { body(parameter, true) }
      }
      if let rows = stack.tokens(record.name), !rows.isShared { body(rows.rows, true) }
      if let bias = stack.trainedBias, bias.adapter == record.name { body(bias.trained, true) }
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
