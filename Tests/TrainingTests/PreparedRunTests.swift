import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import Tokenizers

@testable import Training

/// Bad input is found before anything is written; each error names what is wrong.
struct PreparedRunTests {
  private let run: TinyRun
  init() throws { run = try TinyRun() }

  private func message(_ changes: [String: JSONValue]) -> String {
    failure { _ = try run.prepare(changes) }
  }

  private func message(data: String) throws -> String {
    let path = try run.folder.write("bad.jsonl", data)
    return message(["train_file": .string(path)])
  }

  @Test func missingFilesAndFolders() {
    #expect(message(["model": "/nowhere"]).contains("/nowhere: no such model folder"))
    #expect(message(["train_file": "/nowhere.jsonl"]).hasPrefix("/nowhere.jsonl: cannot open"))
    #expect(message(["train_file": .null]).contains("the key 'train_file' is missing"))
    #expect(message(["init_adapter": "/nowhere"]).contains("/nowhere: no such adapter folder"))
    #expect(!FileSystem.exists(run.folder("out")))
  }

  @Test func targetsThatMatchNothing() {
    let text = message(["lora.target_modules": ["nothing"]])
    #expect(text.contains("'target_modules' is {'nothing'}"), "\(text)")
  }

  /// peft says nothing of these; a run's author wants to know.
  @Test func settingsWithoutEffectAreNoticed() throws {
    let notices = try run.prepare(["lora.target_modules": ["query", "nothing"]]).notices
    #expect(notices == ["no module matches the target ['nothing']"])
    let pattern = try run.prepare(["lora.rank_pattern": ["nothing": 3]]).notices
    #expect(pattern.contains { $0.contains("nothing") }, "\(pattern)")
  }

  @Test func aTextWithCommasIsNoList() {
    let text = message(["lora.target_modules": "query,dense"])
    #expect(text.hasPrefix("'lora': No modules were targeted"), "\(text)")
    #expect(text.hasSuffix("a list of names is written [q_proj, v_proj]."), "\(text)")
  }

