import ArgumentParser
import PEFT

extension AdapterForm: ExpressibleByArgument {}

/// `peft convert`: an adapter in the form of another method.
struct Convert: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write an adapter in the form of another method.",
    discussion: """
      To DoRA, from LoRA-XS to LoRA, and within a method the change stays as it is. Other conversions \
      write the nearest change that the form can hold and say how near it is; to EDoRA, magnitudes \
      are kept and the update beside them is what is brought near. Modules that the \
      adapter saves in full, such as a classifier, are written too. The result is compared with \
      the original on a few tokens.

      A compact adapter needs the precision that it was trained in: --precision.

        peft convert --model models/minilm --adapter out/edora --to dora --output out/dora
        peft convert --model models/minilm --adapter out/edora --to edora --compact --output out/small
      """)

  @Option(help: ArgumentHelp("The model's folder.", valueName: "dir"))
  var model: String
  @Option(help: ArgumentHelp("The adapter's folder.", valueName: "dir"))
  var adapter: String
  @Option(help: ArgumentHelp("The method: lora, dora, edora or lora-xs.", valueName: "method"))
  var to: AdapterForm
  @Option(
    help: ArgumentHelp(
      "The new rank, for conversions that change it; the old one by default.", valueName: "n"))
  var rank: Int?
  @Flag(
    help: """
      Leave A and B of EDoRA or LoRA-XS out of the file; they are made again from the base \
      model's weights.
      """)
  var compact = false
  @OptionGroup var task: TaskOptions
  @Option(help: ArgumentHelp("The folder to write.", valueName: "dir"))
  var output: String
  @Flag(help: "Replace the output folder if it holds a model or an adapter.")
  var overwrite = false
  @OptionGroup var options: RunOptions

  func validate() throws {
    if let rank, rank < 1 {
      throw ValidationError("--rank is \(rank), a positive number was expected")
    }
  }

  func run() throws {
    options.apply()
    try OutputFolder.check(output, overwriting: overwrite, inputs: [model, adapter])
    let session = try ModelSession(
      model: model, adapters: [AdapterReference(folder: adapter, name: "source")],
      active: ["source"], task: task.task, content: .weights(options.precision))
    session.warnAboutParameters()
    let (peft, base) = (session.peft, session.loaded.model)
    let before = try MergeProbe(base)
    let report: ConversionReport
    do {
      report = try peft.convert(
        "source", to: to, as: "result", rank: rank, isCompact: compact)
    } catch {
      throw error.located(at: adapter)
    }
    try peft.setActive(["result"])
    let after = try MergeProbe(base)
    let parameters = try peft.tensors(of: "result").filter(\.isStored)
      .reduce(0) { $0 + $1.parameter.value.count }
    try peft.save(
      output, adapter: "result",
      extraFiles: try AdapterFolder(adapter).trainingFiles())
    try Terminal.write(
      """
      \(output): \(to.rawValue)\(compact ? ", compact" : ""), \(grouped(parameters)) numbers stored, \
      \(grouped(report.trainedParameters)) of them trained in adapted layers
      change of the weights: \(Self.loss(report.relativeError))
      max |Δ\(before.quantity)| \(scientific(after.difference(from: before))) between the two \
      adapters; largest |\(before.quantity)| \(scientific(Double(before.output.maximumMagnitude)))

      """)
  }

  private static func loss(_ error: Double) -> String {
    error == 0 ? "the same" : "relative difference \(scientific(error))"
  }
}
