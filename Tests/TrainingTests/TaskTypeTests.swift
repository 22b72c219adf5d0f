import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

/// Every task of peft has what its model, its loss and its evaluation need, and a third party's
/// task is used like them.
struct TaskTypeTests {
  @Test func everyTaskIsMapped() throws {
    let expected: [(name: String, head: ModelHead, saved: [String], metric: String)] = [
      ("SEQ_CLS", .sequenceClassification(labels: 3), ["classifier", "score"], "accuracy"),
      ("TOKEN_CLS", .tokenClassification(labels: 3), ["classifier", "score"], "accuracy"),
      ("QUESTION_ANS", .questionAnswering, ["qa_outputs"], "f1"),
      ("CAUSAL_LM", .causalLM, [], "loss"),
      ("SEQ_2_SEQ_LM", .seq2SeqLM, [], "loss"),
      ("FEATURE_EXTRACTION", .none, [], "loss"),
    ]
    let registry = TunerRegistry()
    #expect(registry.taskTypes.names == expected.map(\.name).sorted())
    for entry in expected {
      let task = try registry.taskType(entry.name)
      #expect(try task.head(labelCount: 3) == entry.head)
      #expect(task.savedModules == entry.saved && task.defaultMetric == entry.metric)
      #expect((task.loss == nil) == (task == .featureExtraction))
      if !task.architectureSuffix.isEmpty {
        #expect(
          registry.taskTypes.type(ofArchitectures: ["Some\(task.architectureSuffix)"]) == task)
      }
    }
    #expect(registry.taskTypes.type(ofArchitectures: ["BertModel"]) == nil)
  }

  @Test func tasksWithoutAModelSayWhatIsMissing() throws {
    let run = try TinyRun()
    let seq2seq = failure { _ = try run.prepare(["task_type": "SEQ_2_SEQ_LM"]) }
    #expect(
      seq2seq.contains(
        "a BERT encoder has no SEQ_2_SEQ_LM head: that takes an encoder-decoder, such as T5"),
      "\(seq2seq)")
    let features = failure { _ = try run.prepare(["task_type": "FEATURE_EXTRACTION"]) }
    #expect(features.contains("FEATURE_EXTRACTION has no loss"), "\(features)")
    let unknown = failure { _ = try run.prepare(["task_type": "RANKING"]) }
    #expect(unknown.contains("invalid task type: 'RANKING'"), "\(unknown)")
  }

  /// Training goes on from an adapter's task, here that of a file of peft.
  @Test func adaptersOfEncoderDecodersSayWhatIsMissing() throws {
    let adapter = JSONValue.string(TestData.golden("files/seq2seq"))
    for (kind, name) in [(TinyRun.Kind.classifier, "BERT"), (.languageModel, "Llama")] {
      let run = try TinyRun(kind)
      let text = failure { _ = try run.prepare(["init_adapter": adapter]) }
      #expect(
        text.contains("has no SEQ_2_SEQ_LM head: that takes an encoder-decoder, such as T5")
          && text.contains(name), "\(text)")
      #expect(!FileSystem.exists(run.folder("out")))
      let other = failure {
        _ = try run.prepare(["init_adapter": adapter, "task_type": "CAUSAL_LM"])
      }
      #expect(other.contains("'init_adapter' is for SEQ_2_SEQ_LM"), "\(other)")
    }
  }

  /// A hinge loss on two numbers: nothing that the package knows.
  private struct RankingTask: TrainableTask {
    var formats: [DataConfiguration.Format] { [.classification] }
    var labelling: TaskLabelling { .none }

    func head(labelCount: Int) -> ModelHead { .sequenceClassification(labels: 2) }

    func makeObjective(
      _ model: any TransformerModel, _ context: TaskContext
    ) throws(PEFTError) -> any Objective {
      guard let model = model as? any SequenceClassifier else {
        throw PEFTError(.unsupported, "cannot rank")
      }
      return RankingObjective(model: model)
    }

    func dataset(_ source: DataSource, _ builder: DatasetBuilder) throws(PEFTError) -> Dataset {
      var examples: [Example] = []
      for record in source.records {
        let ids = (record.values["input_ids"]?.array ?? []).compactMap(\.int).map { Int32($0) }
        examples.append(Example(tokenIDs: ids, labels: [], targets: [Float(ids[0] % 2)]))
      }
      return Dataset(examples)
    }
  }

  private struct RankingObjective: Objective {
    let model: any SequenceClassifier
    var metricNames: [String] { ["mae"] }

    func labelCount(_ batch: Batch) -> Int { batch.targets.count }

    func loss(_ batch: Batch, _ context: ForwardContext, count: Int) throws(PEFTError) -> Tensor? {
      let targets = batch.targets.flatMap { [$0, 1 - $0] }
      return meanSquaredError(
        model.logits(batch.tokens, context), targets: targets, count: count)
    }

    func evaluate(
      _ batch: Batch, _ context: ForwardContext, into sums: inout EvaluationSums
    ) throws(PEFTError) {
      let count = batch.targets.count
      let loss = try loss(batch, context, count: count)
      sums.add(meanLoss: Double(loss?.item ?? 0), count: count)
    }

    func metrics(of sums: EvaluationSums) -> [Metric] { [Metric("mae", sums.loss)] }
  }

  @Test func aThirdPartysTaskIsTrained() throws {
    var registry = standardRegistry
    registry.register(
      TaskType(
        "RANKING", modelClassName: "RankingModel", savedModules: ["classifier"],
        loss: "squared error", defaultMetric: "mae", behavior: RankingTask()))
    // A registry is a value: others do not know the task.
    #expect(throws: PEFTError.self) { _ = try standardRegistry.taskType("RANKING") }
    let run = try TinyRun()
    var settings = run.settings
    settings["task_type"] = "RANKING"
    settings["validation_file"] = .string(run.folder("validation.jsonl"))
    let prepared = try PreparedRun(
      RunConfiguration(settings, registry: registry), registry: registry)
    #expect(prepared.task.modelClassName == "RankingModel")
    #expect(prepared.targets.saved == ["classifier"])
    let summary = try prepared.makeTrainer().run()
    #expect(summary.best?.metric == "mae" && summary.steps == 18)
    let config = try AdapterFolder(run.folder("out")).config
    #expect(config["task_type"] == "RANKING")
  }
}
