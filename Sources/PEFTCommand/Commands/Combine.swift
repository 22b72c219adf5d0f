import ArgumentParser
import PEFT

/// `peft combine`: one adapter of several.
struct Combine: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make one adapter of several, with a weight for each.",
    discussion: """
      The types are peft's. linear and cat add the changes exactly, and the rank of the new adapter is the \
      sum of the ranks. svd approximates the sum with a lower rank. ties, dare_ties, dare_linear \
      and magnitude_prune prune first and need --density; with _svd at their end they work on \
      whole changes of weights instead of their factors.

      The result is peft's weighted sum where peft is right, and the sum that its documentation \
      promises where it is not; --compatibility peft gives peft's numbers, and refuses modules that \
      are trained in full.

      No model is loaded. Adapters with magnitudes (DoRA) need the base model's weights: --base.

        peft combine --adapter out/french=0.7 --adapter out/formal=0.4 --type cat --output out/both
        peft combine --adapter out/a --adapter out/b=-0.5 --type ties --density 0.5 --output out/c
      """)

  @Option(
    name: .customLong("adapter"),
    help: ArgumentHelp(
      "An adapter folder with its weight, 1 by default; repeat it for each.",
      discussion: "A negative weight takes a change away.", valueName: "dir[=weight]"))
  var adapters: [String]
  @Option(
    help: ArgumentHelp(
      "How they are combined.",
      discussion: Combination.Kind.allCases.map(\.rawValue).joined(separator: ", "),
      valueName: "type"))
  var type = "svd"
  @Option(help: ArgumentHelp("The share of values that pruning keeps.", valueName: "share"))
  var density: Double?
  @Option(
    help: ArgumentHelp(
      "How signs are elected: total (by sum) or frequency (by number).", valueName: "method"))
  var majoritySignMethod = "total"
  @Option(
    help: ArgumentHelp(
      "The rank of a decomposed result; the adapters' largest by default.", valueName: "n"))
  var svdRank: Int?
  @Option(
    help: ArgumentHelp(
      "Limit the values of a decomposed result to this quantile.", valueName: "quantile"))
  var svdClamp: Double?
  @Option(help: ArgumentHelp("The base model's folder.", valueName: "dir"))
  var base: String?
  @Option(help: ArgumentHelp("Seed of what is drawn.", valueName: "n"))
  var seed: UInt64 = 0
  @Option(
    help: ArgumentHelp(
      "exact, or peft for peft's numbers, its faults included.", valueName: "mode"))
  var compatibility = Compatibility.exact
  @Option(help: ArgumentHelp("The folder to write.", valueName: "dir"))
  var output: String
  @Flag(help: "Replace the output folder if it holds a model or an adapter.")
  var overwrite = false
  @OptionGroup var threading: ThreadOptions

  func run() throws {
    threading.apply()
    let named = try adapters.map { try Self.parse($0) }
    try OutputFolder.check(
      output, overwriting: overwrite, inputs: named.map(\.folder) + [base].compactMap { $0 })
    let combination = try settings()
    // Before any file is read.
    _ = try combination.resolved(
      weights: named.map(\.weight), adapters: named.map(\.folder))
    let registry = TunerRegistry.standard
    var sources: [CombinationSource] = []
    var folders: [AdapterFolder] = []
    for (path, weight) in named {
      let folder = try AdapterFolder(path)
      folders.append(folder)
      sources.append(
        CombinationSource(try AdapterValues(folder: folder, registry: registry), weight: weight))
    }
    // The new folder has room for one set of members.
    _ = try AdapterFolder.modelOverrides(of: folders)
    if compatibility == .peft { try Self.refuseSavedModules(sources[0].state) }
    let base = try base.map { try BaseFolder($0, adapters: sources.map(\.state)) }
    let (state, warnings) = try registry.combine(sources, combination, base: base?.weights)
    for warning in warnings { Terminal.writeError("warning: \(warning)\n") }
    try state.save(
      output, registry: registry, card: card(named),
      extraFiles: try Self.trainingFiles(folders))
    try Terminal.write(Self.summary(state, output) + "\n")
  }

  private func settings() throws(PEFTError) -> Combination {
    var result = Combination(
      .svd, density: density, svdRank: svdRank, svdClamp: svdClamp, seed: seed,
      compatibility: compatibility)
    do { result.kind = try Combination.Kind(name: type) } catch {
      throw error.located(at: "--type")
    }
    do {
      result.majoritySign = try Combination.MajoritySign(name: majoritySignMethod)
    } catch {
      throw error.located(at: "--majority-sign-method")
    }
    return result
  }

  /// `DIR` or `DIR=WEIGHT`; a path may contain '=' itself.
  static func parse(_ argument: String) throws(PEFTError) -> (folder: String, weight: Double) {
    guard !FileSystem.isDirectory(argument), let mark = argument.lastIndex(of: "=") else {
      return (argument, 1)
    }
    let text = argument[argument.index(after: mark)...]
    guard let weight = Double(text), weight.isFinite else {
      throw PEFTError(
        .invalidConfiguration, "'\(text)' is not a weight", at: "--adapter",
        remedy: "Write the folder, an equals sign and a number: DIR=0.5.")
    }
    return (String(argument[..<mark]), weight)
  }

  /// peft takes modules that are trained in full from the base model.
  private static func refuseSavedModules(_ first: AdapterValues) throws(PEFTError) {
    guard let saved = first.config["modules_to_save"]?.array, !saved.isEmpty else { return }
    throw PEFTError(
      .unsupported,
      "'modules_to_save': peft's combination has the base model's "
        + "\(saved.map { $0.text() }.joined(separator: ", ")), which is not in the folders",
      at: first.name, remedy: "Leave --compatibility out; the trained module is kept then.")
  }

  /// What training left beside the adapter whose head the new one has: labels and settings. Without
  /// a head they are those of the first that was trained by a run.
  private static func trainingFiles(
    _ folders: [AdapterFolder]
  ) throws(PEFTError) -> [(name: String, text: String)] {
    let withHead = folders.first { folder in
      !(folder.config["modules_to_save"]?.array ?? []).isEmpty
    }
    if let withHead { return try withHead.trainingFiles() }
    for folder in folders {
      let files = try folder.trainingFiles()
      if !files.isEmpty { return files }
    }
    return []
  }

  /// "out: 7 modules of rank 8, 12,345 parameters, 49.4 kB".
  private static func summary(_ state: AdapterValues, _ output: String) -> String {
    let ranks = state.tensors.filter { $0.key.contains("_A") }.map { $0.value.shape[0] }
    let rank = Set(ranks).count == 1 ? "\(ranks[0])" : "\(ranks.min()!) to \(ranks.max()!)"
    let count = state.tensors.reduce(0) { $0 + $1.value.count }
    return "\(output): \(ranks.count) \(ranks.count == 1 ? "module" : "modules") of rank \(rank), "
      + "\(grouped(count)) parameters, \(byteSize(count * 4))"
  }

  private func card(_ named: [(folder: String, weight: Double)]) -> String {
    var settings = [type]
    if let density { settings.append("density \(density)") }
    if let svdRank { settings.append("svd_rank \(svdRank)") }
    let lines = named.map { "* \($0.folder), weight \($0.weight)" }
    return "# Adapter\n\nA combination (\(settings.joined(separator: ", "))) of\n\n"
      + lines.joined(separator: "\n")
  }
}

