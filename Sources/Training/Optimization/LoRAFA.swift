import BLASKernels
import PEFTCore
import PEFTSupport
import Tensors

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// LoRA-FA (Zhang et al., arXiv 2308.03303), in the arithmetic of peft's `LoraFAOptimizer`.
///
/// A is frozen. B's gradient becomes s⁻²·∇B·(A·Aᵀ + 10⁻⁸·I)⁻¹: of all changes that a frozen A
/// allows, the one nearest to the gradient of the full weight. Then follow Adam with bias
/// correction, its ε beside the uncorrected root, and weight decay after the update, as in the
/// older AdamW of transformers. Parameters without a frozen partner take the same update with
/// their own gradient.
///
/// Where peft's is different: it multiplies in bf16 on machines that have it, here everything is
/// f32; it never trains an adapter of an embedding, whose A begins as zero, here both factors
/// learn; it pairs parameters by their order, which fails with several adapters, here they are
/// paired by layer.
public final class LoRAFA: Optimizer {
  /// The ε that peft takes.
  public static let defaultEpsilon = 1e-6

  /// The parameters with the settings that they are changed by; no frozen factor.
  public let groups: [ParameterGroup]
  private var moments: AdamMoments
  private var projections: [Parameter.ID: Projection]

  /// Creates an optimiser of the active adapters and freezes the input factors of their layers.
  ///
  /// When it throws, nothing is frozen.
  ///
  /// - Parameters:
  ///   - model: The model.
  ///   - group: Divides the tensors that remain trainable into groups.
  /// - Throws: ``PEFTError``: a layer whose factors cannot be projected, no layer with factors, and
  ///   what `group` throws.
  public init(
    _ model: PeftModel,
    group: ([AdapterTensor]) throws(PEFTError) -> [ParameterGroup]
  ) throws(PEFTError) {
    var found: [Parameter.ID: Projection] = [:]
    var frozen: [Parameter] = []
    for name in model.activeAdapters {
      for adapted in try model.adaptedLayers(of: name) {
        guard let layer = adapted.layer as? any LowRankLayer else { continue }
        do { found[layer.b.id] = try Projection(layer) } catch {
          throw error.located(at: adapted.path)
        }
        frozen.append(layer.a)
      }
    }
    if found.isEmpty {
      let hasMagnitude = TrainedTensor.find(model.trainableTensors, in: model)
        .contains { $0.role == .magnitude }
      throw PEFTError(
        .unsupported,
        hasMagnitude
          ? "LoRA-FA projects the gradient of a change without magnitude, and the adapter has one"
          : "LoRA-FA freezes one of two factors, and the adapter has none",
        remedy: "Use adamw.")
    }
    let ids = Set(frozen.map(\.id))
    let trained = model.trainableTensors.filter { !ids.contains($0.parameter.id) }
    groups = try group(trained)
    projections = found
    moments = AdamMoments(groups.flatMap(\.parameters))
    for parameter in frozen { parameter.isTrainable = false }
  }

  /// Creates an optimiser with the same settings for all parameters.
  ///
  /// - Throws: ``PEFTError`` as ``init(_:group:)``.
  public convenience init(
    _ model: PeftModel,
    settings: OptimizerSettings = OptimizerSettings(epsilon: LoRAFA.defaultEpsilon)
  ) throws(PEFTError) {
    try self.init(model) { [ParameterGroup($0, settings)] }
  }

  /// Updates every parameter that has a gradient.
  ///
  /// - Parameters:
  ///   - gradients: The gradients of the loss.
  ///   - rateFactor: What the schedule makes of the groups' learning rates in this step.
  ///   - gradientScale: A factor on every gradient, from clipping.
  public func update(_ gradients: Gradients, rateFactor: Double, gradientScale: Float) {
    var index = 0
    for group in groups {
      let rate = group.settings.learningRate * rateFactor
      for entry in group.parameters {
        if let gradient = gradients[entry.parameter] {
          let id = entry.parameter.id
          let projected = projections[id]?.apply(to: gradient) ?? gradient
          var settings = group.settings
          // torch's order of operations divides the root by its bias correction before ε is added.
          let correction = 1 - pow(settings.beta2, Double(moments.steps[index] + 1))
          settings.epsilon /= correction.squareRoot()
          settings.weightDecay = 0
          moments.update(
            index, entry.parameter, projected, settings, learningRate: rate,
            gradientScale: gradientScale)
          if group.settings.weightDecay > 0 {
            let kept = Float(1 - rate * group.settings.weightDecay)
            entry.parameter.update { value in
              value.withMutableSlice { VectorMath.scale(kept, $0.readOnly, into: $0) }
            }
          }
        }
        index += 1
      }
    }
  }

