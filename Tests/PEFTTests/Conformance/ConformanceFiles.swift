import LayerTestSupport
import PEFT
import TestSupport
import Testing

@testable import PEFTCore
@testable import TunerLoRA

extension ConformanceRun {
  /// Makes one call that reads or writes files.
  func performOnFiles(_ call: String, _ step: JSONValue, _ place: String) throws {
    let path = folder(step["folder"]?.string ?? "")
    switch call {
    // peft is given the initial values to write a plain adapter; here the layers know them.
    case "save_initial": break
    case "save":
      let isPlain = step["path_initial_model_for_weight_conversion"] != nil
      try peft.saveAll(
        path, adapters: step["selected_adapters"].map { names($0) },
        form: isPlain ? .plain : .automatic)
      // What is in them is another matter where the outcome is another.
      if case .accepts = ConformanceDifferences.steps["\(id):\(place.step)"] { return }
      try compareFiles(path, step["value"] ?? .null, place)
    case "load":
      peft = wrap()
      try load(path, step, place)
    case "load_more":
      let report = try peft.load(
        path, as: name(step), strict: false, isTrainable: step["trainable"] == true)
      expectWarnings(report.warnings, step, place)
      let infix = ".\(name(step))"
      let missing = names(step["value"]?["missing"]).map { $0.replacing(infix, with: "") }
      #expect(Set(report.missing) == Set(missing), "\(place)")
      #expect(Set(report.unexpected) == Set(names(step["value"]?["unexpected"])), "\(place)")
    case "load_goldens":
      if golden.isEmpty {
        let first = step["adapters"]?.object?.members.first?.value.string ?? ""
        try use(["model": .string(String(first.prefix { $0 != "/" }))])
      }
      peft = wrap()
      for (name, path) in step["adapters"]?.object?.members ?? [] {
        try peft.load(TestData.golden(path.string ?? ""), as: name)
      }
    case "hotswap": try peft.hotSwap(name(step), from: path)
    case "remove": FileSystem.removeTree(folder(step["file"]?.string ?? ""))
    case "edit": try edit(path, step)
    default: throw PEFTError(.unsupported, "no call '\(call)' in these tests")
    }
  }

