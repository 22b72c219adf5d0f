import NN
import PEFTCore
import PEFTSupport

extension LoRAConfig {
  /// How A and B begin, `init_lora_weights`.
  ///
  /// The base model's weights are never written to. Where a method of peft takes s·B·A out of the
  /// base weight (PiSSA, OLoRA, CorDA, LoRA-GA), the adapter here remembers its initial A₀ and B₀, and
  /// its change is s·(B·A − B₀·A₀): the same function, but a disabled or deleted adapter leaves the
  /// base as it was, and several adapters do not disturb each other.
  public enum Initialization: Sendable, Equatable {
    /// `true`: A uniform in ±1/√in, B zero: the adapter starts without effect.
    case standard
    /// `"gaussian"`: A normal with deviation 1/r, B zero.
    case gaussian
    /// `false`: A and B both random: the adapter changes the model from the start.
    case random
    /// `"orthogonal"`: A and B random, with row and column spaces orthogonal to each other, so that B·A
    /// is zero; the rank is even.
    case orthogonal
    /// `"pissa"`: the leading singular vectors of the weight (Meng et al., arXiv 2404.02948).
    case pissa
    /// `"pissa_niter_N"`: PiSSA by a randomised decomposition with N iterations: faster, near.
    case randomizedPiSSA(iterations: Int)
    /// `"olora"`: the first columns and rows of the weight's Q and R (Büyükakyüz, arXiv 2406.01775).
    case olora
    /// `"loftq"`: the weight is rounded to few bits, A and B make up for some of what that loses (Li
    /// et al., arXiv 2310.08659).
    case loftq(LoftQSettings)
    /// `"eva"`: A from the principal components of the layer's inputs, B zero, more rank where the
    /// inputs vary more (Paischer et al., arXiv 2410.07170). Needs data.
    case eva(EVASettings)
    /// `"corda"`: singular vectors of the weight as the layer's inputs see it (Yang et al., arXiv
    /// 2406.05223). Needs data.
    case corda(CorDASettings)
    /// `"lora_ga"`: singular vectors of the weight's gradient (Wang et al., arXiv 2407.05000). Needs
    /// data.
    case loraGA(LoRAGASettings)
  }
}

extension LoRAConfig.Initialization {
  /// Whether the adapter's change is measured from its initial values.
  var hasReference: Bool {
    switch self {
    case .pissa, .randomizedPiSSA, .olora, .corda, .loraGA: return true
    default: return false
    }
  }

  /// Whether the adapter's change of the weight is s·B·A and nothing else.
  package var isPlainProduct: Bool {
    if case .loftq = self { return false }
    return !hasReference
  }

  /// Whether it begins from data.
  var needsData: Bool {
    switch self {
    case .eva, .corda, .loraGA: return true
    default: return false
    }
  }

  /// Whether peft makes the same of the base weight again when it loads the adapter.
  var isRepeatable: Bool {
    switch self {
    case .randomizedPiSSA, .corda, .loraGA: return false
    default: return true
    }
  }

  /// How a layer begins that has no weight to begin from: as with `true` unless it is one of the plain
  /// kinds.
  var withoutWeight: Self {
    switch self {
    case .gaussian, .random: return self
    default: return .standard
    }
  }

  /// Refuses what peft refuses for a layer that is not linear. Embeddings begin as with `true` whatever
  /// the name is.
  func checkWithoutWeight(_ host: any AdapterHost) throws(PEFTError) {
    if case .loftq = self {
      throw PEFTError(
        .unsupported, "LoftQ rounds the weights of linear layers, not of \(host.typeName)",
        remedy: "Do not target this layer.")
    }
    if case .eva = self { return }
    guard !(host is Embedding), self != withoutWeight else { return }
    throw PEFTError(
      .invalidConfiguration,
      "Unknown initialization init_lora_weights='\(json.string ?? json.text())'",
      remedy: "\(host.typeName) begins with true, false or \"gaussian\".")
  }

