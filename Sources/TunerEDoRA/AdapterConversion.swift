import NN
import PEFTCore
import PEFTSupport
import Tensors
import TunerLoRA

/// The methods that adapters can be converted to.
public enum AdapterForm: String, Sendable, CaseIterable {
  /// Plain LoRA.
  case lora
  /// DoRA, which peft and every server that knows it can run.
  case dora
  /// EDoRA.
  case edora
  /// LoRA-XS.
  case loraXS = "lora-xs"
}

/// What a conversion lost.
public struct ConversionReport: Sendable {
  /// ‖ΔW′ − ΔW‖/‖ΔW‖ over all adapted weights; 0 where the new form holds the same change.
  public var relativeError: Double
  /// Numbers that the new adapter trains.
  public var trainedParameters: Int
}

extension PeftModel {
  /// Adds an adapter that makes the change of another one, in the form of another method.
  ///
  /// EDoRA becomes DoRA, and LoRA-XS becomes LoRA, by multiplying R into A, and LoRA becomes DoRA with
  /// the norms as magnitudes: the same change. A decomposed or dense change becomes LoRA by its leading
  /// singular values, and LoRA-XS by projection onto the singular vectors of the weight: the nearest
  /// change of that form, and the report says how near. EDoRA keeps the magnitude, or gets the one
  /// that comes nearest to the changed weight, and the update s·B·A is what is projected. LoRA keeps
  /// each module's rank as far as the weight has as many singular values. Modules that are saved in
  /// full are copied; a scaling that was changed goes into A.
  ///
  /// - Parameters:
  ///   - name: The adapter.
  ///   - form: What to make of it.
  ///   - newName: The new adapter's name.
  ///   - rank: The new rank; the old one's unless given. A conversion that needs none refuses another.
  ///   - isCompact: Whether files of an EDoRA or LoRA-XS adapter leave out A and B.
  /// - Throws: ``PEFTError``, also for what the new form or the model has no place for, such as
  ///   biases; the model is as it was before then.
  @discardableResult
  public func convert(
    _ name: String, to form: AdapterForm, as newName: String, rank: Int? = nil,
    isCompact: Bool = false
  ) throws(PEFTError) -> ConversionReport {
    let old = try config(name)
    let source: LoRAConfig
    let recipe: EDoRAConfig?
    switch old {
    // Factors alone, also of PiSSA and the like.
    case let config as LoRAConfig: (source, recipe) = (config.plain(), nil)
    case let config as EDoRAConfig: (source, recipe) = (config.lora, config)
    default:
      throw PEFTError(
        .unsupported,
        "an adapter of the method \(old.object["peft_type"]?.string ?? "?") cannot be converted",
        at: name, remedy: "Adapters of LoRA, DoRA, EDoRA and LoRA-XS can.")
    }
    let plan: ConversionPlan
    do throws(PEFTError) {
      plan = try ConversionPlan(
        source, recipe, to: form, rank: rank, isCompact: isCompact,
        layers: try adaptedLayers(of: name))
    } catch {
      throw error.located(at: name)
    }
    // No A and B are computed from the weights where they are copied.
    let isCopy = plan.isExact && !isCompact && recipe?.isCompact == false
    try add(newName, any: plan.config, like: name, isLoading: isCopy && plan.config is EDoRAConfig)
    do throws(PEFTError) {
      return try fill(newName, from: name, plan)
    } catch {
      try delete(newName)
      throw error
    }
  }

  private func fill(
    _ newName: String, from name: String, _ plan: ConversionPlan
  ) throws(PEFTError) -> ConversionReport {
    var (difference, size) = (0.0, 0.0)
    var ofLayers: Set<Parameter.ID> = []
    var trained = 0
    var sources = Dictionary(
      try adaptedLayers(of: name).map { ($0.path, $0) }, uniquingKeysWith: { first, _ in first })
    // The heads.
    let ofOldLayers = Set(sources.values.flatMap { $0.layer.parameters.map(\.parameter.id) })
    var heads = Dictionary(
      try tensors(of: name).filter { !ofOldLayers.contains($0.parameter.id) }
        .map { ($0.key, $0.parameter) }, uniquingKeysWith: { first, _ in first })
    for to in try adaptedLayers(of: newName) {
      guard let from = sources.removeValue(forKey: to.path) else {
        throw Self.differs(to.path)
      }
      for parameter in to.layer.parameters {
        ofLayers.insert(parameter.parameter.id)
        if parameter.isTrained { trained += parameter.parameter.value.count }
      }
      do throws(PEFTError) {
        let errors = try LayerConversion(from: from, to: to, isExact: plan.isExact).run()
        difference += errors.difference
        size += errors.size
      } catch {
        throw error.located(at: to.path)
      }
    }
    for tensor in try tensors(of: newName) where !ofLayers.contains(tensor.parameter.id) {
      guard let parameter = heads.removeValue(forKey: tensor.key) else {
        throw Self.differs(tensor.key)
      }
      tensor.parameter.assign(parameter.value)
    }
    // Nothing of the adapter gets lost silently.
    if let rest = sources.keys.min() ?? heads.keys.min() { throw Self.differs(rest) }
    return ConversionReport(
      relativeError: size > 0 ? (difference / size).squareRoot() : 0, trainedParameters: trained)
  }

