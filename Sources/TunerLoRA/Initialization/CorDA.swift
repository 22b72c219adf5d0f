import NN
import PEFTCore
import PEFTSupport
import Tensors

/// CorDA: singular vectors of W·C, where C is the second moment of the layer's inputs.
enum CorDA {
  /// Fixes the initial factors of a plan's linear layers.
  ///
  /// - Throws: ``PEFTError``: no data, a cache of peft's that cannot be used, inputs that are not finite,
  ///   a rank above the layer's size.
  static func prepare(_ plan: inout AdapterPlan, _ settings: CorDASettings) throws(PEFTError) {
    for (key, file) in [
      ("covariance_file", settings.covarianceFile), ("cache_file", settings.cacheFile),
    ] where file != nil {
      throw PEFTError(
        .unsupported, "'corda_config.\(key)' is not supported",
        remedy: "Remove the key; the covariance is computed from the batches each time.")
    }
    guard let config = plan.config as? LoRAConfig else { return }
    let calibration = try plan.requireCalibration("corda")
    let watched = WatchedSites(plan)
    let leaders = try watched.leaders(calibration.batch(0)!)
    let covariances = try covariances(watched, leaders, calibration)
    var dampened: (leader: Int, covariance: Tensor, inverse: Tensor)?
    // Sites of one leader follow each other, so one inverse at a time is enough.
    for place in watched.sites.indices.sorted(by: { (leaders[$0], $0) < (leaders[$1], $1) }) {
      let (site, leader) = (watched.sites[place], leaders[place])
      do throws(PEFTError) {
        if dampened?.leader != leader {
          let (covariance, inverse) = try dampen(covariances[leader]!)
          dampened = (leader, covariance, inverse)
        }
        let rank = try config.rank(site.target)
        let factors = try factors(
          site.parameters.matrix.dequantized(), dampened!.covariance, dampened!.inverse, rank,
          try config.scaling(site.target, rank: rank), settings.method)
        plan.initialValues[site.path] = [LoRAKey.a: factors.a, LoRAKey.b: factors.b]
      } catch {
        throw error.located(at: site.path)
      }
    }
  }

  /// Σ XᵀX / batches by leader, each X over the magnitude of its largest element (not its largest
  /// magnitude), as peft has it.
  static func covariances(
    _ watched: WatchedSites, _ leaders: [Int], _ calibration: Calibration
  ) throws(PEFTError) -> [Int: Tensor] {
    var sums: [Int: Tensor] = [:]
    var counts: [Int: Int] = [:]
    var failure: Int?
    var number = 0
    while let batch = calibration.batch(number) {
      number += 1
      try watched.observe(batch) { place, x in
        guard leaders[place] == place, failure == nil else { return }
        let largest = x.slice.withSpan { values in
          values.indices.reduce(-Float.infinity) { max($0, values[$1]) }
        }
        let divided = x.scaled(by: 1 / largest.magnitude)
        guard divided.allFinite else {
          failure = place
          return
        }
        var sum = sums.removeValue(forKey: place) ?? .zeros([x.columns, x.columns])
        sum.addTransposedProduct(divided, divided)
        sums[place] = sum
        counts[place, default: 0] += 1
      }
      if let failure {
        throw PEFTError(
          .numericalFailure, "Invalid value found in input, please check your input data.",
          at: watched.sites[failure].path)
      }
    }
    for (place, count) in counts {
      sums[place] = sums.removeValue(forKey: place)!.scaled(by: 1 / Float(count))
    }
    return sums
  }

  /// C plus as much of its mean diagonal as it takes for an inverse, and that.
  private static func dampen(
    _ covariance: Tensor
  ) throws(PEFTError) -> (covariance: Tensor, inverse: Tensor) {
    let n = covariance.columns
    let diagonal = covariance.slice.withSpan { values in
      (0..<n).map { Double(values[$0 * n + $0]) }
    }
    let mean = diagonal.reduce(0, +) / Double(n)
    var damp = 0.01
    while damp < 1e6 {
      var fixed = covariance
      fixed.withMutableSlice {
        for i in 0..<n { $0[i * n + i] += Float(mean * damp) }
      }
      if let inverse = fixed.inverseOfPositiveDefinite() {
        var product = fixed.multiplied(by: inverse)
        product.withMutableSlice {
          for i in 0..<n { $0[i * n + i] -= 1 }
        }
        if product.sumOfSquares.squareRoot() < 0.05 { return (fixed, inverse) }
      }
      damp *= 2
    }
    throw PEFTError(
      .numericalFailure, "the covariance of the layer's inputs has no inverse",
      remedy: "Use more batches, or more varied ones.")
  }

  /// W·C = U·S·Vᵀ; A = √(S/s)·Vᵀ·C⁻¹ and B = U·√(S/s) of r singular values.
  static func factors(
    _ weight: Tensor, _ covariance: Tensor, _ inverse: Tensor, _ rank: Int, _ scaling: Double,
    _ method: CorDASettings.Method
  ) throws(PEFTError) -> InitialFactors {
    let smallest = min(weight.rows, weight.columns)
    guard rank <= smallest else {
      throw PEFTError(
        .invalidConfiguration,
        "rank mismatch: \(smallest) vs. \(rank): CorDA takes r singular vectors of a "
          + "\(weight.rows)×\(weight.columns) weight", remedy: "Lower 'r' or use 'rank_pattern'.")
    }
    let product = weight.multiplied(by: covariance)
    var parts: Decomposition
    switch method {
    case .instructionPreviewed: parts = try product.decomposed(rank: rank)
    case .knowledgePreserved:
      // The smallest ones need the whole decomposition.
      parts = try product.decomposed()
      let kept = smallest - rank..<smallest
      parts.u = parts.u.copyingColumns(kept)
      parts.vt = parts.vt.copyingRows(kept)
      parts.s = Array(parts.s[kept])
    }
    return try InitialFactors.split(
      parts.u, parts.s, parts.vt.multiplied(by: inverse), scaling)
  }
}