  /// The keys of the config file that belong to it.
  static let keys = [
    "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
  ]

  /// Reads the keys of a config; settings of another initialisation than the one that is named are
  /// left alone.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` naming the key.
  init(_ reader: inout ConfigReader) throws(PEFTError) {
    switch reader.value("init_lora_weights") {
    case nil, .bool(true)?: self = .standard
    case .bool(false)?, .string("")?: self = .random
    case .string(let name)?: self = try Self(name, &reader)
    case let value?:
      throw ConfigReader.mismatch("init_lora_weights", "true, false or a name", value)
    }
    // What peft writes where there is nothing.
    for key in Self.keys.dropFirst() {
      reader.drop(key, where: { $0.isNull || $0.object?.members.isEmpty == true })
    }
  }

  private init(_ name: String, _ reader: inout ConfigReader) throws(PEFTError) {
    switch name {
    case "orthogonal": self = .orthogonal
    case "eva": self = .eva(try EVASettings(try reader.settings("eva_config")))
    case "corda": self = .corda(try CorDASettings(try reader.settings("corda_config")))
    case "lora_ga": self = .loraGA(try LoRAGASettings(try reader.settings("lora_ga_config")))
    case "loftq":
      guard let object = try reader.settings("loftq_config"), !object.members.isEmpty else {
        throw PEFTError(
          .invalidConfiguration,
          "`loftq_config` must be specified when `init_lora_weights` is 'loftq'.")
      }
      self = .loftq(try LoftQSettings(object))
    case "pissa": self = .pissa
    case _ where name.hasPrefix("pissa"):
      guard name.hasPrefix("pissa_niter_"), let count = Int(name.dropFirst(12)), count >= 0 else {
        throw PEFTError(
          .invalidConfiguration,
          "init_lora_weights should be 'pissa' or 'pissa_niter_[number of iters]', got \(name) "
            + "instead.")
      }
      self = .randomizedPiSSA(iterations: count)
    case _ where name.lowercased() == "gaussian": self = .gaussian
    case _ where name.lowercased() == "olora": self = .olora
    default:
      let known = ["gaussian", "orthogonal", "pissa", "olora", "loftq", "eva", "corda", "lora_ga"]
      throw PEFTError(
        .invalidConfiguration, "Unknown initialization init_lora_weights='\(name)'",
        remedy: Spelling.suggestion(for: name, among: known))
    }
  }

  /// The value of `init_lora_weights`.
  package var json: JSONValue {
    switch self {
    case .standard: return true
    case .random: return false
    case .gaussian: return "gaussian"
    case .orthogonal: return "orthogonal"
    case .pissa: return "pissa"
    case .randomizedPiSSA(let iterations): return .string("pissa_niter_\(iterations)")
    case .olora: return "olora"
    case .loftq: return "loftq"
    case .eva: return "eva"
    case .corda: return "corda"
    case .loraGA: return "lora_ga"
    }
  }

  /// The members of the config file, but for those that are kept though they have no meaning.
  func members(besides kept: JSONObject) -> [(String, JSONValue)] {
    let own: (key: String, object: JSONObject)?
    switch self {
    case .loftq(let settings): own = ("loftq_config", settings.object)
    case .eva(let settings): own = ("eva_config", settings.object)
    case .corda(let settings): own = ("corda_config", settings.object)
    case .loraGA(let settings): own = ("lora_ga_config", settings.object)
    default: own = nil
    }
    return [("init_lora_weights", json)]
      + Self.keys.dropFirst().filter { kept[$0] == nil }.map { key in
        if let own, own.key == key { return (key, .object(own.object)) }
        // What peft writes where there is nothing.
        return (key, key == "loftq_config" ? .object(JSONObject()) : .null)
      }
  }

  /// Checks the settings.
  func validate() throws(PEFTError) {
    switch self {
    case .loftq(let settings): try settings.validate()
    case .eva(let settings): try settings.validate()
    case .loraGA(let settings): try settings.validate()
    default: break
    }
  }
}
