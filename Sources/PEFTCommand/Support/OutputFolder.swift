import PEFT

/// The folder that a command writes.
enum OutputFolder {
  /// Refuses a folder that would destroy something.
  ///
  /// - Throws: ``PEFTError`` when it is one of the inputs, or, unless `overwriting`, not empty.
  static func check(_ output: String, inputs: [String], overwriting: Bool) throws(PEFTError) {
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