extension Compatibility: ExpressibleByArgument {}

/// The base model of adapters, as a folder of weights.
struct BaseFolder {
  private let files: ModelWeights
  private let isTransposed: Bool

  /// Opens a folder.
  ///
  /// - Parameter adapters: Tell by `fan_in_fan_out` how square weights are stored.
  init(_ folder: String, adapters: [AdapterValues]) throws(PEFTError) {
    files = try ModelWeights(folder: folder)
    isTransposed = adapters.contains { $0.config["fan_in_fan_out"]?.bool == true }
  }

  /// The weights by module path.
  var weights: BaseWeights {
    BaseWeights { (path, outputs, inputs, isEmbedding) throws(PEFTError) in
      let name = try name(of: path)
      let stored = try files.file(of: name)!.tensor(name)
      let isSquare = outputs == inputs
      return try BaseWeights.oriented(
        stored, outputs: outputs, inputs: inputs,
        isTransposed: isEmbedding ? true : isSquare ? isTransposed : nil, at: path)
    }
  }

  /// Files of a bare model lack the prefix that its paths have under a head, and the reverse.
  private func name(of path: String) throws(PEFTError) -> String {
    let name = FileKey.modulePath(path) + ".weight"
    if files[name] != nil { return name }
    let near = files.names.filter { $0.hasSuffix("." + name) || name.hasSuffix("." + $0) }
    guard near.count == 1 else {
      throw PEFTError(
        .missingTensor, "the base model has no '\(name)'", at: files.folder,
        remedy: "The adapter was made for another base model.")
    }
    return near[0]
  }
}
