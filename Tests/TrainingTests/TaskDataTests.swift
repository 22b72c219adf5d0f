import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing
import Tokenizers

@testable import Training

/// The data of each task, through a WordPiece tokenizer of a few words: [CLS] is 2, [SEP] is 3.
struct TaskDataTests {
  private let folder: TemporaryFolder
  private let words = ["anna", "lives", "in", "new", "york", "##er", "who", "where", ".", "?"]

  init() throws {
    folder = try TemporaryFolder()
    _ = try folder.write("tokenizer.json", WordTokenizer.json(words))
  }

  /// The id of a word.
  private func id(_ word: String) -> Int32 { Int32(words.firstIndex(of: word)! + 4) }

  private func dataset(
    _ task: TaskType, _ lines: String, labels: [String]? = nil,
    problem: ProblemType = .singleLabel, name: String = "data.jsonl",
    _ change: (inout DataConfiguration) -> Void = { _ in }
  ) throws -> Dataset {
    var configuration = DataConfiguration()
    change(&configuration)
    let path = try folder.write(name, lines)
    let builder = try DatasetBuilder(
      task: task, configuration: configuration,
      limits: InputLimits(vocabulary: 99, positions: 40, positionsAreTable: true, tokenTypes: 2),
      labels: try labels.map { (names) throws(PEFTError) in try LabelSet(names) },
      problem: problem, tokenizer: Tokenizer(folder: folder.path))
    return try builder.dataset(DataSource(path, configuration, task: task))
  }

  // MARK: Words

