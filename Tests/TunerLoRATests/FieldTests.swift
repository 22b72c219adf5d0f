import BLASKernels
import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Every field of the configuration on the tiny models: what peft, transformers and torch compute
/// (Tests/Goldens/fields, made by generator/fields.py).
struct FieldTests {
  static let cases = names { !$0.hasPrefix("experts-") && !pending.contains($0) }

  /// Heads of other tasks, which are tested with the task types, and what is refused by name.
  static let pending = ["init-orthogonal", "question-answering", "token-classification"]

  static func names(_ isIncluded: (String) -> Bool) -> [String] {
    let all = (try? FileSystem.list(TestData.golden("fields"))) ?? []
    return all.filter { !$0.hasPrefix(".") && isIncluded($0) }.sorted()
  }

  /// Counts that differ from peft's, with the reason.
  static let otherCounts: [String: (trainable: Int, reason: String)] = [
    "target-both-tying": (
      969, "both ends have one pair of parameters; peft has two over the same memory"
    )
  ]

  /// Losses that amplify rounding: with every weight perturbed by 3e-7 relative, torch's own losses
  /// of this case move by up to 2.4e-4 (of the others by at most 3e-5).
  static let otherTolerances = ["save-norms": 2e-3]

  @Test func theListIsComplete() {
    #expect(Self.cases.count == 40)
  }

  @Test(arguments: cases)
  func outputsAndCountsArePefts(_ name: String) throws {
    let field = try FieldCase(name)
    let peft = try field.model()
    try peft.load(field.path("adapter"))
    #expect(peft.warnings == field.warnings("load"))
    let report = try peft.targetReport(of: "default")
    let targets = try #require(field.json["targets"]?.array).compactMap(\.string)
    #expect(report.matched.sorted() == targets.sorted())
    let counts = peft.parameterCounts
    let (trainable, all) = (field.int("trainable_parameters"), field.int("all_parameters"))
    let other = Self.otherCounts[name]?.trainable
    #expect(counts.trainable == other ?? trainable)
    #expect(counts.all == all - (trainable - (other ?? trainable)))

    let active = withoutGradients { field.output(peft) }
    try field.expectFirstRow(active, "logits.active")
    let loss = try withoutGradients { try field.loss(peft, field.input) }.item
    let expectedLoss = try field.expected.tensor("loss.active").item
    #expect(abs(loss - expectedLoss) <= 1e-5 * abs(expectedLoss))

    let gradients = try field.loss(peft, field.input).backward()
    let norms = try #require(field.json["grad_norms"]?.object)
    let largest = norms.members.compactMap(\.value.double).max() ?? 1
    var seen: Set<String> = []
    for tensor in try peft.tensors(of: "default") where !tensor.isShared {
      let expected = try #require(norms[tensor.key]?.double, "\(tensor.key)")
      let norm = gradients[tensor.parameter].map { $0.sumOfSquares.squareRoot() } ?? 0
      seen.insert(tensor.key)
      // One parameter gets the gradients of both ends at once.
      if name == "target-both-tying", tensor.key.contains("embed") { continue }
      #expect(
        abs(norm - expected) <= 1e-4 * expected + 1e-7 * largest,
        "\(tensor.key): \(norm) for \(expected)")
    }
    let missing = norms.keys.filter { !seen.contains($0) }
    let shared = try peft.tensors(of: "default").filter(\.isShared).map(\.key)
    #expect(missing.allSatisfy { shared.contains($0) }, "\(missing)")
  }

  @Test(arguments: cases)
  func disabledMergedAndUnloaded(_ name: String) throws {
    let field = try FieldCase(name)
    let peft = try field.model()
    let base = withoutGradients { field.output(peft) }
    try peft.load(field.path("adapter"))
    let active = withoutGradients { field.output(peft) }
    peft.disable()
    let disabled = withoutGradients { field.output(peft) }
    peft.enable()
    if field.json["disabled_is_base"] == true {
      #expect(relativeError(disabled, base) < 1e-5)
    } else {
      try field.expectFirstRow(disabled, "logits.disabled")
    }
    try peft.merge()
    let merged = withoutGradients { field.output(peft) }
    #expect(relativeError(merged, active) < 1e-5)
    peft.unmerge()
    #expect(withoutGradients { field.output(peft) }.scalars == active.scalars)
    // Merged and unloaded it computes the same; unloaded alone it is the base again.
    try peft.mergeAndUnload(safe: true)
    #expect(relativeError(withoutGradients { field.output(peft) }, active) < 1e-5)
    let other = try field.model()
    try other.load(field.path("adapter"))
    try other.setActive([])
    other.unload()
    #expect(withoutGradients { field.output(other) }.scalars == base.scalars)
    #expect(other.parameterCounts.trainable == 0)
  }

  @Test(arguments: cases)
  func tenStepsOfTraining(_ name: String) throws {
    let field = try FieldCase(name)
    let peft = try field.model()
    try peft.load(field.path("adapter"))
    let key = field.json["right_losses"] == nil ? "losses" : "right_losses"
    let losses = try #require(field.json[key]?.array).compactMap(\.double)
    let batches = try SafetensorsFile(field.golden.folder("batches.safetensors"))
    var steps = AdamSteps(peft.trainableTensors.map(\.parameter))
    for (step, expected) in losses.enumerated() {
      let loss = try field.loss(peft, batches, prefix: "\(step).")
      let tolerance = Self.otherTolerances[name] ?? 1e-4
      #expect(
        abs(Double(loss.item) - expected) < tolerance * expected, "step \(step): \(loss.item)")
      steps.step(loss.backward())
    }
    #expect(losses.count == 10)
  }

  /// A new adapter with the same settings, and the loaded one saved again: peft's keys and shapes.
  @Test(arguments: cases)
  func keysArePefts(_ name: String) throws {
    let field = try FieldCase(name)
    let folder = try TemporaryFolder()
    let embeddings: EmbeddingSaving = name == "target-embedding-unsaved" ? .never : .automatic
    let expected = try AdapterFolder(field.path("adapter"))
    // With all biases, peft also writes a head's bias under two names that nothing reads.
    let names = expected.tensors.names.filter {
      !$0.contains(".modules_to_save.") && !$0.contains(".original_module.")
    }
    let peft = try field.model()
    try peft.load(field.path("adapter"))
    try FileSystem.createDirectory(folder("again"))
    try peft.write(into: folder("again"), embeddings: embeddings)
    let copy = try AdapterFolder(folder("again"))
    #expect(Set(copy.tensors.names) == Set(names))
    for key in names {
      #expect(try copy.tensors.bytes(key) == expected.tensors.bytes(key), "\(key)")
      #expect(copy.tensors[key]?.shape == expected.tensors[key]?.shape)
    }
    let new = try field.model()
    try new.add("default", try LoRAConfig(field.config))
    #expect(new.warnings == field.warnings("create"))
    try FileSystem.createDirectory(folder("new"))
    try new.write(into: folder("new"), embeddings: embeddings)
    let saved = try AdapterFolder(folder("new"))
    let suffixed = ["save-norms"]
    if suffixed.contains(name) {
      // Whole names: peft takes all modules whose name ends in "norm" for this one.
      #expect(Set(saved.tensors.names).isStrictSubset(of: names))
    } else {
      #expect(Set(saved.tensors.names) == Set(names))
    }
    // The configuration is written as peft wrote it.
    for (key, value) in expected.config.members {
      if ["peft_version", "base_model_name_or_path"].contains(key) { continue }
      let ours = copy.config[key] ?? .null
      if ["target_modules", "exclude_modules"].contains(key), let names = value.array {
        #expect(Set(ours.array?.compactMap(\.string) ?? []) == Set(names.compactMap(\.string)))
      } else {
        #expect(ours == value || ours.double != nil && ours.double == value.double, "\(key)")
      }
    }
    #expect(Set(copy.config.keys) == Set(expected.config.keys))
  }
}