  private static func differs(_ place: String) -> PEFTError {
    PEFTError(
      .unsupported, "the converted adapter and the original do not both have this", at: place,
      remedy: "Load the adapter from its folder into a model without others, and convert it there.")
  }
}

extension LoRAConfig {
  /// Sets the rank of each module, and its scaling to 1.
  ///
  /// - Parameters:
  ///   - rank: The rank; each module's own unless given. A weight gets no more than it has singular
  ///     values.
  ///   - layers: The modules.
  fileprivate mutating func setRanks(
    _ rank: Int?, of layers: [AdaptedLayer]
  ) throws(PEFTError) {
    var ranks: [String: Int] = [:]
    var areOwn = rank == nil
    for layer in layers {
      let own = try self.rank(layer.target)
      let wanted = rank ?? own
      let possible = min(wanted, layer.base.rows, layer.base.columns)
      if possible < wanted { areOwn = false }
      ranks[layer.target] = max(ranks[layer.target] ?? 1, possible)
    }
    setRanks(areOwn ? nil : ranks, mostly: rank ?? self.rank)
  }
}

/// The new settings, and whether the change stays the same.
struct ConversionPlan {
  let config: any TunerConfig
  let isExact: Bool

  init(
    _ source: LoRAConfig, _ recipe: EDoRAConfig?, to form: AdapterForm, rank: Int?,
    isCompact: Bool, layers: [AdaptedLayer]
  ) throws(PEFTError) {
    if source.bias != .none {
      throw PEFTError(
        .unsupported,
        "the adapter trains biases of the base ('bias': \"\(source.bias.rawValue)\"), which a "
          + "model keeps for one adapter only, so there is no place for those of the new one",
        remedy: "Merge it into the base model, which keeps the biases, or train it with 'bias': "
          + "\"none\".")
    }
    if source.usesLoRABias, form != .lora {
      throw PEFTError(
        .unsupported,
        "B has biases ('lora_bias'), which an adapter of \(form.rawValue) cannot hold",
        remedy: "Convert an adapter without 'lora_bias', or merge this one into the base model.")
    }
    let isDecomposed = source.usesDoRA || recipe?.method == .edora
    switch form {
    case .lora: isExact = !isDecomposed
    case .dora: isExact = true
    case .edora: isExact = recipe?.method == .edora
    case .loraXS: isExact = recipe?.method == .loraXS
    }
    if isExact, let rank, rank != source.rank {
      throw PEFTError(
        .invalidConfiguration,
        "the change has rank \(source.rank) and keeps it; a rank of \(rank) cannot be had",
        remedy: "Leave the rank out.")
    }
    if isCompact, form == .lora || form == .dora {
      throw PEFTError(
        .invalidConfiguration, "an adapter of \(form.rawValue) has no compact form",
        remedy: "Only EDoRA and LoRA-XS do.")
    }
    var lora = source
    lora.usesDoRA = false
    // Without a magnitude there is no norm.
    if form == .lora || form == .loraXS { lora.detachesNorm = true }
    lora.initialization = .standard
    if !isExact, form == .lora {
      // The factors hold the whole change.
      try lora.setRanks(rank, of: layers)
    } else if !isExact, let rank {
      lora.rankPattern = SuffixPatterns()
      lora.rank = rank
    }
    switch form {
    case .lora: config = lora
    case .dora:
      lora.usesDoRA = true
      config = lora
    case .edora, .loraXS:
      var new =
        recipe
        ?? EDoRAConfig(form == .edora ? .edora : .loraXS, lora: lora, sigma: 0)
      new.method = form == .edora ? .edora : .loraXS
      new.lora = lora
      new.isCompact = isCompact
      config = new
    }
  }
}
