import NN
import PEFTCore
import Tensors

/// A layer made of two low-rank factors, ΔW = s·B·A, as tuners see it that build upon LoRA.
///
/// It is not public: within this package, LoRA's relatives take LoRA's layers with their
/// initialisation and add to them.
package protocol LoRAFactors: LowRankLayer, ScaledLayer {
  /// Rank of the update.
  var rank: Int { get }
  /// Dropout on the input of A.
  var dropout: Dropout { get }
  /// s, which both protocols above have.
  var scaling: Double { get set }
}

extension LoRALayer: LoRAFactors {}

/// A layer that adds a magnitude to LoRA's factors, and prints as one with LoRA's layers.
package protocol MagnitudeLayer: TunerLayer {
  /// LoRA's layer.
  var factors: any LoRAFactors { get }
  /// How its magnitude prints.
  var printedMagnitude: PrintedModule { get }
}

extension MagnitudeLayer {
  package var printingKind: ObjectIdentifier { factors.printingKind }

  package func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    factors.printed(around: base, layers: layers)
  }
}

extension Dropout {
  /// The dropout on the input of an adapter's A.
  package convenience init(_ probability: Double, at site: AdapterSite) {
    self.init(probability, path: "\(site.path).lora_dropout.\(site.adapter)")
  }
}

extension LoRAFactors {
  /// A as a matrix, `[rank, inputs · kernel]`.
  package var aMatrix: Tensor { a.tensor.asMatrix }
  /// B as a matrix, `[outputs, rank/groups]`.
  package var bMatrix: Tensor { b.tensor.asMatrix }
}
