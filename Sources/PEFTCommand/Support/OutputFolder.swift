import PEFT

/// The folder that a command writes.
enum OutputFolder {
  /// Refuses one that would destroy something.
  ///
  /// - Parameters:
  ///   - output: The folder, of the option `--output`.
  ///   - overwriting: Whether it may exist and hold something.
  ///   - inputs: Folders that it must not be.
  /// - Throws: ``PEFTError`` naming the option.
  static func check(
    _ output: String, overwriting: Bool, inputs: [String]
  ) throws(PEFTError) {
    guard FileSystem.exists(output) else { return }
    for folder in inputs where FileSystem.resolved(folder) == FileSystem.resolved(output) {
      throw PEFTError(
        .invalidConfiguration, "'\(output)' is one of the inputs", at: "--output",
        remedy: "Choose another folder.")
    }
    if overwriting { return }
    let names = FileSystem.isDirectory(output) ? try FileSystem.list(output) : [output]
    if !names.isEmpty {
      throw PEFTError(
        .fileAccess, "'\(output)' exists and is not empty", at: "--output",
        remedy: "Choose another folder, or replace it with --overwrite.")
    }
  }
}
