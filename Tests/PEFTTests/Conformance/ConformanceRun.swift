import LayerTestSupport
import Models
import PEFT
import TestSupport
import Testing

@testable import PEFTCore

/// The committed file of cases with their models, trees and tensors.
struct ConformanceData: Sendable {
  let json: JSONValue
  let weights: SafetensorsFile

  init() throws {
    json = try FileSystem.readJSON(TestData.golden("conformance.json"))
    weights = try SafetensorsFile(TestData.golden("conformance.safetensors"))
  }

  func steps(_ id: String) -> [JSONValue] {
    json["cases"]?.array?.first { $0["id"]?.string == id }?["steps"]?.array ?? []
  }
}

/// One case: makes the calls that were made on peft, and compares what comes of each.
final class ConformanceRun {
  let data: ConformanceData
  let id: String
  let folder: TemporaryFolder
  var base: any Module = ConformanceModel("None")
  var info = BaseModelInfo(modelType: "")
  var forward: ConformanceForward?
  private(set) var golden = ""
  var peft: PeftModel!
  var outputs: [Int: Tensor] = [:]
  var snapshot: TensorTable?
  /// Settings as they were last written.
  var written = JSONValue.null
  /// Whether adapters were injected without a wrapper.
  var isInjected = false

  init(_ id: String, _ data: ConformanceData) throws {
    self.id = id
    self.data = data
    folder = try TemporaryFolder()
  }

  func run() throws {
    var isSkipping = false
    for (index, step) in data.steps(id).enumerated() {
      let call = step["do"]?.string ?? ""
      if call == "model" || call == "tree" { isSkipping = false }
      // Models with more rows than the file that they were read from, or of other numbers.
      if let resized = step["resized"], !resized.isNull { isSkipping = true }
      if call == "model", let type = step["dtype"], type != "float32" { isSkipping = true }
      if isSkipping { continue }
      let difference = ConformanceDifferences.steps["\(id):\(index)"]
      if case .stops = difference { isSkipping = true }
      if case .skips = difference { continue }
      if case .stops = difference { continue }
      // What is right there is in the tests of the part that it belongs to.
      if step["right"] != nil, difference == nil, call != "load" { continue }
      let place = "case \(id), step \(index): \(call)"
      do {
        // A drawn layer is a model of its own.
        let isOwn = call == "draw" || call == "orthogonal"
        try keepingState(where: !isOwn && isRefused(step, place), place) {
          try perform(call, step, index, place)
        }
        if case .says(let text) = difference {
          Issue.record("\(place): not refused with '\(text)'")
        } else if let error = step["error"], difference == nil {
          Issue.record("\(place): not refused: \(error["text"]?.string ?? "")")
        }
      } catch let error as PEFTError {
        let text = "\(error.message) \(error.remedy ?? "") \(error.location ?? "")"
        if case .says(let own) = difference {
          #expect(text.contains(own), "\(place): \(text)")
        } else if let wanted = step["error"]?["text"]?.string {
          #expect(Self.plain(text).contains(Self.plain(wanted)), "\(place): \(text) for \(wanted)")
        } else {
          Issue.record("\(place): \(error)")
        }
      }
    }
  }

  /// Whether a step is refused by peft, and in whatever words here too.
  func isRefused(_ step: JSONValue, _ place: String) -> Bool {
    switch ConformanceDifferences.steps["\(id):\(place.step)"] {
    case nil: return step["error"] != nil
    case .says: return true
    default: return false
    }
  }

  /// Makes a call; when it throws, nothing of the model may have changed.
  func keepingState(where isChecked: Bool, _ place: String, _ body: () throws -> Void) throws {
    let before = isChecked ? try ModelState(peft ?? wrap()) : nil
    do { try body() } catch {
      if let before {
        let changes = try ModelState(peft ?? wrap()).changes(since: before)
        #expect(changes == [], "\(place)")
      }
      throw error
    }
  }

  /// A text without what line ends and full stops make of it.
  private static func plain(_ text: String) -> String {
    text.filter { !$0.isWhitespace && $0 != "." && $0 != "`" }
  }

  /// Compares what was warned of with peft's warnings, without those that say nothing here.
  func expectWarnings(_ actual: [String], _ step: JSONValue, _ place: String) {
    if case .warns = ConformanceDifferences.steps["\(id):\(place.step)"] { return }
    let wanted = (step["warnings"]?.array ?? []).compactMap(\.string).filter { text in
      !ConformanceDifferences.warnings.contains { text.contains($0) }
    }
    #expect(actual == wanted, "\(place)")
  }

  // MARK: Settings

  func object(_ value: JSONValue?) -> JSONObject {
    var object = value?.object ?? JSONObject()
    object["peft_type"] = "LORA"
    return object
  }

  func config(_ value: JSONValue?) throws -> any TunerConfig {
    try TunerRegistry.standard.config(object(value))
  }

  func name(_ step: JSONValue) -> String { step["adapter"]?.string ?? "default" }
  func names(_ value: JSONValue?) -> [String] { value?.array?.compactMap(\.string) ?? [] }

  // MARK: Models

  func use(_ step: JSONValue) throws {
    isInjected = false
    peft = nil
    forward = nil
    if let key = step["tree"]?.string {
      let tree = data.json["trees"]?[key] ?? .null
      base = ConformanceModel.tree(tree)
      info = BaseModelInfo(
        modelType: tree["model_type"]?.string ?? "",
        outputHeads: tree["output_embeddings"]?.string.map { [$0] } ?? [])
      return
    }
    let name = step["model"]?.string ?? ""
    if let described = data.json["models"]?[name] {
      let model = try ConformanceModel.described(name, described, data.weights)
      base = model
      info = BaseModelInfo(modelType: "")
      forward = ConformanceForward(name: name, model: model, weights: data.weights)
    } else {
      golden = name
      let head = step["num_labels"]?.int.map { ModelHead.sequenceClassification(labels: $0) }
      var path = TestData.golden("\(name)/model")
      if head != nil { path = try headless(path) }
      let loaded = try ModelLoader.load(path, head: head)
      base = loaded.model
      info = BaseModelInfo(
        modelType: loaded.model.configuration.modelType, nameOrPath: "\(name)/model",
        outputHeads: loaded.outputHeads)
    }
  }

