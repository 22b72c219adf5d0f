import ArgumentParser
import PEFT

/// `peft inspect`: what a model or an adapter folder holds.
struct Inspect: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show a model's modules, with adapters, or what an adapter folder holds.",
    discussion: """
      A model folder needs no more than its config.json. The tree is the one that PyTorch prints; \
      with --adapter or --lora it shows where the adapters sit, and peft's count of parameters \
      follows.

        peft inspect models/qwen2-0.5b
        peft inspect models/qwen2-0.5b --lora '{"r": 8, "lora_alpha": 32}'
        peft inspect models/minilm --task SEQ_CLS --adapter out/support-intents
        peft inspect out/support-intents
      """)

  @Argument(help: ArgumentHelp("A model or an adapter folder.", valueName: "dir"))
  var folder: String
  @OptionGroup var adapters: AdapterOptions
  @Option(
    help: ArgumentHelp(
      "Show a new adapter with these settings.",
      discussion: """
        peft's names in a JSON object, such as '{"r": 8, "target_modules": ["q_proj"]}', or a \
        file that holds one, such as an adapter_config.json.
        """, valueName: "json|file"))
  var lora: String?
  @Option(
    help: ArgumentHelp(
      "The method of the new adapter: lora, dora, edora or lora-xs; lora by default.",
      valueName: "name"))
  var method: String?
  @OptionGroup var task: TaskOptions

  func validate() throws {
    if lora != nil, !adapters.adapters.isEmpty {
      throw ValidationError("--lora: a new adapter cannot be shown beside those of --adapter")
    }
    if method != nil, lora == nil {
      throw ValidationError("--method is that of a new adapter: give its settings with --lora")
    }
  }

  func run() throws {
    try Terminal.write(try text() + "\n")
  }

  /// What the command prints, without the last line break.
  func text() throws(PEFTError) -> String {
    guard FileSystem.isDirectory(folder) else {
      throw PEFTError(.fileNotFound, "no such folder", at: folder, remedy: "Check the path.")
    }
    if FileSystem.exists(FileSystem.join(folder, "config.json")) { return try modelText() }
    guard FileSystem.exists(FileSystem.join(folder, AdapterFolder.configName)) else {
      throw PEFTError(
        .fileNotFound, "holds neither config.json nor \(AdapterFolder.configName)", at: folder,
        remedy: "A model folder has the former, an adapter folder the latter.")
    }
    for (given, flag) in [
      (!adapters.adapters.isEmpty, "--adapter"), (lora != nil, "--lora"),
      (task.task != nil, "--task"),
    ] where given {
      throw PEFTError(
        .invalidConfiguration, "'\(folder)' is an adapter folder, which takes no other option",
        at: flag, remedy: "Give the model's folder first.")
    }
    return try AdapterSummary(AdapterFolder(folder)).text
  }

  private func modelText() throws(PEFTError) -> String {
    let settings: AdapterSettings?
    if let lora {
      settings = try AdapterSettings(lora, option: "--lora", method: method ?? "lora")
    } else {
      settings = nil
    }
    let session = try ModelSession(
      model: folder, adapters: adapters.adapters, task: task.task ?? settings?.config.taskType,
      content: .shapes)
    if let settings {
      var config = settings.config
      // A run would record the task; a bare encoder has none that peft would know.
      if config.taskType == nil, task.task != nil || session.loaded.head != .none {
        config.taskType = session.task.name
      }
      do {
        for remark in try session.peft.add("default", any: config, seed: 0).remarks {
          Terminal.writeError("warning: \(remark)\n")
        }
      } catch {
        throw error.located(at: settings.place)
      }
    }
    let peft = session.peft
    let total =
      peft.adapterNames.isEmpty
      ? "all params: \(grouped(peft.parameterCounts.all))" : peft.trainableParametersReport
    return "\(peft.printed.text)\n\(total)"
  }
}