  /// As transformers' example for token classification aligns them: the first token of a word has
  /// its label, the rest and the special tokens -100.
  @Test(arguments: [("words", "tags"), ("tokens", "labels"), ("tokens", "ner_tags")])
  func wordsGiveTheirLabelToTheirFirstToken(_ words: String, _ tags: String) throws {
    let line = """
      {"\(words)": ["Anna", "lives", "in", "yorker", "."], "\(tags)": ["B", 0, "O", 1, "O"]}
      """
    let example = try dataset(.tokenClassification, line, labels: ["O", "B"]).examples[0]
    #expect(
      example.tokenIDs == [
        2, id("anna"), id("lives"), id("in"), id("york"), id("##er"), id("."), 3,
      ])
    #expect(example.labels == [-100, 1, 0, 0, 1, -100, 0, -100])
    let all = try dataset(.tokenClassification, line, labels: ["O", "B"]) {
      $0.labelsAllTokens = true
    }
    #expect(all.examples[0].labels == [-100, 1, 0, 0, 1, 1, 0, -100])
    // Words that do not fit whole are left out.
    let short = try dataset(.tokenClassification, line, labels: ["O", "B"]) { $0.maxLength = 6 }
    #expect(short.examples[0].labels == [-100, 1, 0, 0, -100] && short.truncatedCount == 1)
  }

  @Test func wordsAndTagsMustFit() throws {
    func message(_ line: String) -> String {
      failure { _ = try dataset(.tokenClassification, line, labels: ["O", "B"]) }
    }
    #expect(
      message("{\"words\": [\"new\", \"york\"], \"tags\": [\"O\"]}")
        .contains("data.jsonl:1: there are 1 labels in 'tags' for 2 words"))
    #expect(
      message("{\"words\": [\"new\"], \"tags\": [\"X\"]}").contains("unknown label 'X'"))
    #expect(message("{\"words\": [\"new\"], \"tags\": [7]}").contains("the label 7 is not one of"))
    #expect(message("{\"words\": \"new\", \"tags\": []}").contains("a list of words was expected"))
    #expect(message("{\"words\": [1], \"tags\": [0]}").contains("'words' holds 1"))
    #expect(message("{\"words\": [\"new\"]}").contains("there is no 'label' among words"))
  }

  @Test func tokenIDsWithLabels() throws {
    let line = """
      {"input_ids": [2, 9, 8, 0], "attention_mask": [1, 1, 1, 0], "labels": [-100, "B", 0, -100]}
      """
    let example = try dataset(.tokenClassification, line, labels: ["O", "B"]).examples[0]
    #expect(example == Example(tokenIDs: [2, 9, 8], labels: [-100, 1, 0]))
    let text = failure {
      _ = try dataset(
        .tokenClassification, "{\"input_ids\": [2, 9], \"labels\": [1]}", labels: ["O", "B"])
    }
    #expect(text.contains("'labels' has 1 elements, 'input_ids' has 2"), "\(text)")
  }

  /// Entities as the CoNLL evaluation finds them.
  @Test func entitiesOfLabels() throws {
    let names = ["O", "B-P", "I-P", "B-L", "I-L", "E-P", "S-L"]
    let entities = try #require(EntityLabels(names))
    func spans(_ labels: [String]) -> [String] {
      entities.spans(labels.map { Int32(names.firstIndex(of: $0)!) }[...])
        .map { "\($0.kind)\($0.rows.lowerBound)-\($0.rows.upperBound)" }
    }
    #expect(spans(["B-P", "I-P", "O", "B-L"]) == ["P0-2", "L3-4"])
    // Neighbours, a change of kind, and an entity that begins without B.
    #expect(spans(["B-P", "B-P", "I-L", "O", "I-P"]) == ["P0-1", "P1-2", "L2-3", "P4-5"])
    #expect(spans(["B-P", "E-P", "I-P", "S-L"]) == ["P0-2", "P2-3", "L3-4"])
    #expect(spans(["O", "O"]) == [])
    #expect(EntityLabels(["NOUN", "VERB"]) == nil && EntityLabels(["O"]) == nil)
  }

  // MARK: Questions

  private let context = "Anna lives in New Yorker. Anna lives."

  /// An answer is given as the context has it: whole words, case and spaces kept.
  @Test func answersAreWordsOfTheContext() throws {
    var encoder = QuestionEncoder(try Tokenizer(folder: folder.path), maxLength: 40, stride: 0)
    // anna lives in new york ##er . anna lives .
    let expected: [(Range<Int>, String)] = [
      (0..<1, "Anna"), (3..<6, "New  Yorker"), (4..<5, "Yorker"), (5..<6, "Yorker"), (6..<7, "."),
      (5..<8, "Yorker. Anna"), (8..<10, "lives."),
      (0..<10, "Anna lives in New  Yorker. Anna lives."),
    ]
    let text = "Anna lives in New  Yorker. Anna lives."
    for (tokens, words) in expected {
      let found = encoder.words(of: tokens, in: text)
      #expect(found.map(String.init) == words)
    }
    let none = encoder.words(of: 0..<1, in: "  ")
    #expect(none == nil)
  }

  @Test func answersAreFoundAmongTheTokens() throws {
    func labels(_ answer: String, _ start: Int) throws -> [Int32] {
      let line = """
        {"question": "where ?", "context": "\(context)",
         "answers": {"text": ["\(answer)"], "answer_start": [\(start)]}}
        """.replacing("\n", with: "")
      return try dataset(.questionAnswering, line).examples[0].labels
    }
    let whole = try dataset(
      .questionAnswering, "{\"question\": \"where ?\", \"context\": \"\(context)\"}"
    ).examples[0]
    // [CLS] where ? [SEP] anna lives in new york ##er . anna lives . [SEP]
    #expect(whole.tokenIDs.count == 15 && whole.labels == [0, 0])
    #expect(whole.typeIDs == [0, 0, 0, 0] + [Int32](repeating: 1, count: 11))
    #expect(try labels("New Yorker", 14) == [7, 9])
    #expect(try labels("New York", 14) == [7, 8])
    #expect(try labels("Anna", 0) == [4, 4] && labels("Anna", 26) == [11, 11])
    #expect(try labels("lives.", 31) == [12, 13])
    // In the middle of a token: all of it.
    #expect(try labels("ew", 15) == [7, 7])
  }

  @Test func longContextsAreCutIntoWindows() throws {
    let line = """
      {"question": "where ?", "context": "\(context)", "answer": "lives", "answer_start": 31}
      """
    let data = try dataset(.questionAnswering, line) {
      $0.maxLength = 11
      $0.stride = 2
    }
    // Room for 6 tokens of 10, of which neighbours share 2.
    #expect(data.examples.map(\.tokenIDs.count) == [11, 11] && data.truncatedCount == 1)
    #expect(Array(data.examples[1].tokenIDs[4...]).first == id("york"))
    #expect(data.examples.map(\.labels) == [[0, 0], [8, 8]])
    // Both windows know the answer, which only the second one holds.
    #expect(
      data.examples.map(\.search) == [
        AnswerSearch(question: 0, rows: 4..<10, start: 0, answers: [8..<9]),
        AnswerSearch(question: 0, rows: 4..<10, start: 4, answers: [8..<9]),
      ])
    let more = line + "\n{\"question\": \"who ?\", \"context\": \"Anna lives.\"}"
    let both = try dataset(.questionAnswering, more) {
      $0.maxLength = 11
      $0.stride = 2
    }
    #expect(both.examples.map { $0.search?.question } == [0, 0, 1])
    #expect(both.examples[2].search?.answers == [])
    #expect(both.examples.allSatisfy { $0.search?.allowsNone == true })
    #expect(both.examples[2].search?.rows == 4..<7 && both.examples[2].labels == [0, 0])
    // Half of the room is shared unless a number is given, and never all of it.
    let usual = try dataset(.questionAnswering, line) { $0.maxLength = 11 }
    #expect(usual.examples.map { $0.search?.start } == [0, 3, 6])
    let whole = failure {
      _ = try dataset(.questionAnswering, line) {
        $0.maxLength = 11
        $0.stride = 6
      }
    }
    #expect(whole.contains("data.jsonl:1: 'doc_stride' is 6, but beside the question"), "\(whole)")
    let text = failure { _ = try dataset(.questionAnswering, line) { $0.maxLength = 5 } }
    #expect(text.contains("which leaves none of 5 for the context"), "\(text)")
  }

  /// By hand: the start and end logits of two sequences of five tokens, of which the last three are
  /// the context's.
  @Test func answersAreLookedForInTheContext() {
    // The best span of all rows is 1...1, of the context 2...3 and 4...4; "no answer" has 4 and 0.
    let starts: [Float] = [2, 9, 3, 0, 0] + [0, 9, 0, 0, 1]
    let ends: [Float] = [2, 9, 0, 2, 0] + [0, 9, 0, 0, 1]
    let logits = zip(starts, ends).flatMap { [$0, $1] }
    func metrics(_ labels: [[Int32]], _ searches: [AnswerSearch?]) -> [Double] {
      var sums = EvaluationSums()
      let examples = zip(labels, searches).map {
        Example(tokenIDs: [1, 2, 3, 4, 5], labels: $0, search: $1)
      }
      QuestionAnsweringObjective.score(logits, Batch(examples), into: &sums)
      return sums.tally(AnswerScores.self).metrics.map(\.value)
    }
    func search(
      _ question: Int, _ answers: [Range<Int>]?, rows: Range<Int> = 2..<5, start: Int = 0,
      none: Bool = false
    ) -> AnswerSearch {
      AnswerSearch(
        question: question, rows: rows, start: start, answers: answers, allowsNone: none)
    }
    // Questions with one window each; what training takes does not matter.
    let taught: [[Int32]] = [[0, 0], [0, 0]]
    #expect(metrics(taught, [search(0, [0..<2]), search(1, [2..<3])]) == [1, 1])
    // Half of two tokens and one: 2 · 1 / (2 + 1).
    #expect(metrics(taught, [search(0, [1..<2]), search(1, [0..<1])]) == [0, 1.0 / 3])
    // The best of several right answers counts.
    let several = [search(0, [2..<3, 1..<2]), search(1, [0..<1, 2..<3])]
    let part: Double = 2.0 / 3
    #expect(metrics(taught, several) == [0.5, (part + 1) / 2])
    // Token data says nothing of a context.
    #expect(metrics([[1, 1], [4, 4]], [nil, nil]) == [0.5, 0.5])
    // 2 + 2 is less than 3 + 2 and 0 + 0 less than 1 + 1: an answer wins, unless the context is
    // only the third row, where 3 + 0 loses.
    #expect(metrics(taught, [search(0, [], none: true), search(1, [], none: true)]) == [0, 0])
    let narrow = search(0, [], rows: 2..<3, none: true)
    #expect(metrics(taught, [narrow, search(1, [2..<3], none: true)]) == [1, 1])
    // A question that nothing can answer is left out.
    #expect(metrics(taught, [search(0, nil), search(1, [2..<3])]) == [1, 1])

    // Windows of one question: the first has the best span, 2...3, whose context begins at the
    // seventh token. The second one has the lowest score of "no answer", which does not win.
    let second = search(5, [7..<9], rows: 2..<5, start: 9, none: true)
    #expect(metrics(taught, [search(5, [7..<9], start: 7, none: true), second]) == [1, 1])
    #expect(metrics(taught, [search(5, [11..<12], start: 7, none: true), second]) == [0, 0])
    // Alone, the first would not answer: 3 + 0 is less than 2 + 2.
    let small = search(5, [7..<8], rows: 2..<3, start: 7, none: true)
    #expect(metrics(taught, [small, search(5, [], rows: 2..<2, start: 9)]) == [1, 1])
  }

  /// Means are over questions; the loss is over windows.
  @Test func metricsOfAnswersAreOverQuestions() throws {
    let run = try GoldenRun("bert", adapter: "tasks/bert-question/adapter")
    func evaluate(_ answers: [[Range<Int>]?]) throws -> EvaluationResult {
      let examples = answers.enumerated().map { number, answers in
        Example(
          tokenIDs: [1, 2, 3, 4], labels: [2, 2],
          search: AnswerSearch(question: number, rows: 2..<3, start: 0, answers: answers))
      }
      // One window a batch.
      return try Evaluator(run.objective).evaluate(Dataset(examples), batchSize: 1)
    }
    let (all, some) = (try evaluate([[0..<1], [0..<1]]), try evaluate([nil, [0..<1]]))
    #expect(all.value(of: "exact_match") == 1 && some.value(of: "exact_match") == 1)
    #expect(some.value(of: "f1") == 1 && some.loss == all.loss && some.examples == 2)
    #expect(try evaluate([nil]).value(of: "f1") == 0)
    #expect(try evaluate([[0..<1], [3..<4]]).value(of: "exact_match") == 0.5)
  }

  @Test func allAnswersOfARecordAreRight() throws {
    let line = """
      {"question": "where ?", "context": "\(context)",
       "answers": {"text": ["Anna", "New Yorker", "Anna"], "answer_start": [26, 14, 26]}}
      """.replacing("\n", with: "")
    let example = try dataset(.questionAnswering, line).examples[0]
    // Training takes the first.
    #expect(example.labels == [11, 11] && example.search?.answers == [7..<8, 3..<6])
    let text = failure {
      _ = try dataset(.questionAnswering, line.replacing("[26, 14,", with: "[26, 15,"))
    }
    #expect(text.contains("does not have 'New Yorker' at character 15"), "\(text)")
  }

  @Test func answersThatAreNotThereAreErrors() {
    func message(_ answer: String) -> String {
      failure {
        _ = try dataset(
          .questionAnswering, "{\"question\": \"who\", \"context\": \"\(context)\", \(answer)}")
      }
    }
    #expect(
      message("\"answer\": \"New\", \"answer_start\": 13")
        .contains("data.jsonl:1: the context does not have 'New' at character 13"))
    #expect(message("\"answer\": \"New\"").contains("'answer_start' is null"))
    #expect(message("\"answers\": {\"text\": [\"a\"]}").contains("'answers' is no mapping"))
    #expect(message("\"answer\": \"New\", \"answer_start\": 999").contains("does not have"))
  }

  @Test func theNestedFormOfSquad() throws {
    let json = """
      {"data": [{"title": "t", "paragraphs": [{"context": "\(context)", "qas": [
        {"id": "1", "question": "who", "answers": [{"text": "Anna", "answer_start": 0}]},
        {"id": "2", "question": "where", "answers": [], "is_impossible": true}]}]}]}
      """
    let data = try dataset(.questionAnswering, json, name: "squad.json")
    #expect(data.examples.map(\.labels) == [[3, 3], [0, 0]])
  }

  @Test func tokenIDsWithAnswers() throws {
    let line = "{\"input_ids\": [2, 9, 8], \"start_positions\": 1, \"end_positions\": 2}"
    #expect(try dataset(.questionAnswering, line).examples[0].labels == [1, 2])
    let text = failure {
      _ = try dataset(.questionAnswering, line.replacing("\": 2}", with: "\": 3}"))
    }
    #expect(text.contains("'end_positions' is 3, the place of one of the 3 tokens"), "\(text)")
  }

  // MARK: Language models

  /// As the collator of transformers, which gives padding the label -100.
  @Test func paddingHasNoLabel() throws {
    let lines = """
      {"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0]}
      {"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1]}
      {"input_ids": [5, 0], "attention_mask": [1, 0], "labels": [5, 0]}
      {"input_ids": [5, 6]}
      """
    let examples = try dataset(.causalLM, lines).examples
    #expect(examples[0] == Example(tokenIDs: [5, 6, 7], labels: [5, 6, 7]))
    #expect(examples[1] == Example(tokenIDs: [0, 5, 6], mask: [0, 1, 1], labels: [-100, 5, 6]))
    #expect(examples[2] == Example(tokenIDs: [5, 0], mask: [1, 0], labels: [5, 0]))
    #expect(examples[3] == Example(tokenIDs: [5, 6], labels: [5, 6]))
  }

  // MARK: Several labels and numbers

  @Test func severalLabels() throws {
    let lines = """
      {"text": "anna", "label": ["b", "c"]}
      {"text": "new york", "label": []}
      """
    let data = try dataset(
      .sequenceClassification, lines, labels: ["a", "b", "c"], problem: .multiLabel)
    #expect(data.examples.map(\.targets) == [[0, 1, 1], [0, 0, 0]])
    #expect(data.examples[0].labels.isEmpty)
    #expect(Batch(data.examples).targets == [0, 1, 1, 0, 0, 0])
  }

  @Test func numbersToLearn() throws {
    let data = try dataset(
      .sequenceClassification, "text,label\nanna,0.5\nnew york,-2\n", problem: .regression,
      name: "data.csv")
    #expect(data.examples.map(\.targets) == [[0.5], [-2]])
    let text = failure {
      _ = try dataset(
        .sequenceClassification, "text,label\nanna,much\n", problem: .regression, name: "data.csv")
    }
    #expect(text.contains("data.csv:2: 'label' holds \"much\", a number was expected"), "\(text)")
    // The fingerprint knows them.
    var changed = data.examples
    changed[1].targets = [-2.5]
    #expect(Dataset(changed).fingerprint != data.fingerprint)
  }

  // MARK: Recognition

  @Test func theTaskIsReadOffTheData() throws {
    func implied(_ line: String) throws -> String? {
      let path = try folder.write("implied.jsonl", line)
      return try DataSource(path, DataConfiguration(), task: nil).impliedTask?.name
    }
    #expect(try implied("{\"words\": [\"a\"], \"tags\": [\"O\"]}") == "TOKEN_CLS")
    #expect(try implied("{\"question\": \"q\", \"context\": \"c\"}") == "QUESTION_ANS")
    #expect(try implied("{\"text\": \"a\", \"label\": [\"x\"]}") == "SEQ_CLS")
    #expect(
      try implied("{\"input_ids\": [1], \"start_positions\": 0, \"end_positions\": 0}")
        == "QUESTION_ANS")
  }

  @Test func theProblemIsReadOffTheData() throws {
    func implied(_ line: String, name: String = "implied.jsonl") throws -> ProblemType {
      let path = try folder.write(name, line)
      return try DataSource(path, DataConfiguration(), task: .sequenceClassification)
        .impliedProblem
    }
    #expect(try implied("{\"text\": \"a\", \"label\": [\"x\", \"y\"]}") == .multiLabel)
    #expect(try implied("{\"text\": \"a\", \"label\": [0.5, 1]}") == .regression)
    #expect(try implied("{\"text\": \"a\", \"label\": 0.5}") == .regression)
    #expect(try implied("{\"text\": \"a\", \"label\": 3}") == .singleLabel)
    #expect(try implied("{\"text\": \"a\", \"label\": \"0.5\"}") == .singleLabel)
    // CSV files have no types.
    for (labels, problem) in [
      (["1", "0.5"], ProblemType.regression), (["1e-2", "-3"], .regression),
      (["1", "2"], .singleLabel), (["1.0", "1.0.1"], .singleLabel), (["0.5", ""], .singleLabel),
      (["nan", "0.5"], .singleLabel),
    ] {
      let rows = labels.map { "a,\($0)\n" }.joined()
      #expect(try implied("text,label\n" + rows, name: "implied.csv") == problem, "\(labels)")
    }
  }
}