  @Test func membersOfTheModelThatNothingReadsAreRefused() throws {
    let text = message(["model_config.hidden_dropout_probs": 0])
    #expect(
      text
        == "'model_config': unknown key 'hidden_dropout_probs': no part of the model reads it. "
        + "Did you mean 'hidden_dropout_prob'?")
    // Not in the file, but it has a meaning.
    _ = try run.prepare(["model_config.layer_norm_eps": 1e-6, "model_config.num_labels": 3])
    let scaling: JSONValue = ["type": "linear", "factor": 2]
    _ = try TinyRun(.languageModel).prepare(["model_config.rope_scaling": scaling])
    // A run that was begun with it goes on.
    _ = try run.prepare(["model_config.unread": 1, "resume_from_checkpoint": true])
  }

  /// A run's files beside a model's would be mistaken for its own.
  @Test func theOutputIsNoModel() throws {
    let text = message(["output_dir": .string(run.folder("model"))])
    #expect(text.contains("'output_dir' is the folder of a model"), "\(text)")
    #expect(try FileSystem.list(run.folder("model")) == ["config.json"])
  }

  /// Hugging Face calls the column `labels`; a data set may call it otherwise.
  @Test func labelsOfTokensMayStandInAnotherColumn() throws {
    for (column, settings) in [
      ("labels", [:]), ("y", ["label_column": "y"]), ("label", ["label_column": "y"]),
    ] as [(String, [String: JSONValue])] {
      let path = try run.folder.write(
        "named.jsonl",
        "{\"input_ids\": [1, 2], \"\(column)\": 0}\n{\"input_ids\": [3], \"\(column)\": 2}\n")
      let changes = settings.merging(["train_file": .string(path)]) { $1 }
      let prepared = try run.prepare(changes)
      #expect(prepared.task == .sequenceClassification && prepared.labels?.count == 3)
      #expect(prepared.train.examples.map(\.labels) == [[0], [2]])
    }
  }

  @Test func tokenDataIsChecked() throws {
    #expect(try message(data: "").contains("the data is empty"))
    #expect(
      try message(
        data: "{\"input_ids\": [1, 2], \"label\": 0}\n{\"input_ids\": [1, 40], \"label\": 1}"
      )
      .contains("bad.jsonl:2: 'input_ids' holds the token 40, the model has 40 tokens"))
    #expect(
      try message(data: "{\"input_ids\": [], \"label\": 0}\n{\"input_ids\": [1], \"label\": 1}")
        .contains("bad.jsonl:1: holds no token"))
    #expect(
      try message(
        data: "{\"input_ids\": [1], \"label\": 0}\n{\"input_ids\": [1, 2, \"x\"], \"label\": 1}"
      )
      .contains("bad.jsonl:2: 'input_ids' holds \"x\", integers were expected"))
    #expect(
      try message(
        data:
          "{\"input_ids\": [1, 2], \"attention_mask\": [1], \"label\": 0}\n{\"input_ids\": [1], \"label\": 1}"
      )
      .contains("'attention_mask' has 1 elements, 'input_ids' has 2"))
    #expect(
      try message(
        data:
          "{\"input_ids\": [1], \"token_type_ids\": [2], \"label\": 0}\n{\"input_ids\": [1], \"label\": 1}"
      )
      .contains("'token_type_ids' holds 2, the model has 2 segments"))
    #expect(
      try message(data: "{\"input_ids\": [1], \"label\": 0}").contains("there is only one label"))
    let long = String(repeating: "1, ", count: 24) + "1"
    #expect(
      try message(
        data: "{\"input_ids\": [\(long)], \"label\": 0}\n{\"input_ids\": [1], \"label\": 1}"
      )
      .contains("'input_ids' has a sequence of 25 tokens, the model takes 24"))
  }

  @Test func labelsOutsideOfTheClassesAreRefused() {
    let text = message(["labels": ["a", "b"]])
    #expect(text.contains("the label 2 is not one of the model's 2 classes"), "\(text)")
    #expect(text.contains("train.jsonl:"))
  }

  @Test func classesBeyondAnyHeadAreRefused() throws {
    for label in ["9223372036854775807", "1048576"] {
      let text = try message(
        data: "{\"input_ids\": [1], \"label\": 0}\n{\"input_ids\": [1], \"label\": \(label)}")
      #expect(
        text.contains("bad.jsonl:2: the class \(label) in 'label' is beyond the largest"), "\(text)"
      )
    }
  }

  /// An evaluation in one batch, however many sequences that may have.
  @Test func batchesMayBeLargerThanTheData() throws {
    let prepared = try run.prepare()
    let objective = try ClassificationObjective(
      #require(prepared.base.model as? any SequenceClassifier))
    var done: [Int] = []
    let result = try Evaluator(objective).evaluate(prepared.train, batchSize: .max) {
      done.append($0)
    }
    #expect(result.examples == 22 && done == [22])
  }

  @Test func tasksMustFit() throws {
    #expect(message(["task_type": "FEATURE_EXTRACTION"]).contains("FEATURE_EXTRACTION has no loss"))
    #expect(message(["task_type": "CAUSAL_LM"]).contains("a BERT encoder has no CAUSAL_LM head"))
    let csv = try run.folder.write("text.csv", "text\nhello\n")
    let text = message([
      "train_file": .string(csv), "task_type": "SEQ_CLS", "data_format": "text",
    ])
    #expect(text.contains("data of the format 'text' does not fit the task SEQ_CLS"), "\(text)")
    #expect(message(["max_length": 25]).contains("'max_length' is 25, but the model has only 24"))
  }

  @Test func dataThatNeedsATokenizerAsksForIt() throws {
    let csv = try run.folder.write("text.csv", "text,label\nhello,a\nbye,b\n")
    #expect(message(["train_file": .string(csv)]).contains("tokenizer.json"))
  }

  @Test func hiddenTokensAtTheEndAreDropped() throws {
    let rows = """
      {"input_ids": [1, 2, 3, 0, 0], "attention_mask": [1, 1, 1, 0, 0], "label": 0}
      {"input_ids": [0, 4, 5], "attention_mask": [0, 1, 1], "token_type_ids": [0, 0, 1], "label": 1}
      """
    let path = try run.folder.write("masked.jsonl", rows)
    let examples = try run.prepare(["train_file": .string(path)]).train.examples
    #expect(examples[0] == Example(tokenIDs: [1, 2, 3], labels: [0]))
    #expect(
      examples[1]
        == Example(tokenIDs: [0, 4, 5], typeIDs: [0, 0, 1], mask: [0, 1, 1], labels: [1]))
  }

  @Test func settingsWithoutEffectAreMentioned() throws {
    try run.train(["save_strategy": "no"])
    let again = try run.prepare(["init_adapter": .string(run.folder("out"))])
    #expect(again.notices == ["'lora' has no effect: the settings come from 'init_adapter'"])
    let text = "the warm-up has no effect with 'lr_scheduler_type: constant'"
    let changes: [([String: JSONValue], Bool)] = [
      (["lr_scheduler_type": "constant"], true),
      (["lr_scheduler_type": "constant", "warmup_steps": 0], false),
      (["lr_scheduler_type": "constant", "warmup_steps": 0, "warmup_ratio": 0.1], true),
      (["lr_scheduler_type": "constant_with_warmup"], false),
    ]
    for (change, isMentioned) in changes {
      let notices = try run.prepare(change).notices
      #expect(notices.contains { $0.hasPrefix(text) } == isMentioned, "\(change): \(notices)")
    }
    #expect(again.targets.matched.count == 9 && again.targets.saved == ["classifier"])
    for (change, isMentioned) in [
      (["eval_steps": 2], true), (["metric_for_best_model": "loss"], true), ([:], false),
    ] as [([String: JSONValue], Bool)] {
      let notices = try run.prepare(change).notices
      let text = "settings of evaluations have no effect without 'validation_file'"
      #expect(notices.contains(text) == isMentioned, "\(change): \(notices)")
    }
  }

  @Test func thereMustBeALabel() throws {
    let rows = "{\"input_ids\": [1, 2], \"label\": []}\n{\"input_ids\": [3], \"label\": []}\n"
    let path = try run.folder.write("none.jsonl", rows)
    let text = message(["train_file": .string(path)])
    #expect(text.contains("none.jsonl: there is no label"), "\(text)")
  }
}

