import ArgumentParser
import PEFT

/// `peft forward`: outputs, loss and gradients for given token ids.
struct Forward: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run given token ids through a model and write what comes out.",
    discussion: """
      The input file holds input_ids and, if wanted, attention_mask, token_type_ids and labels, \
      all integers of shape [batch, tokens]. For SEQ_CLS labels has shape [batch], or is F32 of shape \
      [batch, labels] for several labels or numbers; for QUESTION_ANS there are start_positions \
      and end_positions of shape [batch] instead. The output file holds logits, start_logits and \
      end_logits, or last_hidden_state, and with labels the loss, all F32.
      """)

  @Option(help: ArgumentHelp("The model's folder.", valueName: "dir"))
  var model: String
  @OptionGroup var adapters: AdapterOptions
  @OptionGroup var active: ActiveOptions
  @OptionGroup var rows: RowOptions
  @Flag(help: "Merge the active adapters into the weights before the run.")
  var merge = false
  @OptionGroup var task: TaskOptions
  @Option(help: ArgumentHelp("The safetensors file to read.", valueName: "file"))
  var input: String
  @Option(help: ArgumentHelp("The safetensors file to write.", valueName: "file"))
  var output: String
  @Option(
    help: ArgumentHelp(
      "Also write the loss's gradients of the active adapter's tensors, under peft's keys.",
      valueName: "file"))
  var gradients: String?
  @OptionGroup var options: RunOptions

  func validate() throws {
    if merge, gradients != nil {
      throw ValidationError("--gradients: merged adapters have none; remove --merge")
    }
    if rows.rows != nil, merge || gradients != nil {
      throw ValidationError(
        "--rows gives each row its own adapter: remove \(merge ? "--merge" : "--gradients"), which "
          + "is about the active ones")
    }
  }

  func run() throws {
    options.apply()
    let inputs = [input, model] + adapters.adapters.map(\.folder)
    try OutputFolder.check(file: output, of: "--output", inputs: inputs)
    if let gradients {
      try OutputFolder.check(file: gradients, of: "--gradients", inputs: inputs)
      if let place = FileSystem.place(of: gradients), place == FileSystem.place(of: output) {
        throw PEFTError(
          .invalidConfiguration, "names the same file as --output", at: "--gradients",
          remedy: "Choose another file.")
      }
    }
    let input = try ForwardInput(input)
    let session = try ModelSession(
      model: model, adapters: adapters.adapters, active: active.names, task: task.task,
      content: .weights(options.precision))
    session.warnAboutParameters()
    if gradients != nil { try checkGradients(session, input) }
    if merge { try session.peft.merge() }
    let rows = try rows.assignment(session.peft, count: input.batch)
    let pass: ForwardPass
    var slopes: [SafetensorsItem] = []
    if gradients != nil {
      pass = try ForwardPass(session.loaded.model, input, task: session.task)
      slopes = try Self.gradients(pass, session.peft)
    } else {
      pass = try withoutGradients {
        try ForwardPass(session.loaded.model, input, task: session.task, adapters: rows)
      }
    }
    if input.hasLabels, session.task.loss != nil, pass.loss == nil {
      throw PEFTError(
        .invalidData,
        "the labels are of another kind than those of the task \(session.task.name)",
        at: self.input, remedy: "See 'peft help forward' for what each task takes.")
    }
    var items = pass.outputs.map { SafetensorsItem($0.name, $0.value) }
    if let loss = pass.loss { items.append(SafetensorsItem("loss", loss)) }
    try SafetensorsWriter.write(items, to: output)
    if let gradients {
      do { try SafetensorsWriter.write(slopes, to: gradients) } catch {
        // Both or none.
        FileSystem.removeTree(output)
        throw error
      }
    }
    let loss = pass.loss.map { ", loss \($0.item)" } ?? ""
    let shapes = pass.outputs.map { "\($0.name) \($0.value.shape)" }.joined(separator: ", ")
    Terminal.writeError("\(output): \(shapes)\(loss)\n")
    if let gradients { Terminal.writeError("\(gradients): \(slopes.count) gradients\n") }
  }

  /// Refuses before any work is done.
  private func checkGradients(_ session: ModelSession, _ input: ForwardInput) throws(PEFTError) {
    guard input.hasLabels else {
      throw PEFTError(
        .invalidConfiguration, "gradients need labels, '\(input.path)' has none",
        at: "--gradients")
    }
    if session.task.loss == nil {
      throw PEFTError(
        .invalidConfiguration, "the task \(session.task.name) has no loss", at: "--gradients",
        remedy: "Give a task that has one with --task.")
    }
    let active = session.peft.activeAdapters
    if active.isEmpty {
      throw PEFTError(
        .invalidConfiguration, "nothing can be trained: no adapter is active", at: "--gradients",
        remedy: "Load one with --adapter.")
    }
    if active.count > 1 {
      throw PEFTError(
        .invalidConfiguration,
        "\(active.count) adapters are active, and tensors of different adapters have the same keys",
        at: "--gradients", remedy: "Choose one adapter with --active.")
    }
  }

  /// One item for each trainable tensor; zeros where the loss does not depend on it.
  private static func gradients(
    _ pass: ForwardPass, _ peft: PeftModel
  ) throws(PEFTError) -> [SafetensorsItem] {
    guard let loss = pass.loss else { return [] }
    let gradients = loss.backward()
    return peft.trainableTensors.map { tensor in
      SafetensorsItem(tensor.key, gradients[tensor.parameter] ?? .zeros(tensor.parameter.shape))
    }
  }
}
