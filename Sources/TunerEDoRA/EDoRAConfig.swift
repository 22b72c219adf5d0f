import PEFTCore
import PEFTSupport
import TunerLoRA

/// The settings of an EDoRA adapter, or of LoRA-XS, which is EDoRA without a magnitude.
///
/// Those that it shares with LoRA (rank, alpha, targets, …) have LoRA's keys.
public struct EDoRAConfig: TunerConfig, Equatable {
  /// Which of the two.
  public enum Method: String, Sendable, CaseIterable {
    /// With a magnitude: W′ = m∘(W + s·B·R·A)/‖W + s·B·R·A‖.
    case edora = "EDORA"
    /// Without: W′ = W + s·B·R·A.
    case loraXS = "LORA_XS"
  }

  /// Which of the two.
  public var method: Method
  /// Rank, alpha, targets and what else LoRA has too. Its own initialisation is not used.
  public var lora: LoRAConfig
  /// Deviation of R's initial values, `init_sigma`; of A's where there is no R.
  public var sigma: Double
  /// How A and B are made, `reconstruct_config`.
  public var reconstruction: Reconstruction
  /// Whether files leave A and B out, `compact`: they are made anew from the base model's weights,
  /// whose fingerprint the file has. Such files are read by this package alone.
  public var isCompact: Bool

  /// Creates settings.
  public init(
    _ method: Method = .edora, lora: LoRAConfig, sigma: Double = 1e-5,
    reconstruction: Reconstruction = Reconstruction(), isCompact: Bool = false
  ) {
    self.method = method
    self.lora = lora
    self.sigma = sigma
    self.reconstruction = reconstruction
    self.isCompact = isCompact
    self.lora.usesDoRA = false
  }

  /// Creates settings from the most common ones.
  public init(
    _ method: Method = .edora, rank: Int = 16, alpha: Double = 16, dropout: Double = 0,
    targets: TargetSelection = TargetSelection(), taskType: TaskType? = nil, sigma: Double = 1e-5,
    reconstruction: Reconstruction = Reconstruction(), isCompact: Bool = false
  ) {
    self.init(
      method,
      lora: LoRAConfig(
        rank: rank, alpha: alpha, dropout: dropout, targets: targets, taskType: taskType),
      sigma: sigma, reconstruction: reconstruction, isCompact: isCompact)
  }

  /// What the adapter is for.
  public var taskType: String? {
    get { lora.taskType }
    set { lora.taskType = newValue }
  }
  /// The base model's name or path.
  public var baseModel: String? {
    get { lora.baseModel }
    set { lora.baseModel = newValue }
  }
  /// Which modules are adapted.
  public var targets: TargetSelection {
    get { lora.targets }
    set { lora.targets = newValue }
  }
  /// Modules that are trained and saved in full.
  public var modulesToSave: [String] {
    get { lora.modulesToSave }
    set { lora.modulesToSave = newValue }
  }
  /// Weights that no layer holds and that are adapted; this method refuses them.
  public var targetParameters: [String] { lora.targetParameters }
  /// Which biases of the base are trained.
  public var bias: BiasTraining { lora.bias }
  /// Single rows of embeddings that are trained.
  public var trainableTokens: TrainableTokens? { lora.trainableTokens }
  /// Whether tied layers get the same adapter; this method refuses that.
  public var ensuresWeightTying: Bool { lora.ensuresWeightTying }
  /// Ranges of layers that the model's stack of layers is put together from anew.
  public var layerReplication: [Range<Int>] { lora.layerReplication }
  /// Whether the adapter is only to be used, not trained.
  public var isInference: Bool {
    get { lora.isInference }
    set { lora.isInference = newValue }
  }

  /// What is odd about the settings, given the modules that were matched.
  public func remarks(matching paths: [String]) -> [String] { lora.remarks(matching: paths) }

  /// Members of the file that the config has no property for; those of `reconstruct_config` are
  /// named with it, `reconstruct_config.key`.
  public var unknownKeys: JSONObject {
    get {
      JSONObject(
        lora.unknownKeys.members.map { ($0.key, $0.value) }
          + reconstruction.unknownKeys.members.map { (Self.recipePrefix + $0.key, $0.value) })
    }
    set {
      lora.unknownKeys = newValue.filter { key, _ in !key.hasPrefix(Self.recipePrefix) }
      let ofRecipe = newValue.filter { key, _ in key.hasPrefix(Self.recipePrefix) }
      reconstruction.unknownKeys = JSONObject(
        ofRecipe.members.map { (String($0.key.dropFirst(Self.recipePrefix.count)), $0.value) })
    }
  }

  private static let recipePrefix = "reconstruct_config."

