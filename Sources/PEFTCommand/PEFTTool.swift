import ArgumentParser
import PEFT

/// The `peft` tool.
@main
struct PEFTTool: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "peft",
    abstract: "Fine-tune, run and look into adapters of Hugging Face models, on the CPU.",
    version: "0.1.0",
    subcommands: [
      Train.self, Eval.self, Predict.self, Generate.self, Merge.self, Combine.self, Convert.self,
      Inspect.self, Forward.self,
    ])

  // What ArgumentParser writes before a message of its own.
  static let _errorLabel = "error"

  /// Runs the tool: errors of input are one line that begins with "error:", and exit status 1.
  static func main() {
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch let error as PEFTError {
      Terminal.writeError("error: \(error)\n")
      exit(withError: ExitCode.failure)
    } catch {
      exit(withError: error)
    }
  }
}
