import ArgumentParser
import PEFT

/// An adapter folder and the name that it gets: `DIR` or `DIR=NAME`.
struct AdapterReference: ExpressibleByArgument, Equatable {
  var folder: String
  var name: String?

  init(folder: String, name: String? = nil) {
    self.folder = folder
    self.name = name
  }

  init?(argument: String) {
    // A path may contain '=' itself.
    guard !FileSystem.isDirectory(argument), let mark = argument.lastIndex(of: "=") else {
      self.init(folder: argument)
      return
    }
    self.init(
      folder: String(argument[..<mark]), name: String(argument[argument.index(after: mark)...]))
  }

  static var defaultCompletionKind: CompletionKind { .directory }
}

/// The adapters to load.
struct AdapterOptions: ParsableArguments {
  @Option(
    name: .customLong("adapter"),
    help: ArgumentHelp(
      "An adapter folder of peft, with a name for it; may be repeated.",
      discussion: "Without a name the first is 'default', others are named after their folder.",
      valueName: "dir[=name]"))
  var adapters: [AdapterReference] = []
}

/// The adapters to load and those in use.
struct ActiveOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Names of the active adapters, separated by commas; the first one given by default.",
      discussion: "An empty text or __base__ runs the base model alone.", valueName: "names"))
  var active: String?

  /// The names, or `nil` when the option is absent.
  var names: [String]? {
    guard let names = active.map(separatedNames) else { return nil }
    return names == ["__base__"] ? [] : names.filter { !$0.isEmpty }
  }
}

/// The adapter of each row of a mixed batch.
struct RowOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "The adapter of each row of the batch, separated by commas; __base__ for none.",
      discussion: "The adapters need not be active.", valueName: "name,name,…"))
  var rows: String?

  /// The names, or `nil` when the option is absent.
  var names: [String]? { rows.map(separatedNames) }

  /// The assignment for a batch of so many rows, or `nil` when the option is absent.
  ///
  /// - Throws: ``PEFTError`` for names that no adapter has, and another number of names.
  func assignment(_ peft: PeftModel, count: Int) throws(PEFTError) -> SequenceAdapters? {
    guard let names else { return nil }
    guard names.count == count else {
      throw PEFTError(
        .invalidAdapter, "\(names.count) names for a batch of \(count) rows", at: "--rows",
        remedy: "Give one name for each row; __base__ is the base model alone.")
    }
    do { return try peft.sequenceAdapters(names) } catch { throw error.located(at: "--rows") }
  }
}

/// The names between commas, without the spaces around them.
private func separatedNames(_ text: String) -> [String] {
  text.split(separator: ",", omittingEmptySubsequences: false).map { name in
    String(name.drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
  }
}