  private static let ownKeys = [
    "init_sigma", "reconstruct_config", "compact", "use_dora", "dora_detach_norm",
  ]
  static let reconstructionFile = "reconstr_config.json"

  /// Reads the members of a config: LoRA's, and those of this method.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` or `unsupported`, naming the key.
  public init(_ object: JSONObject) throws(PEFTError) {
    var reader = ConfigReader(object)
    let type = try reader.string("peft_type") ?? Method.edora.rawValue
    guard let method = Method(rawValue: type) else {
      throw PEFTError(
        .invalidConfiguration, "'peft_type' is '\(type)', EDORA or LORA_XS was expected",
        remedy: "Use one of the two, or the config of the other method.")
    }
    var shared = object.filter { key, _ in !Self.ownKeys.contains(key) }
    shared["peft_type"] = "LORA"
    if let usesDoRA = try reader.bool("use_dora"), usesDoRA != (method == .edora) {
      throw PEFTError(
        .invalidConfiguration, "'use_dora' is \(usesDoRA), which \(type) does not go with",
        remedy: "Remove the key: EDoRA has a magnitude, LoRA-XS is EDoRA without.")
    }
    if let start = shared["init_lora_weights"], start != true, !start.isNull {
      throw PEFTError(
        .unsupported, "'init_lora_weights': \(start.text()) is not supported by this method",
        remedy: "A and B begin as 'reconstruct_config' says.")
    }
    lora = try LoRAConfig(shared)
    lora.detachesNorm = try reader.bool("dora_detach_norm") ?? true
    self.method = method
    var sigma = try reader.double("init_sigma")
    isCompact = try reader.bool("compact") ?? false
    if let value = reader.value("reconstruct_config") {
      guard let members = value.object else {
        throw ConfigReader.mismatch("reconstruct_config", "a mapping", value)
      }
      reconstruction = try Reconstruction(members, rank: lora.rank, sigma: &sigma)
    } else {
      reconstruction = Reconstruction()
    }
    self.sigma = sigma ?? 1e-5
    try validate()
  }

  /// The members of a config, all in one object, as a run's settings have them.
  public var object: JSONObject {
    var members = lora.object
    members["peft_type"] = .string(method.rawValue)
    members["use_dora"] = nil
    members["init_lora_weights"] = nil
    members["init_sigma"] = .double(sigma)
    members["reconstruct_config"] = .object(reconstruction.object)
    if isCompact { members["compact"] = true }
    return members
  }

  /// The files: by default those of the EDoRA repository, a LoRA config that its version of peft reads
  /// and `reconstr_config.json`; a compact adapter's `adapter_config.json` has everything, so that no
  /// program takes it for another method's.
  public var files: [(name: String, members: JSONObject)] {
    if isCompact { return [(AdapterFolder.configName, object)] }
    var config = lora
    config.usesDoRA = method == .edora
    var recipe = reconstruction.object
    var svd = recipe["svd"]?.object ?? JSONObject()
    svd["rank"] = .int(lora.rank)
    recipe["svd"] = .object(svd)
    recipe["init_sigma"] = .double(sigma)
    return [
      (AdapterFolder.configName, RepositoryForm.members(of: config)),
      (Self.reconstructionFile, recipe),
    ]
  }

  /// Checks the values.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`, naming the key.
  public func validate() throws(PEFTError) {
    try lora.validate(hasMagnitude: method == .edora)
    do { try reconstruction.validate() } catch { throw error.located(at: "'reconstruct_config'") }
    for (key, isSet) in [
      ("lora_bias", lora.usesLoRABias), ("enable_lora", !lora.enabledParts.isEmpty),
    ] where isSet {
      throw PEFTError(
        .unsupported, "'\(key)' is not supported by this method", remedy: "Remove the key.")
    }
    if !(sigma >= 0 && sigma.isFinite) {
      throw PEFTError(
        .invalidConfiguration,
        "'init_sigma' is \(sigma), a finite number that is not negative was expected",
        remedy: "The default is 1e-5.")
    }
    if !Float(sigma).isFinite {
      throw PEFTError(
        .invalidConfiguration, "'init_sigma' is \(sigma), which 32 bits do not hold",
        remedy: "The default is 1e-5.")
    }
    if isCompact, !reconstruction.hasLatent {
      throw PEFTError(
        .invalidConfiguration, "'compact' needs 'r_squared': true",
        remedy: "Without R it is A and B that are trained, and they must be in the file.")
    }
  }
}

/// How A and B begin, the EDoRA repository's `reconstruct_config`.
public struct Reconstruction: Sendable, Equatable {
  /// How the decomposition is computed.
  public enum Decomposition: Sendable, Equatable {
    /// By a full decomposition.
    case exact
    /// By randomised subspace iteration: `n_iter` products with M·Mᵀ.
    case randomized(iterations: Int)
  }