  /// A copy of a model's folder without its classifier, so that one of another size is made.
  private func headless(_ path: String) throws -> String {
    let copy = folder("headless")
    try FileSystem.createDirectory(copy)
    let file = try SafetensorsFile("\(path)/model.safetensors")
    let names = file.names.filter { !$0.hasPrefix("classifier.") }
    try TensorTable(try names.map { ($0, try file.tensor($0)) }).write(
      to: "\(copy)/model.safetensors")
    let config = try FileSystem.readJSON("\(path)/config.json")
    try FileSystem.write("\(copy)/config.json", config.text(.indented))
    return copy
  }

  func wrap() -> PeftModel { PeftModel(base, info: info, registry: .standard) }

  // MARK: Outputs

  /// The output; of a language model four logits at the fourth position of each row, as in the
  /// goldens.
  func output(_ change: (inout ForwardContext) -> Void = { _ in }) throws -> Tensor {
    if let forward { return try forward.output(change) }
    guard let model = base as? any CausalLanguageModel else {
      throw PEFTError(.unsupported, "the model has no output in these tests")
    }
    let batch = try tokens()
    var context = ForwardContext(batch.layout)
    change(&context)
    let logits = model.logits(batch, context)
    let rows = (0..<batch.layout.count).map { Int32(batch.layout.range($0).lowerBound + 3) }
    return logits.selectRows(rows).columnRange(0..<4)
  }

  /// The rows of the goldens' input.
  func tokens() throws -> TokenBatch {
    let file = try SafetensorsFile(TestData.golden("\(golden)/input.safetensors"))
    let (shape, ids) = try file.integers("input_ids")
    let mask = try file.integers("attention_mask").values
    let types = file["token_type_ids"] == nil ? nil : try file.integers("token_type_ids").values
    let visible = (0..<shape[0]).map { row in
      (row * shape[1]..<(row + 1) * shape[1]).filter { mask[$0] == 1 }
    }
    return TokenBatch(
      visible.map { $0.map { ids[$0] } },
      tokenTypeIDs: types.map { types in visible.map { $0.map { types[$0] } } })
  }

  /// The logits of a classifier, and the loss that goes with its labels.
  func classify(_ step: JSONValue, _ place: String) throws {
    guard let model = base as? any SequenceClassifier else {
      throw PEFTError(.unsupported, "the model is no classifier")
    }
    let batch = try tokens()
    let logits = withoutGradients { model.logits(batch, ForwardContext(batch.layout)) }
    let labels = Self.flat(step["labels"] ?? .null)
    let loss: Tensor
    switch (logits.columns, labels.count == logits.rows) {
    case (1, _): loss = meanSquaredError(logits, targets: labels.map { Float($0) })
    case (_, true): loss = try crossEntropy(logits, labels: labels.map { Int32($0) })
    default:
      loss = binaryCrossEntropy(
        logits, targets: labels.map { Float($0) }, count: labels.count)
    }
    let wanted = Self.flat(step["value"]?["logits"] ?? .null)
    let largest = wanted.map { abs($0) }.max() ?? 0
    for (found, number) in zip(logits.scalars, wanted) {
      #expect(abs(Double(found) - number) <= 1e-5 * largest, "\(place)")
    }
    #expect(wanted.count == logits.count, "\(place)")
    let expected = step["value"]?["loss"]?.double ?? .nan
    #expect(abs(Double(loss.item) - expected) <= 1e-5 * expected, "\(place): \(loss.item)")
  }

  func compute(_ step: JSONValue, _ index: Int, _ place: String) throws {
    let rows = step["rows"].map { names($0) }
    let count = try forward?.rows() ?? 3
    let value = try withoutGradients { () throws -> Tensor in
      try output { context in
        guard let rows else { return }
        context.sequenceAdapters = try? peft.sequenceAdapters(rows, count: count)
      }
    }
    if let rows { _ = try peft.sequenceAdapters(rows, count: count) }
    outputs[index] = value
    guard let wanted = step["value"] else { return }
    let numbers = Self.flat(wanted)
    guard numbers.count == value.count else {
      Issue.record("\(place): \(value.shape)")
      return
    }
    let largest = numbers.map { abs($0) }.max() ?? 0
    let error = zip(value.scalars, numbers).map { abs(Double($0) - $1) }.max() ?? 0
    #expect(error <= 1e-5 * max(largest, 1e-6), "\(place): off by \(error) of \(largest)")
  }

  static func flat(_ value: JSONValue) -> [Double] {
    value.array?.flatMap { flat($0) } ?? value.double.map { [$0] } ?? []
  }

  func compare(_ step: JSONValue, _ place: String) {
    let pair = step["steps"]?.array?.compactMap(\.int) ?? []
    guard pair.count == 2, let one = outputs[pair[0]], let other = outputs[pair[1]] else { return }
    let error = zip(one.scalars, other.scalars).map { abs($0 - $1) }.max() ?? 0
    let isSame = error <= 1e-5 * max(other.maximumMagnitude, 1)
    #expect(isSame == (step["value"] == true), "\(place): off by \(error)")
  }
}

extension String {
  /// The number of the step in "case 1, step 2: name".
  var step: String {
    String(split(separator: " ").dropFirst(3).first?.dropLast() ?? "")
  }
}
