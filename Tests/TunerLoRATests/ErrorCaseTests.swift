import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// What is refused, in peft's words where it refuses the same (Tests/Goldens/conformance.json), with
/// the name of the module, key or adapter; and the model is as it was before.
struct ErrorCaseTests {
  private let peft: PeftModel
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    peft = PeftModel(
      AdapterTree.ofEveryKind(), info: BaseModelInfo(modelType: "toy"),
      registry: AdapterTree.registry)
  }

  private func config(
    _ targets: String..., rank: Int = 2, _ change: (inout LoRAConfig) -> Void = { _ in }
  ) -> LoRAConfig {
    var config = LoRAConfig(rank: rank, targets: TargetSelection(.list(targets)))
    config.initialization = .random
    change(&config)
    return config
  }

  @Test func adaptersThatCannotBeAdded() throws {
    try peft.add("first", config("lin"))
    try peft.refuses("Adapter with name 'first' already exists.", .invalidAdapter, isPefts: true) {
      try peft.add("first", config("part.plain"))
    }
    for rank in [0, -1] {
      try peft.refuses(
        "`r` should be a positive integer value but the value passed is \(rank)",
        .invalidConfiguration, isPefts: true
      ) { try peft.add("second", config("lin", rank: rank)) }
    }
    // The layers before the one that fails were made already.
    try peft.refuses(
      "Targeting a Conv2d with groups=4 and rank 6. Currently, support is limited to conv layers "
        + "where the rank is divisible by groups.", .invalidConfiguration, at: "conv", isPefts: true
    ) { try peft.add("second", config("lin", "conv", rank: 6)) }
    try peft.refuses(
      "lora_bias=True is not supported for Embedding.", .unsupported, at: "emb", isPefts: true
    ) {
      try peft.add("second", config("lin", "emb") { $0.usesLoRABias = true })
    }
    for (selection, text) in [
      (
        TargetSelection(.regex("lin"), layers: [1]),
        "`layers_to_transform` cannot be used when `target_modules` is a str."
      ),
      (
        TargetSelection(.regex("lin"), layersPattern: ["h"]),
        "`layers_pattern` cannot be used when `target_modules` is a str."
      ),
      (
        TargetSelection(.list(["lin"]), layersPattern: ["h"]),
        "When `layers_pattern` is specified, `layers_to_transform` must also be specified."
      ),
    ] {
      try peft.refuses(text, .invalidConfiguration, isPefts: true) {
        try peft.add("second", config { $0.targets = selection })
      }
    }
    try peft.refuses(
      "'rank_pattern': '(' is not a valid regular expression", .invalidConfiguration,
      at: "lin"
    ) { try peft.add("second", config("lin") { $0.rankPattern = SuffixPatterns([.init("(", 1)]) }) }
  }

  @Test func adaptersThatCannotBeMerged() throws {
    try peft.add("first", config("lin"))
    try peft.add("default", config("lin", "part.plain"))
    try peft.refuses("Adapter nobody not found.", .invalidAdapter, isPefts: true) {
      try peft.merge(["first", "nobody"])
    }
    let broken = try #require(try peft.tensors(of: "default").first).parameter
    let good = broken.value
    let text = "NaNs detected in the merged weights. The adapter default seems to be broken"
    for value in [Float.nan, .infinity] {
      var scalars = good.scalars
      scalars[3] = value
      broken.assign(Tensor(shape: good.shape, scalars: scalars))
      for names in [["default"], ["first", "default"]] {
        try peft.refuses(
          text, .numericalFailure, at: "lin",
          remedy: "Leave it out, or load it from a file whose values are finite.", isPefts: true
        ) { try peft.merge(names, safe: true) }
      }
    }
    broken.assign(good)
    try peft.add("biased", config("lin", "part.plain") { $0.usesLoRABias = true })
    try peft.refuses(
      "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.",
      .unsupported, at: "part.plain", isPefts: true
    ) { try peft.merge(["biased"]) }
    let bias = try #require(try peft.tensors(of: "biased").first { $0.key.hasSuffix("B.bias") })
    bias.parameter.update { $0.withMutableSlice { $0[2] = .nan } }
    try peft.refuses(
      "NaNs detected in the merged weights. The adapter biased seems to be broken",
      .numericalFailure, at: "lin"
    ) { try peft.merge(["biased"], safe: true) }
    try peft.add("grouped", config("lin", "conv", rank: 4))
    try peft.refuses(
      "Merging is not supported for _ConvNd layers with groups > 1!", .unsupported, at: "conv",
      isPefts: true
    ) { try peft.merge(["first", "grouped"]) }
  }

  @Test func namesThatNoAdapterHas() throws {
    for name in ["first", "second"] { try peft.add(name, config("lin")) }
    let text = "Adapter nobody not found."
    try peft.refuses(text, .invalidAdapter, isPefts: true) {
      try peft.setActive(["second", "nobody"])
    }
    for call in [
      { _ = try peft.config("nobody") }, { _ = try peft.tensors(of: "nobody") },
      { try peft.rename("nobody", to: "x") }, { try peft.setTrainable(["nobody"], false) },
      { try peft.save(folder("x"), adapter: "nobody") },
    ] as [() throws -> Void] { try peft.refuses(text, .invalidAdapter, isPefts: true, call) }
    try peft.refuses("Adapter nobody does not exist", .invalidAdapter, isPefts: true) {
      try peft.delete("nobody")
    }
    try peft.refuses(
      "Trying to infer with non-existing adapter(s): ant, zebra", .invalidAdapter, isPefts: true
    ) {
      _ = try peft.sequenceAdapters(["zebra", "first", "ant"])
    }
    for count in [2, 4, 0] {
      try peft.refuses(
        "Length of `adapter_names` should be the same as the number of inputs, but got \(count) "
          + "and 3 respectively.", .invalidAdapter, isPefts: true
      ) { _ = try peft.sequenceAdapters(.init(repeating: "first", count: count), count: 3) }
    }
    #expect(folder.names.isEmpty)
  }

  @Test func callsThatDoNotFitTheState() throws {
    for name in ["first", "second"] { try peft.add(name, config("lin")) }
    try peft.save(folder("adapter"), adapter: "first")
    try peft.merge(["first"])
    try peft.refuses(
      "Cannot delete adapter(s) ['first'] while they are merged.", .invalidState, isPefts: true
    ) {
      try peft.delete("first")
    }
    try peft.refuses(
      "Cannot hot-swap adapter 'first' because it is currently merged into the base weights.",
      .invalidState
    ) { try peft.hotSwap("first", from: folder("adapter")) }
    // The file that stands where a folder is to be.
    _ = try folder.write("taken", "text")
    try peft.refuses(
      "is a file, a folder was to be written", .fileAccess, at: folder("taken")
    ) { try peft.save(folder("taken"), adapter: "second") }
    #expect(String(decoding: try FileSystem.read(folder("taken")), as: UTF8.self) == "text")
    #expect(folder.names == ["adapter", "taken"])
  }

  @Test func foldersThatDoNotFit() throws {
    try peft.add("first", config("lin", "part.plain", "emb"))
    try peft.save(folder("good"))
    try peft.add("other", config("lin"))
    let weights = folder("good/adapter_model.safetensors")
    let good = try SafetensorsFile(weights)
    func items(_ change: (inout [String: Tensor]) -> Void) throws -> [SafetensorsItem] {
      var tensors: [String: Tensor] = [:]
      for name in good.names { tensors[name] = try good.tensor(name) }
      change(&tensors)
      return tensors.map { SafetensorsItem($0.key, $0.value) }
    }
    let original = try items { _ in }
    func load() throws { try peft.load(folder("good"), as: "again") }
    for key in good.names {
      try SafetensorsWriter.write(original.filter { $0.name != key }, to: weights)
      try peft.refuses(
        "the adapter's tensors do not fit the model; missing: '\(key)'", .missingTensor,
        at: weights, load)
      let shape = try good.entry(key).shape
      let changed = original.map {
        $0.name == key ? SafetensorsItem(key, .zeros([shape[0] + 1, shape[1]])) : $0
      }
      try SafetensorsWriter.write(changed, to: weights)
      try peft.refuses(
        "'\(key)' has shape \([shape[0] + 1, shape[1]]), the model needs \(shape)",
        .shapeMismatch, at: weights, load)
    }
    let more = "base_model.model.part.lora_A.weight"
    try SafetensorsWriter.write(
      original + [SafetensorsItem(more, .zeros([2, 2]))], to: weights)
    try peft.refuses(
      "the adapter's tensors do not fit the model; unused: '\(more)'", .unexpectedTensor,
      at: weights, load)
    try peft.refuses("no such adapter folder", .fileNotFound, at: folder("absent")) {
      try peft.load(folder("absent"), as: "again")
    }
    try FileSystem.createDirectory(folder("empty"))
    try peft.refuses(
      "Can't find 'adapter_config.json' at '\(folder("empty"))'", .fileNotFound
    ) { try peft.load(folder("empty"), as: "again") }
    for (text, message, code) in [
      ("{}", "the key 'peft_type' is missing", PEFTError.Code.invalidConfiguration),
      (
        #"{"peft_type": "NONSENSE"}"#, "no registered tuner handles peft_type 'NONSENSE'",
        .unsupported
      ),
      (
        #"{"peft_type": "LORA", "r": 0}"#,
        "`r` should be a positive integer value but the value passed is 0", .invalidConfiguration
      ),
    ] {
      let path = folder("good/adapter_config.json")
      try FileSystem.write(path, text)
      try peft.refuses(message, code, at: path, load)
    }
  }
}
