import PEFTCore
import PEFTSupport
import Tensors

extension InitialFactors.Reference {
  /// The factors of plain LoRA with the same change of the weight, at twice the rank and the same
  /// scaling: B·A − B₀·A₀ = [B, −B₀]·[A; A₀].
  ///
  /// - Parameters:
  ///   - a: A, `[r, in]`.
  ///   - b: B, `[out, r]`.
  ///   - scaling: The adapter's present scaling.
  ///   - rank: What the settings say, which may be more than a small weight has singular vectors.
  func plain(a: Tensor, b: Tensor, scaling: Float, rank: Int) -> (a: Tensor, b: Tensor) {
    let ratio = scaling == 0 ? 1 : self.scaling / scaling
    let negative = self.b.scaled(by: -ratio)
    return (
      Tensor.stackingRows([a, self.a]).padded(toRows: 2 * rank),
      Tensor.stackingColumns([b, negative]).transposed().padded(toRows: 2 * rank).transposed()
    )
  }
}

extension Tensor {
  /// With rows of zeros below, if there are not as many.
  fileprivate func padded(toRows count: Int) -> Tensor {
    rows < count ? .stackingRows([self, .zeros([count - rows, columns])]) : self
  }
}

extension LoRAConfig {
  /// Whether a new adapter begins from data.
  public var needsCalibration: Bool { initialization.needsData }

  /// Whether peft can put the adapter on a model from its files alone.
  public var isSelfContained: Bool { initialization.isRepeatable }

  /// The settings of plain LoRA of twice the rank with the same scaling, for an adapter whose changes
  /// are measured from initial values; others are unchanged.
  ///
  /// peft refuses this for rank-stabilised scaling with patterns, as it would get alphas wrong.
  public func plain() -> LoRAConfig {
    guard initialization.hasReference else { return self }
    var result = self
    result.initialization = .standard
    result.rank *= 2
    for place in result.rankPattern.entries.indices { result.rankPattern.entries[place].value *= 2 }
    // s = alpha/r, or alpha/√r.
    let factor = usesRSLoRA ? 2.0.squareRoot() : 2
    result.alpha *= factor
    for place in result.alphaPattern.entries.indices {
      result.alphaPattern.entries[place].value *= factor
    }
    return result
  }

  /// The settings and tensors of plain LoRA from two adapters of one shape, the initial one and the
  /// trained one, as peft's guide has them saved: what `path_initial_model_for_weight_conversion` does,
  /// without a model. Tensors that are no factors, such as heads, are the trained ones.
  ///
  /// - Throws: ``PEFTError`` when a factor of one is not in the other or has another shape.
  public static func converted(
    initial: AdapterFolder, trained: AdapterFolder
  ) throws(PEFTError) -> (config: LoRAConfig, tensors: [(key: String, value: Tensor)]) {
    var config = try LoRAConfig(trained.config)
    let name = config.initialization
    // peft's guide has the trained one saved with its own name or with `true`.
    if !name.hasReference { config.initialization = .pissa }
    config = config.plain()
    var items: [(key: String, value: Tensor)] = []
    for key in trained.tensors.names {
      let value = try trained.tensors.tensor(key)
      let isA = key.hasSuffix(".lora_A.weight")
      guard isA || key.hasSuffix(".lora_B.weight") else {
        items.append((key, value))
        continue
      }
      guard initial.tensors[key] != nil else {
        throw PEFTError(
          .missingTensor, "has no '\(key)', which the trained adapter has", at: initial.path,
          remedy: "Name the folder of the adapter that the training began with.")
      }
      let first = try initial.tensors.tensor(key)
      guard first.shape == value.shape else {
        throw PEFTError(
          .shapeMismatch,
          "'\(key)' has shape \(first.shape), that of the trained adapter \(value.shape)",
          at: initial.path, remedy: "Name the folder of the adapter that the training began with.")
      }
      let path = FileKey.name(of: key) ?? key
      let rank = try config.rank(
        FileKey.targetPath(String(path.dropLast(".lora_A.weight".count))))
      let joined =
        isA
        ? Tensor.stackingRows([value, first]).padded(toRows: rank)
        : Tensor.stackingColumns([value, first.scaled(by: -1)]).transposed()
          .padded(toRows: rank).transposed()
      items.append((key, joined))
    }
    return (config, items)
  }
}
