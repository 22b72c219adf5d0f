import NN
import PEFTSupport
import Tensors

/// Finds the tensors of a file for an adapter's parameters and keeps account of them; nothing is
/// changed before ``assign(to:)``.
struct TensorReading {
  let file: any TensorFile
  var form = AdapterKeyForm.file
  var ignoresMismatchedSizes = false
  /// What was found so far.
  private(set) var report = LoadReport()
  private var values: [(parameter: Parameter, value: Tensor)] = []
  /// Those that the file does not have; a layer may compute them from the others.
  private var others: [Parameter] = []
  private var known: Set<String> = []

  init(_ file: any TensorFile) { self.file = file }

  /// Reads the value of one parameter, if the file has it.
  ///
  /// - Throws: ``PEFTError`` `shapeMismatch`.
  mutating func take(_ tensor: AdapterTensor) throws(PEFTError) {
    let keys = ([tensor.key] + tensor.otherKeys).map { form.key($0) }
    let key = keys.first { file[$0] != nil } ?? keys[0]
    known.insert(key)
    guard let entry = file[key] else {
      if tensor.isStored { report.missing.append(key) }
      others.append(tensor.parameter)
      return
    }
    if entry.shape != tensor.shape {
      guard ignoresMismatchedSizes else {
        throw PEFTError(
          .shapeMismatch,
          "'\(key)' has shape \(entry.shape), the model needs \(tensor.shape)",
          at: file.path, remedy: "The adapter was made for another base model or rank.")
      }
      report.mismatched.append((key, entry.shape, tensor.shape))
      return
    }
    values.append((tensor.parameter, tensor.oriented(try file.tensor(key))))
    report.matched.append(key)
  }

  /// Reads the values of a layer of which the file has everything or nothing.
  ///
  /// - Parameters:
  ///   - tensors: The layer's parameters.
  ///   - path: The layer's path.
  /// - Returns: Whether the file has them.
  /// - Throws: ``PEFTError`` `shapeMismatch`, or `missingTensor` when the file has some of them.
  mutating func takeLayer(_ tensors: [AdapterTensor], at path: String) throws(PEFTError) -> Bool {
    let (matched, missing) = (report.matched.count, report.missing.count)
    for tensor in tensors { try take(tensor) }
    let isFound = report.matched.count > matched
    let absent = report.missing[missing...].map { "'\($0)'" }
    if isFound, !absent.isEmpty {
      throw PEFTError(
        .missingTensor,
        "the tensors of the layer '\(path)' are incomplete, missing: "
          + absent.joined(separator: ", "), at: file.path,
        remedy: "The file is damaged or of another method: save the adapter again.")
    }
    return isFound
  }

  /// Looks at the tensors that no parameter has taken.
  ///
  /// - Parameters:
  ///   - model: Whose own weights may be among them.
  ///   - superfluous: Keys that mean nothing, where they are.
  /// - Throws: ``PEFTError`` as ``PeftModel/baseWeights(among:in:)``.
  mutating func finish(
    on model: PeftModel, superfluous: [String] = []
  ) throws(PEFTError) {
    known.formUnion(superfluous.map { form.key($0) })
    let others = file.names.filter { !known.contains($0) }
    let base = form == .file ? try model.baseWeights(among: others, in: file) : []
    report.matched += base
    report.unexpected = others.filter { !base.contains($0) }
  }

  /// Gives the parameters their values and tells the layers, each with the untouched parameters of
  /// its host; when one refuses, all parameters that were looked for get the old values back.
  ///
  /// - Throws: ``PEFTError`` of a layer, with the file and the layer's path.
  func assign(
    to layers: [(path: String, layer: any TunerLayer, parameters: HostParameters)]
  ) throws(PEFTError) {
    let before = (values.map(\.parameter) + others).map { ($0, $0.value) }
    for (parameter, value) in values { parameter.assign(value) }
    for (path, layer, parameters) in layers {
      do throws(PEFTError) { try layer.didLoad(on: parameters) } catch {
        for (parameter, value) in before { parameter.assign(value) }
        throw error.located(at: "\(file.path), '\(path)'")
      }
    }
  }
}
