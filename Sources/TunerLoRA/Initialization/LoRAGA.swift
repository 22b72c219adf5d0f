import NN
import PEFTCore
import PEFTSupport
import Tensors

/// LoRA-GA: A and B from the singular vectors of the weight's gradient, so that the first steps of the
/// adapter go where those of the whole weight would.
enum LoRAGA {
  /// Fixes the initial factors of a plan's linear layers.
  ///
  /// - Throws: ``PEFTError``: no data, no loss, a rank that is too large for a layer.
  static func prepare(_ plan: inout AdapterPlan, _ settings: LoRAGASettings) throws(PEFTError) {
    guard let config = plan.config as? LoRAConfig else { return }
    let calibration = try plan.requireCalibration("lora_ga")
    let watched = WatchedSites(plan)
    guard !watched.sites.isEmpty else {
      throw PEFTError(
        .noMatchingModule,
        "No supported layers found for LoRA-GA initialization. LoRA-GA only supports Linear and "
          + "Conv1D layers.", remedy: "Check 'target_modules'.")
    }
    var gradients = try gradients(watched, calibration)
    for (place, site) in watched.sites.enumerated() {
      do throws(PEFTError) {
        guard let gradient = gradients[place] else { throw watched.notRun(place) }
        gradients[place] = nil
        let rank = try config.rank(site.target)
        let factors = try factors(
          gradient, site, rank, try config.scaling(site.target, rank: rank), settings,
          seed: plan.seed)
        plan.initialValues[site.path] = [LoRAKey.a: factors.a, LoRAKey.b: factors.b]
      } catch {
        throw error.located(at: site.path)
      }
    }
  }

  /// The mean over the batches of the loss's gradient with respect to each weight, `[out, in]`.
  ///
  /// The weights stay frozen: each layer's output passes through a node that turns its gradient and the
  /// layer's input into the weight's gradient, under the name of a parameter that is nothing else.
  static func gradients(
    _ watched: WatchedSites, _ calibration: Calibration
  ) throws(PEFTError) -> [Tensor?] {
    let probes = watched.sites.map { _ in Parameter(.zeros([1])) }
    var runs = [Int](repeating: 0, count: probes.count)
    var sum = Gradients()
    var number = 0
    var hasLoss = false
    while let batch = calibration.batch(number) {
      number += 1
      let loss = try batch.loss { host, input, output in
        guard let (place, x) = watched.match(host, input) else { return output }
        runs[place] += 1
        let shape = [output.columns, x.columns]
        return output.recorded(from: [output, probes[place].tensor]) { gradient, sink in
          var product = Tensor.zeros(shape)
          product.addTransposedProduct(gradient.reshaped([x.rows, shape[0]]), x)
          sink.add(product, to: 1)
          sink.add(gradient, to: 0)
        }
      }
      guard let loss else { continue }
      hasLoss = true
      guard loss.count == 1, loss.isTracked else {
        throw PEFTError(
          .invalidData, "the loss of batch \(number - 1) does not depend on the adapted layers",
          remedy: "Return the loss as a scalar, and pass the observer on in the context.")
      }
      guard loss.item.isFinite else {
        throw PEFTError(
          .numericalFailure, "the loss of batch \(number - 1) is \(loss.item)",
          remedy: "Check the data.")
      }
      sum.add(loss.backward())
    }
    guard hasLoss else {
      throw PEFTError(
        .invalidData, "no batch has a loss, of whose gradient 'lora_ga' makes A and B",
        remedy: "Return the loss from the function that runs the model on a batch.")
    }
    return probes.enumerated().map { place, probe in
      let gradient = sum[probe]?.scaled(by: 1 / Float(max(runs[place], 1)))
      sum[probe] = nil
      return gradient
    }
  }

  /// A and B from the gradient G ≈ U·S·Vᵀ, as the settings say.
  static func factors(
    _ gradient: Tensor, _ site: AdapterPlan.Site, _ rank: Int, _ scaling: Double,
    _ settings: LoRAGASettings, seed: UInt64
  ) throws(PEFTError) -> InitialFactors {
    let smallest = min(gradient.rows, gradient.columns)
    guard 2 * rank <= smallest else {
      throw PEFTError(
        .invalidConfiguration,
        "LoRA-GA takes 2·r singular vectors of the gradient: \(2 * rank) of a "
          + "\(gradient.rows)×\(gradient.columns) weight's",
        remedy: "Lower 'r' or use 'rank_pattern'.")
    }
    let stream = siteID(site.path)
    let parts = try gradient.decomposed(
      rank: 2 * rank, oversampling: 2 * rank, iterations: 4, seed: stream)
    let ofA: [Int]
    let ofB: [Int]
    switch settings.direction {
    case .alternating:
      ofA = Array(stride(from: 1, to: 2 * rank, by: 2))
      ofB = Array(stride(from: 0, to: 2 * rank, by: 2))
    case .secondHalfToA: (ofA, ofB) = (Array(rank..<2 * rank), Array(0..<rank))
    case .secondHalfToB: (ofA, ofB) = (Array(0..<rank), Array(rank..<2 * rank))
    case .random:
      let order = Tensor.uniform([2 * rank], bound: 1, key: DropoutKey(seed: seed, stream: stream))
        .scalars
      let places = Array((0..<2 * rank).sorted { order[$0] < order[$1] }.prefix(rank))
      (ofA, ofB) = (places, places)
    }
    let values = ofB.map { parts.s[$0] }
    var a = parts.vt.copyingRows(ofA)
    var b = parts.u.copyingColumns(ofB).scalingColumns(
      by: Tensor(shape: [rank], scalars: values))
    switch settings.scale {
    case .stable:
      // The first dimension of the weight as it is stored, which is the output's but for GPT-2; so peft.
      let first =
        site.host.typeName == "Conv1D" ? site.host.inputFeatures : site.host.outputFeatures
      let root = Double(first).squareRoot().squareRoot()
      b = b.scaled(by: Float(root / settings.stableGamma.squareRoot()))
    case .weightSVD:
      let largest = try site.parameters.matrix.dequantized().decomposed(
        rank: rank, oversampling: 0, iterations: 4, seed: stream
      ).s[0]
      if values[0] > 0 { b = b.scaled(by: largest / values[0]) }
    case .gradientDescent:
      guard scaling != 0 else {
        throw PEFTError(
          .invalidConfiguration, "the scaling is 0; 'gd_scale' divides by it",
          remedy: "Use another 'lora_alpha'.")
      }
      a = a.scaled(by: Float(1 / scaling))
      b = b.scaled(by: Float(1 / scaling))
    case .unit: break
    }
    return InitialFactors(a: a, b: b)
  }
}
