import BLASKernels
import LayerTestSupport
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// What initialisations from data refuse, with the module or the batch, and the model as it was.
struct InitializationErrorTests {
  private static let kinds: [(initialization: LoRAConfig.Initialization, name: String)] = [
    (.eva(EVASettings()), "eva"), (.corda(CorDASettings()), "corda"),
    (.loraGA(LoRAGASettings()), "lora_ga"),
  ]

  private let layer: Linear
  private let peft: PeftModel
  private let folder: TemporaryFolder

  /// `lin` runs, `idle` does not, and `emb` has no rows of features.
  init() throws {
    func matrix(_ rows: Int, _ columns: Int, _ stream: UInt64) -> DenseMatrix {
      DenseMatrix(.normal([rows, columns], deviation: 1, key: DropoutKey(seed: 3, stream: stream)))
    }
    func linear(_ stream: UInt64) -> Linear {
      Linear(
        HostParameters(weight: .matrix(matrix(8, 10, stream)), bias: nil), inputFeatures: 10,
        outputFeatures: 8)
    }
    folder = try TemporaryFolder()
    layer = linear(1)
    let tree = AdapterTree()
    tree.add("lin", layer)
    tree.add("idle", linear(2))
    tree.add(
      "emb",
      Embedding(
        HostParameters(weight: .matrix(matrix(11, 6, 3)), bias: nil), count: 11, width: 6))
    peft = PeftModel(
      tree, info: BaseModelInfo(modelType: "toy"), registry: AdapterTree.registry)
    try peft.add("first", LoRAConfig(rank: 2, targets: TargetSelection(.list(["lin"]))))
    try peft.setTrainable(["first"], false)
  }

  private static func rows(_ count: Int = 6, _ stream: UInt64 = 0) -> Tensor {
    .normal([count, 10], deviation: 1, key: DropoutKey(seed: 8, stream: stream))
  }

  /// Runs `lin`; the loss is what is made of its output.
  private func calibration(
    _ batches: [Tensor], _ loss: @escaping (Tensor) -> Tensor? = { ($0 * $0).sum() }
  ) -> Calibration {
    Calibration(batches) { (x, observer) throws(PEFTError) in
      var context = ForwardContext(SequenceLayout(lengths: [x.rows]))
      context.observer = observer
      return loss(self.layer(x, context))
    }
  }

  private func refuses(
    _ text: String, _ code: PEFTError.Code, at location: String? = nil,
    _ initialization: LoRAConfig.Initialization, _ targets: [String] = ["lin"], rank: Int = 2,
    alpha: Double = 2, on calibration: Calibration?,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let config = LoRAConfig(
      rank: rank, alpha: alpha, targets: TargetSelection(.list(targets)),
      initialization: initialization)
    try peft.refuses(text, code, at: location, sourceLocation: sourceLocation) {
      try peft.add("second", config, calibration: calibration)
    }
  }

  @Test func batchesThatAreMissing() throws {
    for (kind, name) in Self.kinds {
      try refuses(
        "'init_lora_weights' is '\(name)', which begins from data", .invalidConfiguration, kind,
        on: nil
      )
      try refuses(
        "there is no batch to begin from ('\(name)')", .invalidData, kind, on: calibration([]))
      try refuses(
        "the layer did not run on any batch, so it has nothing to begin from", .invalidData,
        at: "idle", kind, ["lin", "idle"], on: calibration([Self.rows()]))
    }
  }

  @Test func eva() throws {
    var settings = EVASettings()
    try refuses(
      "n_components=12 invalid for n_features=10: EVA looks for rho·r components of the layer's "
        + "inputs", .invalidConfiguration, at: "lin", .eva(settings), rank: 6,
      on: calibration([Self.rows(20)]))
    try refuses(
      "no batch has as many rows as EVA looks for components: 8", .invalidData, at: "lin",
      .eva(settings), rank: 4, on: calibration([Self.rows(6), Self.rows(7)]))
    try refuses(
      "the layer's inputs have infinite or NaN elements", .numericalFailure, at: "lin",
      .eva(settings), on: calibration([Self.rows(8), Tensor(repeating: .nan, shape: [8, 10])]))
    // Other inputs in each pass, so that no component is ever the one before.
    settings.tau = 1
    var pass: UInt64 = 0
    let restless = Calibration([0]) { (_: Int, observer) throws(PEFTError) in
      var context = ForwardContext(SequenceLayout(lengths: [6]))
      context.observer = observer
      pass += 1
      _ = self.layer(Self.rows(6, pass), context)
      return nil
    }
    try refuses(
      "the components have not settled after 100 passes over the batches", .numericalFailure,
      at: "lin", .eva(settings), on: restless)
    #expect(pass > 100)
  }

  @Test func corDA() throws {
    for key in ["covariance_file", "cache_file"] {
      var settings = CorDASettings()
      if key == "cache_file" { settings.cacheFile = "x" } else { settings.covarianceFile = "x" }
      try refuses(
        "'corda_config.\(key)' is not supported", .unsupported, .corda(settings),
        on: calibration([Self.rows()]))
    }
    let corda = LoRAConfig.Initialization.corda(CorDASettings())
    // Nothing can be divided by a largest element of zero.
    for value in [Float.nan, .infinity, 0] {
      var scalars = Self.rows().scalars
      if value == 0 { scalars = scalars.map { _ in 0 } } else { scalars[7] = value }
      try refuses(
        "Invalid value found in input, please check your input data.", .numericalFailure,
        at: "lin", corda,
        on: calibration([Self.rows(), Tensor(shape: [6, 10], scalars: scalars)]))
    }
    // Finite, but with squares that are not.
    var scalars = Self.rows().scalars.map { min($0, 1) }
    scalars[3] = -1e30
    scalars[4] = 1
    try refuses(
      "the covariance of the layer's inputs has no inverse", .numericalFailure, at: "lin", corda,
      on: calibration([Tensor(shape: [6, 10], scalars: scalars)]))
    try refuses(
      "rank mismatch: 8 vs. 9: CorDA takes r singular vectors of a 8×10 weight",
      .invalidConfiguration, at: "lin", corda, rank: 9, on: calibration([Self.rows(20)]))
    try refuses(
      "the scaling is 0.0; the singular values are divided by it", .invalidConfiguration, at: "lin",
      corda, alpha: 0, on: calibration([Self.rows(20)]))
  }

