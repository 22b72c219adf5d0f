import NN
import PEFTCore
import Tensors
import TunerLoRA

/// What DoRA has in common on all kinds of hosts: LoRA's layer and a magnitude.
class DoRALayer {
  /// The layer that holds A and B.
  let factors: any LowRankLayer
  /// m and what it is divided by.
  let weight: DecomposedWeight

  /// Puts a magnitude beside the factors; it begins as the norm of the weight with its update, so
  /// that the adapter changes as much as LoRA's would.
  fileprivate init(
    _ factors: any LowRankLayer, _ site: AdapterSite, axis: OutputAxis, detachesNorm: Bool
  ) {
    self.factors = factors
    let magnitude = Parameter(Tensor(repeating: 1, shape: [site.host.outputFeatures]))
    let b = factors.b
    weight = DecomposedWeight(
      magnitude: magnitude, a: factors.a, outer: [b], scaling: Float(factors.scaling), axis: axis,
      detachesNorm: detachesNorm, outerTensor: { b.tensor })
    if site.initializesFromWeight { magnitude.assign(weight.currentNorms(site.host.parameters)) }
  }

  /// LoRA's parameters and the magnitude.
  var parameters: [AdapterParameter] {
    factors.parameters + [AdapterParameter("lora_magnitude_vector", weight.magnitude)]
  }

  /// Adds rows of ΔW to a block.
  func addDelta(rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix) {
    weight.addDelta(rows: rows, to: &block, base: base)
  }

  /// LoRA's text with the magnitudes in it.
  fileprivate func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)], kind: String
  ) -> PrintedModule {
    let own = layers.compactMap { entry in
      (entry.layer as? DoRALayer).map { (entry.adapter, $0.factors as any TunerLayer) }
    }
    var result = factors.printed(around: base, layers: own)
    for place in result.children.indices
    where result.children[place].name == "lora_magnitude_vector" {
      result.children[place].module = PrintedModule(
        "ModuleDict", children: own.map { ($0.0, PrintedModule("lora.dora.\(kind)")) })
    }
    return result
  }
}

/// DoRA on a linear layer: y = b + g∘(x·Wᵀ + s·B(A(x))).
final class DoRALinear: DoRALayer, TunerLayer {
  init(_ factors: any LowRankLayer, _ site: AdapterSite, detachesNorm: Bool) {
    super.init(factors, site, axis: .rows, detachesNorm: detachesNorm)
  }

  var needsBaseOutput: Bool { true }

  /// One product with the frozen weight, which A·Wᵀ shares when the norm has to be computed anew.
  func output(_ call: LayerCall) -> Tensor? {
    guard case .features(let x) = call.input, case .matrix(let matrix) = call.parameters.weight,
      factors.dropout.key(call.context) == nil
    else { return nil }
    let product = weight.product(of: x, matrix, call.parameters)
    return decomposedLinear(
      x, product: product, weight: matrix, bias: call.parameters.bias?.tensor,
      low: linear(x, factors.a.tensor), b: factors.b.tensor, scaling: weight.scaling,
      scale: weight.columnScale(call.parameters))
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .features(let x) = call.input else {
      preconditionFailure("a linear layer takes features")
    }
    let dropped = factors.dropout(x, call.context)
    let base = weight.unbiasedOutput(
      call, of: dropped, isDropped: factors.dropout.key(call.context) != nil)
    var direction = base
    direction.addProduct(
      linear(dropped, factors.a.tensor), factors.b.tensor, scale: weight.scaling)
    sum.addRescaled(direction, by: weight.columnScale(call.parameters), minus: base)
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    printed(around: base, layers: layers, kind: "DoraLinearLayer")
  }
}

/// DoRA on an embedding: g∘(row + s·B·A[:, id]). The norm is taken over the vocabulary for each
/// dimension, as in peft; no dropout.
final class DoRAEmbedding: DoRALayer, TunerLayer {
  private let padding: Int?

  init(_ factors: any LowRankLayer, _ site: AdapterSite, detachesNorm: Bool) {
    padding = (site.host as? Embedding)?.paddingIndex
    super.init(factors, site, axis: .columns, detachesNorm: detachesNorm)
  }

  var needsBaseOutput: Bool { true }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard case .tokenIDs(let ids) = call.input, let base = call.base else {
      preconditionFailure("an embedding takes token ids")
    }
    var direction = base
    direction.addProduct(
      selectColumns(factors.a.tensor, ids, constant: padding), factors.b.tensor,
      scale: weight.scaling)
    sum.addRescaled(direction, by: weight.columnScale(call.parameters), minus: base)
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    printed(around: base, layers: layers, kind: "DoraEmbeddingLayer")
  }
}
