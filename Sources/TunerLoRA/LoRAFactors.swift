import NN
import PEFTCore
import Tensors

/// A layer made of two low-rank factors, ΔW = s·B·A, as tuners see it that build upon LoRA.
///
/// It is not public: within this package, LoRA's relatives take LoRA's layers with their
/// initialisation and add to them.
package protocol LoRAFactors: LowRankLayer {
  /// Rank of the update.
  var rank: Int { get }
  /// Dropout on the input of A.
  var dropout: Dropout { get }
}

extension LoRALayer: LoRAFactors {}

extension LoRAFactors {
  /// A as a matrix, `[rank, inputs · kernel]`.
  package var aMatrix: Tensor { Self.matrix(a.tensor) }
  /// B as a matrix, `[outputs, rank/groups]`.
  package var bMatrix: Tensor { Self.matrix(b.tensor) }

  private static func matrix(_ kernel: Tensor) -> Tensor {
    kernel.shape.count == 2
      ? kernel : kernel.reshaped([kernel.shape[0], kernel.count / max(kernel.shape[0], 1)])
  }
}