  @Test func loraGA() throws {
    let plain = LoRAConfig.Initialization.loraGA(LoRAGASettings())
    try refuses(
      "No supported layers found for LoRA-GA initialization. LoRA-GA only supports Linear and "
        + "Conv1D layers.", .noMatchingModule, plain, ["emb"], on: calibration([Self.rows()]))
    try refuses(
      "no batch has a loss, of whose gradient 'lora_ga' makes A and B", .invalidData, plain,
      on: calibration([Self.rows()]) { _ in nil })
    // Not of the model's output, and not a scalar.
    for loss in [{ _ in Tensor.zeros([1]) }, { $0 }] as [(Tensor) -> Tensor?] {
      try refuses(
        "the loss of batch 0 does not depend on the adapted layers", .invalidData, plain,
        on: calibration([Self.rows()], loss))
    }
    try refuses(
      "the loss of batch 1 is nan", .numericalFailure, plain,
      on: calibration([Self.rows(), Tensor(repeating: .nan, shape: [6, 10])]))
    try refuses(
      "LoRA-GA takes 2·r singular vectors of the gradient: 10 of a 8×10 weight's",
      .invalidConfiguration, at: "lin", plain, rank: 5, on: calibration([Self.rows()]))
    try refuses(
      "the scaling is 0; 'gd_scale' divides by it", .invalidConfiguration, at: "lin",
      .loraGA(LoRAGASettings(scale: .gradientDescent)), alpha: 0, on: calibration([Self.rows()]))
  }

  /// A trained adapter without the one that its training began with, or with another one (case 11c).
  @Test func initialValues() throws {
    for (initialization, name) in [
      (LoRAConfig.Initialization.corda(CorDASettings()), "corda"),
      (.loraGA(LoRAGASettings()), "lora_ga"), (.pissa, "pissa"),
    ] {
      let config = LoRAConfig(
        rank: 2, targets: TargetSelection(.list(["lin"])), initialization: initialization)
      try peft.add(
        "new", config, calibration: config.needsCalibration ? calibration([Self.rows(9)]) : nil)
      try peft.save(folder(name), adapter: "new", form: .trained)
      try peft.delete("new")
      let references = FileSystem.join(folder(name), AdapterFolder.referencesName)
      FileSystem.removeTree(references)

      try peft.refuses(
        "no such adapter folder", .fileNotFound, at: folder("nowhere")
      ) { try peft.load(folder(name), as: "second", initial: folder("nowhere")) }
      // Of another rank, and for another layer.
      for (a, b) in [([3, 10], [8, 3]), ([2, 12], [8, 2]), ([2, 10], [6, 2])] {
        try SafetensorsWriter.write(
          [
            SafetensorsItem("base_model.model.lin.lora_A.weight", .zeros(a)),
            SafetensorsItem("base_model.model.lin.lora_B.weight", .zeros(b)),
          ], to: references)
        try peft.refuses(
          "the initial values of A and B have the shapes \(a) and \(b), [2, 10] and [8, 2] were "
            + "expected", .shapeMismatch, at: "lin"
        ) { try peft.load(folder(name), as: "second") }
      }
      FileSystem.removeTree(references)
      if name == "pissa" { continue }
      try peft.refuses(
        "the adapter's changes are measured from initial values ('init_lora_weights': '\(name)') "
          + "that came from data and are not in its folder", .missingTensor, at: "lin"
      ) { try peft.load(folder(name), as: "second") }
    }
  }

  /// The same without a model.
  @Test func conversionsOfFolders() throws {
    let trained = try AdapterFolder(TestData.golden("inits/pissa-tall/trained"))
    let key = "base_model.model.layer.lora_A.weight"
    let shape = try trained.tensors.entry(key).shape
    let other = [shape[0] + 1, shape[1]]
    for isMissing in [true, false] {
      let path = folder("initial")
      FileSystem.removeTree(path)
      try FileSystem.createDirectory(path)
      try FileSystem.write(
        FileSystem.join(path, AdapterFolder.configName), JSONValue.object(trained.config).text())
      var items = [SafetensorsItem]()
      for name in trained.tensors.names {
        if name != key { items.append(SafetensorsItem(name, try trained.tensors.tensor(name))) }
      }
      if !isMissing { items.append(SafetensorsItem(key, .zeros(other))) }
      try SafetensorsWriter.write(items, to: FileSystem.join(path, AdapterFolder.weightsName))
      let initial = try AdapterFolder(path)
      expectError(
        isMissing
          ? "has no '\(key)', which the trained adapter has"
          : "'\(key)' has shape \(other), that of the trained adapter \(shape)",
        isMissing ? .missingTensor : .shapeMismatch, at: path
      ) { _ = try LoRAConfig.converted(initial: initial, trained: trained) }
    }
  }
}
