import PEFTCore
import PEFTSupport

/// Settings of EVA, peft's `eva_config`.
public struct EVASettings: Sendable, Equatable {
  /// How many times the given rank a layer may get at most; 1 leaves ranks as they are.
  public var rho = 2.0
  /// Cosine between components of consecutive steps from which they count as converged.
  public var tau = 0.99
  /// Whether rows with the label ``ignoredLabel`` are left out.
  public var usesLabelMask = true
  /// The label of rows that are left out.
  public var ignoredLabel: Int32 = -100
  /// Whether components are divided by the roots of their singular values.
  public var whitens = false
  /// Whether alpha grows with the rank, so that the scaling of a layer stays.
  public var adjustsScaling = true

  /// Creates settings; change what differs.
  public init() {}

  init(_ object: JSONObject?) throws(PEFTError) {
    var reader = SettingsObject("eva_config", object)
    rho = try reader.double("rho") ?? rho
    tau = try reader.double("tau") ?? tau
    usesLabelMask = try reader.bool("use_label_mask") ?? usesLabelMask
    let label = try reader.int("label_mask_value") ?? Int(ignoredLabel)
    guard let label = Int32(exactly: label) else {
      throw reader.error("label_mask_value", "is \(label), which no label is")
    }
    ignoredLabel = label
    whitens = try reader.bool("whiten") ?? whitens
    adjustsScaling = try reader.bool("adjust_scaling_factors") ?? adjustsScaling
    try reader.finish()
    try validate()
  }

  func validate() throws(PEFTError) {
    if !(rho >= 1 && rho.isFinite) {
      throw PEFTError(
        .invalidConfiguration, "`rho` must be >= 1.0", at: "'eva_config'",
        remedy: "It is \(rho); 1 leaves the ranks as they are.")
    }
    if !(0...1).contains(tau) {
      throw PEFTError(
        .invalidConfiguration, "`tau` must be between 0.0 and 1.0.", at: "'eva_config'",
        remedy: "It is \(tau); the default is 0.99.")
    }
  }

  var object: JSONObject {
    JSONObject([
      ("rho", .double(rho)), ("tau", .double(tau)), ("use_label_mask", .bool(usesLabelMask)),
      ("label_mask_value", .int(Int(ignoredLabel))), ("whiten", .bool(whitens)),
      ("adjust_scaling_factors", .bool(adjustsScaling)),
    ])
  }
}

/// Settings of CorDA, peft's `corda_config`.
public struct CorDASettings: Sendable, Equatable {
  /// Which singular vectors the adapter gets.
  public enum Method: String, Sendable, CaseIterable {
    /// Instruction-previewed: the largest, for fast learning.
    case instructionPreviewed = "ipm"
    /// Knowledge-preserved: the smallest, so that the largest stay frozen.
    case knowledgePreserved = "kpm"
  }

  /// Which singular vectors the adapter gets, `corda_method`.
  public var method = Method.instructionPreviewed
  /// `covariance_file`, a cache of peft's; kept, but a new adapter is refused with one.
  public var covarianceFile: String?
  /// `cache_file`, a cache of peft's; kept, but a new adapter is refused with one.
  public var cacheFile: String?
  // Written back as they came: they are about peft's memory and output. Covariances here are always
  // sums in single precision.
  private var halfCovariance = false
  private var verbose = false
  private var prunes = true

  /// Creates settings; change what differs.
  public init(method: Method = .instructionPreviewed) { self.method = method }

  init(_ object: JSONObject?) throws(PEFTError) {
    var reader = SettingsObject("corda_config", object)
    method = try reader.choice("corda_method") ?? method
    covarianceFile = try reader.string("covariance_file")
    cacheFile = try reader.string("cache_file")
    halfCovariance = try reader.bool("use_float16_for_covariance") ?? halfCovariance
    verbose = try reader.bool("verbose") ?? verbose
    prunes = try reader.bool("prune_temporary_fields") ?? prunes
    try reader.finish()
  }

  var object: JSONObject {
    JSONObject([
      ("cache_file", cacheFile.map { .string($0) } ?? .null),
      ("covariance_file", covarianceFile.map { .string($0) } ?? .null),
      ("corda_method", .string(method.rawValue)), ("verbose", .bool(verbose)),
      ("use_float16_for_covariance", .bool(halfCovariance)),
      ("prune_temporary_fields", .bool(prunes)),
    ])
  }
}

/// Settings of LoftQ, peft's `loftq_config`.
public struct LoftQSettings: Sendable, Equatable {
  /// Bits of the rounded weight: 2 or 4 (normal float, blocks of 64) or 8 (integers, by row).
  public var bits = 4
  /// How often rounding and decomposition take turns.
  public var iterations = 1

  /// Creates settings.
  public init(bits: Int = 4, iterations: Int = 1) {
    self.bits = bits
    self.iterations = iterations
  }

  init(_ object: JSONObject?) throws(PEFTError) {
    var reader = SettingsObject("loftq_config", object)
    bits = try reader.int("loftq_bits") ?? bits
    iterations = try reader.int("loftq_iter") ?? iterations
    try reader.finish()
    try validate()
  }

