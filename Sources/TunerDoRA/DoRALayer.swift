import NN
import PEFTCore
import PEFTSupport
import Tensors
import TunerLoRA

/// DoRA on any layer that LoRA adapts by two factors: y = b + g∘(base(x) − b + s·B(A(x))).
///
/// What A does to the input is the host's business, and every place of the output is a row, so one
/// class serves linear layers, embeddings and convolutions. An embedding's norm is taken over the
/// vocabulary for each dimension, as in peft.
package final class DoRALayer: MagnitudeLayer, ScaledLayer {
  /// LoRA's layer, which holds A and B.
  package let factors: any LoRAFactors
  /// m and what it is divided by.
  package let weight: DecomposedWeight
  private let groups: Int
  private let kind: String

  /// Puts a magnitude beside the factors; it begins as the norm of the weight with its update, so
  /// that the adapter changes as much as LoRA's would.
  init(_ factors: any LoRAFactors, _ site: AdapterSite, detachesNorm: Bool) {
    let host = site.host
    self.factors = factors
    groups = host.groups
    let outputs = host.outputFeatures
    // peft's shape: that of the output's channels among its other dimensions.
    let shape =
      host.kernelShape.isEmpty ? [outputs] : [1, outputs] + host.kernelShape.map { _ in 1 }
    let magnitude = Parameter(Tensor(repeating: 1, shape: shape))
    let count = groups
    weight = DecomposedWeight(
      magnitude: magnitude,
      change: .init(
        a: factors.a, outer: [factors.b], scaling: { Float(factors.scaling) },
        aMatrix: { factors.aMatrix }, outerMatrix: { factors.bMatrix.spread(overGroups: count) }),
      host: host, detachesNorm: detachesNorm)
    switch host {
    // peft's own classes, which print the prefix of DoraLinearLayer once more.
    case is Embedding: kind = "lora.dora.DoraEmbeddingLayer"
    case is Convolution: kind = "lora.dora.DoraConv\(host.kernelShape.count)dLayer"
    default: kind = "DoraLinearLayer"
    }
    if site.initializesFromWeight {
      magnitude.assign(weight.currentNorms(site.parameters).reshaped(shape))
    }
  }

  /// LoRA's parameters and the magnitude.
  package var parameters: [AdapterParameter] {
    factors.parameters + [AdapterParameter(LoRAKey.magnitude, weight.magnitude)]
  }

  /// s, inside the direction: the magnitude stays the length whatever it is.
  package var scaling: Double {
    get { factors.scaling }
    set { factors.scaling = newValue }
  }
  /// s as the config has it.
  package var configuredScaling: Double { factors.configuredScaling }

  package var needsBaseOutput: Bool { true }

  package func output(_ call: LayerCall) -> Tensor? {
    let isDropped = factors.dropout.key(call.context) != nil
    return weight.output(call, isDropped: isDropped, b: factors.b) { linear($0, factors.a.tensor) }
  }

  package func contribute(_ call: LayerCall, to sum: inout Tensor) {
    let input = call.input.map { factors.dropout($0, call.context) }
    let isDropped = factors.dropout.key(call.context) != nil
    weight.contribute(call, of: input, isDropped: isDropped, to: &sum) { direction in
      direction.addProduct(
        call.host.project(input, by: factors.a.tensor), factors.bMatrix, groups: groups,
        scale: Float(scaling))
    }
  }

  package func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    try weight.addDelta(rows: rows, to: &block, base: base)
  }

  /// No change of the direction, and the lengths that the rows of the weight have.
  package func becomeEmpty(on parameters: HostParameters) throws(PEFTError) {
    try factors.becomeEmpty(on: parameters)
    guard parameters.matrix.hasValues else { return }
    let norms = weight.currentNorms(parameters)
    weight.magnitude.assign(norms.reshaped(weight.magnitude.shape))
  }

  package var printedMagnitude: PrintedModule { PrintedModule("lora.dora.\(kind)") }
}