/// Text data through a WordPiece tokenizer of a dozen words.
struct TextDataTests {
  private let run: TinyRun
  private let folder: TemporaryFolder

  init() throws {
    run = try TinyRun()
    folder = run.folder
    let words = [
      "[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "is", "my", "parcel", "cancel", "it", "now",
    ]
    let vocabulary = JSONObject(words.enumerated().map { ($1, .int($0)) })
    let tokenizer: JSONValue = [
      "model": [
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": .object(vocabulary),
      ],
      "normalizer": [
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": nil, "lowercase": true,
      ],
      "pre_tokenizer": ["type": "BertPreTokenizer"],
      "post_processor": [
        "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2],
      ],
      "padding": [
        "strategy": ["Fixed": 16], "direction": "Right", "pad_to_multiple_of": nil, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
      ],
    ]
    _ = try folder.write("model/tokenizer.json", tokenizer.text())
  }

  private func prepare(_ data: String, _ changes: [String: JSONValue] = [:]) throws -> PreparedRun {
    let path = try folder.write("data.csv", data)
    return try run.prepare(["train_file": .string(path)].merging(changes) { $1 })
  }

  @Test func textsAreTokenisedWithoutPadding() throws {
    let run = try prepare("text,label\nWhere is my parcel,status\n\"cancel it, now\",cancel\n")
    #expect(run.labels?.names == ["cancel", "status"])
    #expect(run.train.examples[0] == Example(tokenIDs: [2, 4, 5, 6, 7, 3], labels: [1]))
    #expect(run.train.examples[1].tokenIDs == [2, 8, 9, 1, 10, 3])
  }

  @Test func columnsPairsAndLengths() throws {
    let data = "a,b,intent\nwhere is my parcel,cancel it,x\nmy parcel,now,y\n"
    let run = try prepare(
      data,
      [
        "text_column": "a", "text_pair_column": "b", "label_column": "intent", "max_length": 7,
        "labels": ["y", "x"],
      ])
    let first = run.train.examples[0]
    #expect(first.tokenIDs == [2, 4, 5, 3, 8, 9, 3] && first.typeIDs == [0, 0, 0, 0, 1, 1, 1])
    #expect(first.labels == [1] && run.train.truncatedCount == 1)
    #expect(run.train.examples[1].tokenIDs == [2, 6, 7, 3, 10, 3])
    #expect(run.notices == ["1 of 2 training examples reach the length limit and may be cut"])
  }