  /// Where peft warns of missing tensors and goes on, loading is refused unless told otherwise; the
  /// same tensors are named.
  private func load(_ path: String, _ step: JSONValue, _ place: String) throws {
    let told = names(step["warnings"]).first { $0.contains("Found missing adapter keys") }
    let isTrainable = step["trainable"] == true
    guard let told, step["right"] == nil else {
      try peft.load(path, as: name(step), isTrainable: isTrainable)
      return
    }
    #expect(throws: PEFTError.self, "\(place)") {
      try keepingState(where: true, place) { try peft.load(path, as: name(step)) }
    }
    let report = try peft.load(
      path, as: name(step), strict: false, isTrainable: isTrainable)
    let keys = told.split(separator: "'").filter { $0.contains("base_model") }
    let wanted = keys.map { String($0).replacing(".\(name(step))", with: "") }
    #expect(Set(report.missing) == Set(wanted), "\(place)")
  }

  /// Compares the files of a folder: shapes of tensors, and the settings that the goldens have.
  private func compareFiles(_ path: String, _ value: JSONValue, _ place: String) throws {
    for (file, content) in value.object?.members ?? [] {
      let own = "\(path)/\(file)"
      if file.hasSuffix(".safetensors") {
        expectShapes(try SafetensorsFile(own), content, "\(place), \(file)")
      } else if file.hasSuffix(".json") {
        let settings = try FileSystem.readJSON(own)
        for (key, wanted) in content.object?.members ?? [] {
          let found = settings[key] ?? .null
          #expect(Self.isSame(found, wanted), "\(place), \(file): \(key)")
        }
      } else if file == "README.md", value["adapter_config.json"] != nil {
        #expect(FileSystem.exists(own), "\(place): \(file)")
      }
    }
    for file in ["config.json", "model.safetensors"] {
      #expect(!FileSystem.exists("\(path)/\(file)"), "\(place): \(file)")
    }
  }

  /// Changes a saved adapter: takes tensors out, renames them, adds zeros, or changes settings.
  private func edit(_ path: String, _ step: JSONValue) throws {
    let weights = "\(path)/adapter_model.safetensors"
    let file = try SafetensorsFile(weights)
    let dropped = names(step["drop"])
    var tensors: [(key: String, tensor: Tensor)] = []
    for name in file.names where !dropped.contains(where: { name.contains($0) }) {
      var key = name
      for (old, new) in step["rename"]?.object?.members ?? [] {
        key = key.replacing(old, with: new.string ?? "")
      }
      tensors.append((key, try file.tensor(name)))
    }
    for kind in ["add", "reshape"] {
      for (key, shape) in step[kind]?.object?.members ?? [] {
        tensors.removeAll { $0.key == key }
        tensors.append((key, .zeros(shape.array?.compactMap(\.int) ?? [])))
      }
    }
    try TensorTable(tensors).write(to: weights)
    guard let changes = step["config"]?.object else { return }
    let config = "\(path)/adapter_config.json"
    var settings = try FileSystem.readJSON(config).object ?? JSONObject()
    for (key, value) in changes.members {
      settings[key] = value.string == "__absent__" ? nil : value
    }
    try FileSystem.write(config, JSONValue.object(settings).text(.indented))
  }

  // MARK: Settings

  /// Compares what settings are read and written as.
  func lookAtSettings(_ call: String, _ step: JSONValue, _ place: String) throws {
    let value = step["value"] ?? .null
    switch call {
    case "config":
      let made = try LoRAConfig(object(step["config"]))
      for (key, wanted) in value.object?.members ?? [] {
        let found = made.object[key] ?? .null
        #expect(Self.sorted(found) == Self.sorted(wanted), "\(place): \(key)")
      }
      expectWarnings(made.remarks, step, place)
    case "read_config":
      let config = try TunerRegistry.standard.config(step["file"]?.object ?? JSONObject())
      for (key, wanted) in value.object?.members ?? [] {
        let found = config.object[key] ?? .null
        #expect(Self.sorted(found) == Self.sorted(wanted), "\(place): \(key)")
      }
      let told = names(step["warnings"]).first { $0.hasPrefix("Unexpected keyword") }
      let unknown = told?.split(separator: "[")[1].split(separator: "]")[0]
        .split(separator: "'").filter { $0 != ", " }.map(String.init)
      // The parts of fused projections are a setting here, as in loralib.
      #expect(
        Set(config.unknownKeys.keys) == Set(unknown ?? []).subtracting(["enable_lora"]), "\(place)")
    case "write_config":
      written = JSONValue.object(try LoRAConfig(object(step["config"])).object)
      for (key, wanted) in value.object?.members ?? [] where key != "peft_version" {
        #expect(Self.sorted(written[key] ?? .null) == Self.sorted(wanted), "\(place): \(key)")
      }
    case "order":
      let text = written.text(.indented, sortedKeys: true)
      let keys = try JSONValue(parsing: text).object?.keys ?? []
      #expect(keys == names(value), "\(place)")
    case "head":
      #expect(written.text(.indented, sortedKeys: true).hasPrefix(value.string ?? "-"), "\(place)")
    case "minimal_targets":
      let found = try MinimalTargets.suffixes(
        of: names(step["targets"]), others: names(step["others"]))
      #expect(Set(found) == Set(names(value)), "\(place)")
    case "default_targets":
      for (type, wanted) in value.object?.members ?? [] {
        let targets = LoRATuner.defaultTargets(modelType: type)
        switch targets {
        case .list(let found): #expect(Set(found) == Set(names(wanted)), "\(place): \(type)")
        case .regex(let found): #expect(found == wanted.string, "\(place): \(type)")
        default: Issue.record("\(place): nothing for \(type)")
        }
      }
    case "settings":
      let settings = try FileSystem.readJSON(
        folder("\(step["folder"]?.string ?? "")/adapter_config.json"))
      // The Python class of the base is not known here.
      for (key, wanted) in value.object?.members ?? [] where key != "auto_mapping" {
        #expect(Self.isSame(settings[key] ?? .null, wanted), "\(place): \(key)")
      }
    case "draw": try draw(step, place)
    case "orthogonal": try drawOrthogonal(step, place)
    case "see": break
    default: throw PEFTError(.unsupported, "no call '\(call)' in these tests")
    }
  }

  // MARK: Initial values

  /// A new adapter on one layer: what its numbers look like.
  private func draw(_ step: JSONValue, _ place: String) throws {
    let shape = step["weight"]?.array?.compactMap(\.int) ?? []
    let weight = DenseMatrix(.zeros([shape[0], shape.dropFirst().reduce(1, *)]))
    let parameters = HostParameters(weight: .matrix(weight), bias: nil)
    let root = ConformanceModel("Toy")
    switch step["layer"]?.string {
    case "Linear":
      root.add(
        "layer", Linear(parameters, inputFeatures: shape[1], outputFeatures: shape[0]))
    case "Embedding":
      root.add("layer", Embedding(parameters, count: shape[0], width: shape[1]))
    default:
      let settings = ConvolutionSettings(shape[1], shape[0], kernel: Array(shape[2...]))
      root.add("layer", Convolution(weight, bias: nil, settings))
    }
    base = root
    peft = wrap()
    var config = object(step["config"])
    config["target_modules"] = ["layer"]
    try keepingState(where: isRefused(step, place), place) {
      try peft.add("default", any: try TunerRegistry.standard.config(config), seed: 11)
    }
    let tensors = try peft.tensors(of: "default").map(\.value)
    for (name, value) in zip(["A", "B"], tensors) {
      guard let wanted = step["value"]?[name] else { continue }
      #expect(value.shape == wanted["shape"]?.array?.compactMap(\.int), "\(place), \(name)")
      let isZero = value.maximumMagnitude == 0
      #expect(isZero == (wanted["zero"] == true), "\(place), \(name)")
      guard !isZero, value.count > 1000 else { continue }
      let numbers = Distribution(value.scalars.prefix(20000).map(Double.init))
      let deviation = wanted["deviation"]?.double ?? 0
      #expect(abs(numbers.deviation / deviation - 1) < 0.05, "\(place), \(name)")
      #expect(numbers.isUniform == (wanted["is_uniform"] == true), "\(place), \(name)")
      #expect(numbers.isNormal == (wanted["is_normal"] == true), "\(place), \(name)")
    }
  }

  /// Factors that are not zero, though their product is.
  private func drawOrthogonal(_ step: JSONValue, _ place: String) throws {
    let (inputs, outputs) = (step["in_features"]?.int ?? 0, step["out_features"]?.int ?? 0)
    let root = ConformanceModel("Toy")
    root.add(
      "layer",
      Linear(
        HostParameters(weight: .matrix(DenseMatrix(.zeros([outputs, inputs]))), bias: nil),
        inputFeatures: inputs, outputFeatures: outputs))
    base = root
    peft = wrap()
    let config = LoRAConfig(
      rank: step["r"]?.int ?? 0, targets: TargetSelection(.list(["layer"])),
      initialization: .orthogonal)
    try keepingState(where: isRefused(step, place), place) { try peft.add("default", config) }
    let (a, b) = (
      try peft.tensors(of: "default")[0].value, try peft.tensors(of: "default")[1].value
    )
    #expect(a.maximumMagnitude > 0 && b.maximumMagnitude > 0, "\(place)")
    #expect(linear(b, a.transposed()).maximumMagnitude < 1e-6, "\(place)")
  }
}