  func validate() throws(PEFTError) {
    if ![2, 4, 8].contains(bits) {
      throw PEFTError(
        .invalidConfiguration,
        "'loftq_bits' is \(bits); only nf2, nf4 and int8 quantization is supported",
        at: "'loftq_config'", remedy: "Use 2, 4 or 8.")
    }
    if iterations <= 0 {
      throw PEFTError(
        .invalidConfiguration, "Number of iterations must be greater than 0",
        at: "'loftq_config'", remedy: "'loftq_iter' is \(iterations).")
    }
  }

  var object: JSONObject {
    JSONObject([("loftq_bits", .int(bits)), ("loftq_iter", .int(iterations))])
  }
}

/// Settings of LoRA-GA, peft's `lora_ga_config`.
public struct LoRAGASettings: Sendable, Equatable {
  /// Which of the gradient's 2r leading singular vectors A and B get.
  public enum Direction: String, Sendable, CaseIterable {
    /// A every second one from the second on, B from the first on.
    case alternating = "ArBr"
    /// A the second half, B the first.
    case secondHalfToA = "A2rBr"
    /// A the first half, B the second.
    case secondHalfToB = "ArB2r"
    /// The same r for both, drawn at random.
    case random
  }

  /// How long the vectors are.
  public enum Scale: String, Sendable, CaseIterable {
    /// B times d_out^¼/√γ.
    case stable
    /// B as long as the weight is in its leading direction.
    case weightSVD = "weight_svd"
    /// A and B over the adapter's scaling.
    case gradientDescent = "gd_scale"
    /// As they are.
    case unit
  }

  /// Which singular vectors A and B get.
  public var direction = Direction.secondHalfToB
  /// How long they are.
  public var scale = Scale.stable
  /// γ of ``Scale/stable``.
  public var stableGamma = 16.0

  /// Creates settings.
  public init(
    direction: Direction = .secondHalfToB, scale: Scale = .stable, stableGamma: Double = 16
  ) {
    self.direction = direction
    self.scale = scale
    self.stableGamma = stableGamma
  }

  init(_ object: JSONObject?) throws(PEFTError) {
    var reader = SettingsObject("lora_ga_config", object)
    direction = try reader.choice("direction") ?? direction
    scale = try reader.choice("scale") ?? scale
    stableGamma = try reader.double("stable_gamma") ?? stableGamma
    try reader.finish()
    try validate()
  }

  func validate() throws(PEFTError) {
    if !(stableGamma > 0 && stableGamma.isFinite) {
      throw PEFTError(
        .invalidConfiguration, "'stable_gamma' is \(stableGamma), a positive number was expected",
        at: "'lora_ga_config'", remedy: "The default is 16.")
    }
  }

  var object: JSONObject {
    JSONObject([
      ("direction", .string(direction.rawValue)), ("scale", .string(scale.rawValue)),
      (
        "stable_gamma",
        Int(exactly: stableGamma).map { .int($0) } ?? .double(stableGamma)
      ),
    ])
  }
}

/// Reads one of the objects above; errors name it and the key.
private struct SettingsObject {
  private let name: String
  private var reader: ConfigReader
  private var keys: [String] = []

  init(_ name: String, _ object: JSONObject?) {
    self.name = name
    reader = ConfigReader(object ?? JSONObject())
  }

  mutating func double(_ key: String) throws(PEFTError) -> Double? {
    try read(key) { (reader) throws(PEFTError) in try reader.double(key) }
  }

  mutating func int(_ key: String) throws(PEFTError) -> Int? {
    try read(key) { (reader) throws(PEFTError) in try reader.int(key) }
  }

  mutating func bool(_ key: String) throws(PEFTError) -> Bool? {
    try read(key) { (reader) throws(PEFTError) in try reader.bool(key) }
  }

  mutating func string(_ key: String) throws(PEFTError) -> String? {
    try read(key) { (reader) throws(PEFTError) in try reader.string(key) }
  }

  mutating func choice<Choice: RawRepresentable & CaseIterable>(
    _ key: String
  ) throws(PEFTError) -> Choice? where Choice.RawValue == String {
    guard let text = try string(key) else { return nil }
    if let choice = Choice(rawValue: text) { return choice }
    let known = Choice.allCases.map { "'\($0.rawValue)'" }.joined(separator: ", ")
    throw error(key, "is '\(text)'; it must be one of \(known)")
  }

  /// Refuses keys that nothing asked for.
  func finish() throws(PEFTError) {
    guard let key = reader.rest.keys.first else { return }
    throw PEFTError(
      .invalidConfiguration, "unknown key '\(key)'", at: "'\(name)'",
      remedy: Spelling.suggestion(for: key, among: keys))
  }

  func error(_ key: String, _ text: String) -> PEFTError {
    PEFTError(.invalidConfiguration, "'\(key)' \(text)", at: "'\(name)'")
  }

  private mutating func read<Value>(
    _ key: String, _ body: (inout ConfigReader) throws(PEFTError) -> Value?
  ) throws(PEFTError) -> Value? {
    keys.append(key)
    do { return try body(&reader) } catch { throw error.located(at: "'\(name)'") }
  }
}

extension ConfigReader {
  /// The settings under a key.
  mutating func settings(_ key: String) throws(PEFTError) -> JSONObject? {
    guard let value = value(key) else { return nil }
    guard let object = value.object else {
      throw ConfigReader.mismatch(key, "a mapping of settings", value)
    }
    return object
  }
}