  @Test func unknownLabelsInValidationDataAreNamed() throws {
    let other = try folder.write("test.csv", "text,label\nmy parcel,b\nit,c\n")
    let text = failure {
      _ = try prepare("text,label\nit,a\nnow,b\n", ["validation_file": .string(other)])
    }
    #expect(text.contains("test.csv:3: unknown label 'c'"), "\(text)")
  }

  @Test func missingColumnsAreNamed() throws {
    let text = failure { _ = try prepare("sentence,label\nit,a\nnow,b\n") }
    #expect(text.contains("data.csv:2: there is no 'text' among sentence, label"), "\(text)")
    #expect(text.contains("'text_column'"))
    let label = failure { _ = try prepare("text,intent\nit,a\n", ["task_type": "SEQ_CLS"]) }
    #expect(label.contains("there is no 'label' among text, intent"), "\(label)")
  }

  @Test func plainTextIsCutIntoBlocks() throws {
    let builder = try DatasetBuilder(
      task: .causalLM, configuration: DataConfiguration(),
      limits: InputLimits(vocabulary: 40, positions: 4, positionsAreTable: true), labels: nil,
      tokenizer: Tokenizer(folder: folder("model")))
    let path = try folder.write("text.txt", "where is my parcel\ncancel it now my parcel")
    let data = try builder.dataset(DataSource(path, DataConfiguration(), task: nil))
    // [CLS] and [SEP] stand around the whole text; the last block is what is left.
    #expect(data.examples.map(\.tokenIDs) == [[2, 4, 5, 6], [7, 8, 9, 10], [6, 7, 3]])
    #expect(data.examples.allSatisfy { $0.labels == $0.tokenIDs })
    let empty = try folder.write("empty.txt", " \n\n")
    let text = failure { _ = try DataSource(empty, DataConfiguration(), task: nil) }
    #expect(text.contains("the data is empty"))
  }

  @Test func predictionsCarryTheLabelsOfTheTraining() throws {
    let path = try folder.write(
      "data.csv", "q,intent\nwhere is my parcel,status\ncancel it,stop\nwhere is it,status\n")
    let columns: [String: JSONValue] = [
      "train_file": .string(path), "text_column": "q", "label_column": "intent",
      "save_strategy": "no", "num_train_epochs": 60, "learning_rate": 0.02,
      "lora.lora_dropout": 0, "model_config.hidden_dropout_prob": 0,
      "model_config.attention_probs_dropout_prob": 0,
    ]
    try run.train(columns)
    // The weights are random from the seed: write them down, as a downloaded model would have them.
    let base = try run.prepare(columns).base.model
    let modules = Dictionary(uniqueKeysWithValues: base.namedModules().map { ($0.path, $0.module) })
    var items: [SafetensorsItem] = []
    for (name, info) in base.namedParameters()
    where !name.contains("lora") && !name.contains("classifier") {
      let path = String(name.dropLast(".weight".count))
      if let parameter = info.parameter {
        items.append(SafetensorsItem(name, parameter.value))
      } else if let host = modules[path] as? any AdapterHost {
        items.append(SafetensorsItem(name, host.parameters.matrix.dequantized()))
      }
    }
    try SafetensorsWriter.write(items, to: folder("model/model.safetensors"))
    let adapted = try AdaptedModel(
      folder("model"), adapter: folder("out"), registry: standardRegistry)
    #expect(adapted.labels?.names == ["status", "stop"])
    #expect(adapted.data.textColumn == "q" && adapted.data.labelColumn == "intent")
    let answers = try adapted.classify(
      [("where is my parcel", nil), ("cancel it", nil)], tokenizer: adapted.tokenizer())
    #expect(answers.map(\.label) == ["status", "stop"])
    #expect(answers.allSatisfy { abs($0.probabilities.reduce(0, +) - 1) < 1e-9 })
    let result = try adapted.evaluate(path, data: adapted.data)
    #expect(result.value(of: "accuracy") == 1 && result.examples == 3)
    // A head that neither the model nor the adapter has is not made up.
    let text = failure {
      _ = try AdaptedModel(
        folder("model"), adapter: nil, task: "SEQ_CLS", registry: standardRegistry)
    }
    #expect(text.contains("neither the model nor the adapter holds 'classifier.weight'"), "\(text)")
  }
}