  /// The state as tensors of a file: `exp_avg.KEY`, `exp_avg_sq.KEY` and `step.KEY`.
  public var items: [SafetensorsItem] { moments.items }

  /// Restores the state from ``items``.
  ///
  /// - Throws: ``PEFTError`` when a tensor is missing or has another shape; the state is then as it
  ///   was.
  public func load(_ file: SafetensorsFile) throws(PEFTError) { try moments.load(file) }

  /// What turns the gradient of B into the projected one.
  private struct Projection {
    private let inputFactor: Parameter
    private let scaling: Double
    private var matrix: Tensor
    private var version: Int

    init(_ layer: any LowRankLayer) throws(PEFTError) {
      inputFactor = layer.a
      scaling = layer.scaling
      let rank = inputFactor.shape.first ?? 0
      let output = layer.b.shape
      guard output.count >= 2, output[1] == rank, output[2...].allSatisfy({ $0 == 1 }) else {
        throw PEFTError(
          .unsupported,
          "LoRA-FA cannot project the gradient of a factor of shape \(output) beside one of "
            + "shape \(inputFactor.shape)", remedy: "Use adamw, or exclude the module.")
      }
      guard scaling != 0, scaling.isFinite else {
        throw PEFTError(
          .invalidConfiguration, "LoRA-FA divides by the scaling, which is \(scaling) here",
          remedy: "Set 'lora_alpha' to a number other than 0.")
      }
      matrix = try Self.matrix(inputFactor.value, scaling)
      version = inputFactor.version
    }

    /// ∇B·M.
    mutating func apply(to gradient: Tensor) -> Tensor {
      if inputFactor.version != version,
        let changed = try? Self.matrix(inputFactor.value, scaling)
      {
        // A resumed run loads A after the optimiser was made.
        (matrix, version) = (changed, inputFactor.version)
      }
      let rank = matrix.columns
      let rows = gradient.count / rank
      return Tensor.filled(gradient.shape) {
        BLAS.gemm(
          .no, .no, m: rows, n: rank, k: rank, alpha: 1, gradient.slice, matrix.slice, beta: 0,
          into: $0)
      }
    }

    /// s⁻²·(A·Aᵀ + 10⁻⁸·I)⁺, the pseudoinverse with torch's threshold: singular values below
    /// rank·ε of the largest count as zero.
    private static func matrix(_ a: Tensor, _ scaling: Double) throws(PEFTError) -> Tensor {
      let rank = a.shape[0]
      let columns = a.count / rank
      var gram = Tensor.filled([rank, rank]) {
        BLAS.gemm(
          .no, .yes, m: rank, n: rank, k: columns, alpha: 1, a.slice, a.slice, beta: 0, into: $0)
      }
      gram.withMutableSlice { values in
        for place in 0..<rank { values[place * rank + place] += 1e-8 }
      }
      let parts = try LAPACK.svd(gram.slice, m: rank, n: rank)
      let (u, s, vt) = (parts.u.array, parts.s.array, parts.vt.array)
      let threshold = Float(rank) * Float.ulpOfOne * (s.first ?? 0)
      var result = [Double](repeating: 0, count: rank * rank)
      for k in 0..<rank where s[k] > threshold {
        let weight = 1 / (Double(s[k]) * scaling * scaling)
        for i in 0..<rank {
          for j in 0..<rank {
            result[i * rank + j] += weight * Double(vt[k * rank + i]) * Double(u[j * rank + k])
          }
        }
      }
      return Tensor(shape: [rank, rank], scalars: result.map { Float($0) })
    }
  }
}