  /// Exactly, unless `svd.n_iter` is given.
  public var decomposition: Decomposition
  /// Seed of what is random about A and B, `svd.random_state`. Numbers differ from numpy's.
  public var randomState: Int
  /// Whether the second half of B's columns is drawn at random, `half_init_dec`.
  public var drawsHalfOfB: Bool
  /// Whether A and B are drawn at random, `replacement_module_random_init`.
  public var isRandom: Bool
  /// Whether there is an R between A and B, and only it is trained, `r_squared`.
  public var hasLatent: Bool
  /// Other members, written back.
  public var unknownKeys: JSONObject

  /// Creates a recipe.
  public init(
    decomposition: Decomposition = .exact, randomState: Int = 42, drawsHalfOfB: Bool = false,
    isRandom: Bool = false, hasLatent: Bool = true
  ) {
    self.decomposition = decomposition
    self.randomState = randomState
    self.drawsHalfOfB = drawsHalfOfB
    self.isRandom = isRandom
    self.hasLatent = hasLatent
    unknownKeys = JSONObject()
  }

  /// Reads the members; two of them may repeat what stands beside the recipe.
  ///
  /// - Parameters:
  ///   - object: The members.
  ///   - rank: The adapter's rank, which `svd.rank` must be.
  ///   - sigma: `init_sigma` beside the recipe; receives the recipe's own.
  /// - Throws: ``PEFTError`` naming the key.
  init(_ object: JSONObject, rank: Int, sigma: inout Double?) throws(PEFTError) {
    self.init()
    var reader = ConfigReader(object)
    do throws(PEFTError) {
      let type = try reader.string("reconstruction_type") ?? "svd"
      guard type == "svd" else {
        throw PEFTError(
          .unsupported, "'reconstruction_type': \"\(type)\" is not supported",
          remedy: "The only type is \"svd\".")
      }
      let mode = try reader.string("reconstr_mode") ?? "separated"
      guard mode == "separated" else {
        throw PEFTError(
          .unsupported, "'reconstr_mode': \"\(mode)\" is not supported",
          remedy: "The only mode is \"separated\".")
      }
      drawsHalfOfB = try reader.bool("half_init_dec") ?? false
      isRandom = try reader.bool("replacement_module_random_init") ?? false
      hasLatent = try reader.bool("r_squared") ?? true
      // A member of the file that this package adds.
      if let own = try reader.double("init_sigma") {
        if let sigma, own != sigma {
          throw PEFTError(
            .invalidConfiguration, "'init_sigma' is \(own), but \(sigma) beside the recipe",
            remedy: "Give it once.")
        }
        sigma = own
      }
      if let value = reader.value("svd") {
        guard let members = value.object else {
          throw ConfigReader.mismatch("svd", "a mapping", value)
        }
        try readDecomposition(members, rank)
      }
      unknownKeys = reader.rest
    } catch {
      throw error.located(at: "'reconstruct_config'")
    }
  }

  private mutating func readDecomposition(_ object: JSONObject, _ rank: Int) throws(PEFTError) {
    var reader = ConfigReader(object)
    if let iterations = try reader.int("n_iter") {
      decomposition = .randomized(iterations: iterations)
      try validate()
    }
    randomState = try reader.int("random_state") ?? 42
    if let own = try reader.int("rank"), own != rank {
      throw PEFTError(
        .invalidConfiguration, "'svd.rank' is \(own), but 'r' is \(rank)",
        remedy: "Remove 'svd.rank': A and B have the rank 'r'.")
    }
    if let key = reader.rest.keys.first {
      throw PEFTError(
        .invalidConfiguration, "unknown key 'svd.\(key)'",
        remedy: Spelling.suggestion(for: key, among: ["n_iter", "random_state", "rank"]))
    }
  }

  func validate() throws(PEFTError) {
    guard case .randomized(let iterations) = decomposition, iterations < 0 else { return }
    throw PEFTError(
      .invalidConfiguration, "'svd.n_iter' is \(iterations), it cannot be negative",
      remedy: "Leave it out for an exact decomposition.")
  }

  /// The members.
  public var object: JSONObject {
    var svd: [(String, JSONValue)] = [("random_state", .int(randomState))]
    if case .randomized(let iterations) = decomposition {
      svd.insert(("n_iter", .int(iterations)), at: 0)
    }
    return JSONObject(
      [
        ("reconstruction_type", "svd"), ("reconstr_mode", "separated"),
        ("half_init_dec", .bool(drawsHalfOfB)),
        ("replacement_module_random_init", .bool(isRandom)), ("r_squared", .bool(hasLatent)),
        ("svd", .object(JSONObject(svd))),
      ] + unknownKeys.members.map { ($0.key, $0.value) })
  }
}
