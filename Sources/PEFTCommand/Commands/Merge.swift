import ArgumentParser
import PEFT

/// `peft merge`: a plain model with adapters in its weights.
struct Merge: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write a plain Hugging Face model with adapters merged into its weights.",
    discussion: """
      All adapters given are merged together: their changes are added up and rounded once, to the \
      precision of the model's files. The written folder is read again and compared with the \
      model that has the adapters on, on a few tokens.

      With --precision bfloat16, which compact adapters need that were trained so, all weights are \
      those that the training saw: rounded to bfloat16, in the type of the model's files.
      """)

  @Option(help: ArgumentHelp("The model's folder.", valueName: "dir"))
  var model: String
  @OptionGroup var adapters: AdapterOptions
  @OptionGroup var task: TaskOptions
  @Option(help: ArgumentHelp("The folder to write.", valueName: "dir"))
  var output: String
  @Flag(help: "Replace the output folder if it holds a model or an adapter.")
  var overwrite = false
  @OptionGroup var options: RunOptions

  func validate() throws {
    if adapters.adapters.isEmpty {
      throw ValidationError("--adapter: at least one adapter is needed")
    }
  }

  func run() throws {
    options.apply()
    try OutputFolder.check(
      output, overwriting: overwrite, inputs: [model] + adapters.adapters.map(\.folder))
    let named = try ModelSession.named(adapters.adapters)
    let session = try ModelSession(
      model: model, adapters: adapters.adapters, active: named.map(\.name), task: task.task,
      content: .weights(options.precision))
    session.warnAboutParameters()
    let expected = try MergeProbe(session.loaded.model)
    try session.peft.mergeAndUnload(safe: true)
    let members = try configMembers(session.loaded, folders: named.map(\.folder))
    var probe = expected
    try FileSystem.writeDirectory(output) { folder in
      try ModelWriter.write(session.loaded, into: folder, settingConfig: members)
      var reading = ModelOptions()
      reading.precision = options.precision
      probe = try MergeProbe(
        try ModelLoader.load(folder, head: session.loaded.head, options: reading).model)
      if !probe.output.allFinite {
        throw PEFTError(
          .numericalFailure, "the merged model's outputs are not finite", at: output)
      }
    }
    try Terminal.write(
      """
      \(output): \(session.loaded.model.typeName) with \(named.map(\.name).joined(separator: ", ")) \
      merged, \(try Self.content(output))
      max |Δ\(expected.quantity)| \(scientific(probe.difference(from: expected))) between the \
      merged model and the model with adapters; largest |\(expected.quantity)| \
      \(scientific(Double(expected.output.maximumMagnitude)))

      """)
  }

  /// What the written file holds: "22,713,216 parameters in float32".
  private static func content(_ folder: String) throws(PEFTError) -> String {
    let entries = try SafetensorsFile(FileSystem.join(folder, "model.safetensors")).entries
    let types = Set(entries.map(\.type.torchName)).sorted().joined(separator: " and ")
    return "\(grouped(entries.reduce(0) { $0 + $1.count })) parameters in \(types)"
  }

  /// The labels of a classifier and what they are, so that the new config.json fits the new head.
  private func configMembers(
    _ loaded: LoadedModel, folders: [String]
  ) throws(PEFTError) -> JSONObject {
    guard let count = loaded.head.labelCount else { return JSONObject() }
    let opened = try folders.map { (path) throws(PEFTError) in try AdapterFolder(path) }
    var names: [String]?
    var problem: ProblemType?
    for folder in opened {
      let labels = try folder.labels()
      if labels?.count == count { names = labels?.names }
      problem = try folder.problemType() ?? problem
    }
    let configuration = loaded.model.configuration
    let old = configuration.object["id2label"]?.object
    let recorded = try configuration.problemType()
    var members: [(String, JSONValue)] = []
    if let problem, problem != recorded {
      members.append(("problem_type", .string(problem.rawValue)))
    }
    if names == nil, old?.members.count == count { return JSONObject(members) }
    let labels = names ?? (0..<count).map { "LABEL_\($0)" }
    return JSONObject(
      members + [
        (
          "id2label",
          .object(JSONObject(labels.enumerated().map { ("\($0.offset)", .string($0.element)) }))
        ),
        (
          "label2id",
          .object(JSONObject(labels.enumerated().map { ($0.element, .int($0.offset)) }))
        ),
      ])
  }
}
