import PEFT

/// Where a command writes.
enum OutputFolder {
  /// Refuses a file in the place of an input.
  ///
  /// - Parameters:
  ///   - file: The file.
  ///   - option: The option that names it.
  ///   - inputs: Files that it must not be, and folders of models and adapters.
  /// - Throws: ``PEFTError`` naming the option.
  static func check(file: String, of option: String, inputs: [String]) throws(PEFTError) {
    // One that is not there replaces nothing.
    guard let place = FileSystem.resolved(file) else { return }
    for input in inputs {
      guard let other = FileSystem.resolved(input) else { continue }
      guard place == other || isInput(place, of: other) else { continue }
      throw PEFTError(
        .invalidConfiguration,
        place == other
          ? "'\(file)' is the input" : "'\(file)' belongs to the input '\(input)'",
        at: option, remedy: "Choose another file.")
    }
  }

  /// Whether a file is one of those that are read of a model's or an adapter's folder.
  private static func isInput(_ file: String, of folder: String) -> Bool {
    guard file.hasPrefix(folder + "/") else { return false }
    let name = file.dropFirst(folder.count + 1)
    let isWeights =
      ["model", "pytorch_model", "adapter_model", "initial_adapter"].contains(where: name.hasPrefix)
      && [".safetensors", ".bin", ".json"].contains(where: name.hasSuffix)
    return isWeights
      || ["config.json", "adapter_config.json", "tokenizer.json"].contains(String(name))
  }

  /// Refuses one that would destroy something.
  ///
  /// - Parameters:
  ///   - output: The folder, of the option `--output`.
  ///   - overwriting: Whether it may hold a model or an adapter, which is then replaced.
  ///   - inputs: Folders that it must not be or hold.
  /// - Throws: ``PEFTError`` naming the option.
  static func check(
    _ output: String, overwriting: Bool, inputs: [String]
  ) throws(PEFTError) {
    guard let place = FileSystem.resolved(output) else { return }
    for folder in inputs {
      // One that is not there is refused when it is read.
      guard let input = FileSystem.resolved(folder) else { continue }
      let isInside = input.hasPrefix(place.hasSuffix("/") ? place : place + "/")
      guard input == place || isInside else { continue }
      throw PEFTError(
        .invalidConfiguration,
        isInside
          ? "'\(output)' holds the input '\(folder)', which would be lost"
          : "'\(output)' is one of the inputs",
        at: "--output", remedy: "Choose another folder.")
    }
    let names = FileSystem.isDirectory(output) ? try FileSystem.list(output) : [output]
    if names.isEmpty { return }
    guard overwriting else {
      throw PEFTError(
        .fileAccess, "'\(output)' exists and is not empty", at: "--output",
        remedy: "Choose another folder, or replace it with --overwrite.")
    }
    guard names.contains("adapter_config.json") || names.contains("config.json") else {
      throw PEFTError(
        .fileAccess, "'\(output)' holds neither a model nor an adapter, so it is not replaced",
        at: "--output", remedy: "Choose another folder, or remove it yourself.")
    }
  }
}
