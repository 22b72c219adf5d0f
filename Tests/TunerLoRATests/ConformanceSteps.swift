import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// The steps of Tests/Goldens/conformance.json that combine and convert adapters of the model `mlp`.
struct ConformanceSteps {
  private let id: String
  private let steps: [JSONValue]
  private let numbers: SafetensorsFile
  private var peft: PeftModel!
  /// Steps that were compared.
  private(set) var count = 0

  init(_ id: String) throws {
    self.id = id
    let cases = try FileSystem.readJSON(TestData.golden("conformance.json"))["cases"]?.array ?? []
    let found = cases.first { $0["id"]?.string == id }
    steps = try #require(found?["steps"]?.array)
    numbers = try SafetensorsFile(TestData.golden("conformance.safetensors"))
  }

  mutating func run() throws {
    for (place, step) in steps.enumerated() {
      let action = step["do"]?.string ?? ""
      // The models that come later have a place of their own: embeddings convert here, unlike in peft.
      if action == "model", place > 0 { return }
      let wanted = step["error"]?["text"]?.string
      do {
        try perform(action, step, "\(id), step \(place)")
        #expect(
          wanted == nil && step["right"]?.string?.hasPrefix("refused") != true || isPeftOnly(step),
          "\(id), step \(place): no error")
      } catch let error as PEFTError {
        if step["right"]?.string?.hasPrefix("refused") == true { continue }
        let expected = wanted == "'nobody'" ? "Adapter nobody not found." : wanted
        #expect(error.message == expected, "\(id), step \(place)")
      }
    }
  }

  /// In the compatibility mode a name that is taken does nothing, as in peft.
  private func isPeftOnly(_ step: JSONValue) -> Bool {
    step["right"]?.string == "refused: the name exists"
  }

  private mutating func perform(_ action: String, _ step: JSONValue, _ place: String) throws {
    let adapter = step["adapter"]?.string ?? step["adapter_name"]?.string ?? "default"
    let names = (step["adapters"]?.array ?? []).compactMap(\.string)
    count += 1
    switch action {
    case "model":
      var registry = TunerRegistry()
      registry.register(LoRATuner.self)
      let model = MLP(
        lin0: try numbers.tensor("mlp.lin0.weight"), lin1: try numbers.tensor("mlp.lin1.weight"),
        biases: [try numbers.tensor("mlp.lin0.bias"), try numbers.tensor("mlp.lin1.bias")])
      peft = PeftModel(model, info: BaseModelInfo(modelType: "custom"), registry: registry)
    case "wrap", "add":
      var object = step["config"]?.object ?? JSONObject()
      object["peft_type"] = "LORA"
      try peft.add(adapter, LoRAConfig(object))
    case "set":
      let prefix = "\(step["state"]?.string ?? "")."
      for tensor in try peft.tensors(of: adapter) {
        tensor.parameter.assign(try numbers.tensor(prefix + tensor.key))
      }
    case "combine":
      let kind = try Combination.Kind(name: step["combination_type"]?.string ?? "svd")
      try peft.combine(
        names, weights: (step["weights"]?.array ?? []).compactMap(\.double), into: adapter,
        Combination(
          kind, density: step["density"]?.double, svdRank: step["svd_rank"]?.int,
          compatibility: .peft))
    case "activate": try peft.setActive(names)
    case "forward": try expect(step["value"], place)
    case "forward_disabled": try peft.withAdaptersDisabled { try expect(step["value"], place) }
    case "field":
      let name = step["name"]?.string ?? ""
      #expect(try peft.config(adapter).object[name] == step["value"], "\(place): \(name)")
    case "adapters":
      let all = (step["value"]?["all"]?.array ?? []).compactMap(\.string)
      #expect(peft.adapterNames == all, "\(place)")
    case "compare": break
    case "convert_to_lora": try convert(step, adapter, place)
    default: Issue.record("\(place): no such step: \(action)")
    }
  }

  private func expect(_ value: JSONValue?, _ place: String) throws {
    let rows = (value?.array ?? []).flatMap { $0.array ?? [] }.compactMap(\.double)
    let output = (peft.base as! MLP)(try numbers.tensor("mlp.input"))
    expectClose(output.scalars, rows, 1e-5, place)
  }

  private func convert(_ step: JSONValue, _ adapter: String, _ place: String) throws {
    let rank: LoRAConversion.Rank
    switch step["rank"] {
    case .int(let value)?: rank = .fixed(value)
    default: rank = .energy(step["rank"]?.double ?? .nan)
    }
    let made = try peft.convertToLoRA(adapter, rank: rank)
    let warnings = (step["warnings"]?.array ?? []).compactMap(\.string)
    #expect(made.warnings == warnings, "\(place)")
    let value = step["value"]?.object ?? JSONObject()
    for key in ["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"] {
      #expect(made.config.object[key] == value[key], "\(place): \(key)")
    }
    let parts = try LoRAParts(CombinationSource(made.values, weight: 1))
    for path in parts.paths {
      let key = "base_model.model.\(path)"
      let part = try #require(parts.modules[path])
      #expect(part.scaling == 1)
      #expect(part.factors.rank == value["ranks"]?[key]?.int, "\(place): \(path)")
      let row = (value["first_rows"]?[key]?.array ?? []).compactMap(\.double)
      expectClose(
        part.factors.product().rowRange(0..<1).scalars, row, 1e-5, "\(place): \(path)")
    }
  }
}
