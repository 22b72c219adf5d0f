import Models
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

/// Runs that train an adapter further, with each method: they begin where the adapter's own run ended,
/// by that run's evaluation.
@Suite(.serialized)
struct InitialAdapterTests {
  @Test(arguments: TinyRun.Method.allCases, [TinyRun.Kind.classifier, .languageModel])
  func trainingFurtherBeginsWhereItEnded(
    _ method: TinyRun.Method, _ kind: TinyRun.Kind
  ) throws {
    let run = try TinyRun(kind)
    let validation: [String: JSONValue] = [
      "validation_file": .string(run.folder("validation.jsonl")), "num_train_epochs": 2,
    ]
    let first = try run.train(validation.merging(TinyRun.choosing(method, kind)) { $1 })
    let further = validation.merging([
      "lora": .null, "init_adapter": .string(run.folder("out")),
      "output_dir": .string(run.folder("further")),
    ]) { $1 }
    let prepared = try run.prepare(further)
    let model = prepared.base.model
    let objective: any Objective
    if let classifier = model as? any SequenceClassifier {
      objective = ClassificationObjective(classifier)
    } else {
      objective = LanguageModelObjective(try #require(model as? any CausalLanguageModel))
    }
    let result = try Evaluator(objective).evaluate(
      try #require(prepared.validation),
      batchSize: prepared.configuration.arguments.evaluationBatchSize
    ) { _ in }
    #expect(result.loss == first.validation?.loss)

    try run.train(further)
    let (before, after) = (
      try SafetensorsFile(run.folder("out/adapter_model.safetensors")),
      try SafetensorsFile(run.folder("further/adapter_model.safetensors"))
    )
    #expect(before.names == after.names)
    let isEDoRA = [.edora, .compactEDoRA, .loraXS].contains(method)
    for name in before.names {
      // EDoRA's factors and what stands for them do not change.
      let isFrozen =
        isEDoRA && ["lora_A", "lora_B", "fingerprint"].contains { name.contains($0) }
      let isSame = try before.tensor(name).scalars == after.tensor(name).scalars
      #expect(isSame == isFrozen, "\(name)")
    }
  }
}
