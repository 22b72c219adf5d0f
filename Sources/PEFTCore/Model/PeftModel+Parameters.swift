import NN
import PEFTSupport
import Tensors

/// A parameter of an adapter with the key that it has in peft's files.
public struct AdapterTensor {
  /// `base_model.model.<path>.<suffix>`.
  public let key: String
  /// The parameter.
  public let parameter: Parameter
  /// Other keys that are read as well.
  public var otherKeys: [String] = []
  /// Whether files hold it.
  public var isStored = true
  /// Whether files hold it in F32 whatever the precision of the others.
  public var isExact = false
  /// Whether the file holds the transpose of the value.
  public var isTransposed = false
  /// Whether another tensor of the adapter has the same parameter; training changes it once.
  public var isShared = false

  /// Names a parameter.
  public init(key: String, parameter: Parameter) {
    self.key = key
    self.parameter = parameter
  }

  /// The value as the file holds it.
  public var value: Tensor { isTransposed ? parameter.value.transposed() : parameter.value }
  /// The shape that it has in the file.
  public var shape: [Int] { isTransposed ? parameter.shape.reversed() : parameter.shape }

  /// A value of a file as the parameter takes it.
  func oriented(_ value: Tensor) -> Tensor { isTransposed ? value.transposed() : value }
}

extension PeftModel {
  /// The parameters of an adapter under their keys, in model order.
  ///
  /// - Throws: ``PEFTError`` `invalidAdapter` when there is no such adapter.
  public func tensors(of adapter: String) throws(PEFTError) -> [AdapterTensor] {
    let record = try record(adapter)
    let prefixes = record.prefixes
    var result: [AdapterTensor] = []
    var seen: Set<Parameter.ID> = []
    func add(_ tensor: AdapterTensor) {
      var tensor = tensor
      tensor.isShared = !seen.insert(tensor.parameter.id).inserted
      result.append(tensor)
    }
    for place in record.places {
      let (path, host) = hosts[place]
      guard let stack = host.stack else { continue }
      if let layer = stack.layer(adapter) {
        Self.tensors(of: layer, at: prefixes[place] ?? path).forEach(add)
      }
      for info in stack.copy(adapter)?.info ?? [] {
        guard let parameter = info.parameter else { continue }
        add(AdapterTensor(key: FileKey.key("\(path).\(info.name)"), parameter: parameter))
      }
      if let rows = stack.tokens(adapter), !rows.isShared {
        let key = FileKey.key("\(path).token_adapter.trainable_tokens_delta")
        add(AdapterTensor(key: key, parameter: rows.rows))
      }
      if record.biases.contains(place), let bias = stack.trainedBias?.trained {
        let name = host.parameters.names.bias
        var keys = [path, FileKey.inside(path)].map { FileKey.key("\($0).\(name)") }
        if !stack.layers.isEmpty { keys.reverse() }
        var tensor = AdapterTensor(key: keys[0], parameter: bias)
        tensor.otherKeys = [keys[1]]
        add(tensor)
      }
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
      tensor.isExact = parameter.isExact
      tensor.isTransposed = parameter.isTransposed
      return tensor
    }
  }

  /// The parameters that training changes: those of the active adapters.
  public var trainableTensors: [AdapterTensor] {
    selection.active.flatMap { name in
      ((try? tensors(of: name)) ?? []).filter { $0.parameter.isTrainable && !$0.isShared }
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
      + "trainable%: \(fixed(percent, 4))"
  }

  func forEachParameter(of record: AdapterRecord, _ body: (Parameter, Bool) -> Void) {
    let selected = selection.place(of: record.name)
    for place in record.places {
      guard let stack = hosts[place].host.stack else { continue }
      for parameter in stack.layer(record.name)?.parameters ?? [] where !parameter.isTransposed {
        body(parameter.parameter, parameter.isTrained)
      }
      for info in stack.copy(record.name)?.info ?? [] {
        if let parameter = info.parameter { body(parameter, true) }
      }
      if let rows = stack.tokens(record.name), !rows.isShared { body(rows.rows, true) }
      if let bias = stack.trainedBias, bias.place == selected { body(bias.trained, true) }
    }
  }
}