/// AdamW with torch's settings of the goldens.
struct AdamSteps {
  private let parameters: [Parameter]
  private var first: [Tensor]
  private var second: [Tensor]
  private var count = 0

  init(_ parameters: [Parameter]) {
    self.parameters = parameters
    first = parameters.map { .zeros($0.shape) }
    second = first
  }

  mutating func step(_ gradients: Gradients) {
    count += 1
    for (index, parameter) in parameters.enumerated() {
      guard let gradient = gradients[parameter] else { continue }
      parameter.update { value in
        value.withMutableSlice { value in
          first[index].withMutableSlice { first in
            second[index].withMutableSlice { second in
              Optimizers.adamW(
                parameter: value, gradient: gradient.slice, firstMoment: first,
                secondMoment: second, step: count, learningRate: 0.01, weightDecay: 0.01)
            }
          }
        }
      }
    }
  }
}

/// One folder of `fields`.
struct FieldCase {
  let name: String
  let json: JSONValue
  let golden: GoldenCase
  let expected: SafetensorsFile

  init(_ name: String) throws {
    self.name = name
    json = try FileSystem.readJSON(TestData.golden("fields/\(name)/case.json"))
    golden = try GoldenCase(try #require(json["model"]?.string))
    expected = try SafetensorsFile(TestData.golden("fields/\(name)/expected.safetensors"))
  }

  func path(_ part: String) -> String { TestData.golden("fields/\(name)/\(part)") }
  func int(_ key: String) -> Int { json[key]?.int ?? -1 }
  var input: SafetensorsFile { golden.input }

  func warnings(_ phase: String) -> [String] {
    json["warnings"]?[phase]?.array?.compactMap(\.string) ?? []
  }

  /// The settings of a new adapter.
  var config: JSONObject {
    var object = json["config"]?.object ?? JSONObject()
    object["peft_type"] = "LORA"
    if object["r"] == nil { object["r"] = 3 }
    if object["lora_alpha"] == nil { object["lora_alpha"] = 5 }
    if object["task_type"] == nil {
      object["task_type"] = golden.name == "bert" ? "SEQ_CLS" : "CAUSAL_LM"
    }
    return object
  }

  func model() throws -> PeftModel {
    if let task = json["task_model"]?.string {
      throw PEFTError(.unsupported, "no \(task) in this version")
    }
    return try golden.loadModel()
  }

  func output(_ peft: PeftModel) -> Tensor {
    (try? PaddedBatch(input, prefix: "")).map { golden.output(peft, $0) } ?? .zeros([1])
  }

  func loss(_ peft: PeftModel, _ file: SafetensorsFile, prefix: String = "") throws -> Tensor {
    try golden.loss(peft, file, prefix: prefix)
  }

  /// Compares the first row of an output, which has no padding, with a golden tensor.
  func expectFirstRow(
    _ output: Tensor, _ key: String, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let wanted = try expected.tensor(key)
    let error = relativeError(output.rowRange(0..<wanted.rows), wanted)
    #expect(error < 1e-5, "\(key): \(error)", sourceLocation: sourceLocation)
  }
}
