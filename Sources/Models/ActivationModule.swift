import NN
import Tensors

extension Activation {
  /// The activation as transformers prints it.
  var module: Inert {
    switch self {
    case .gelu: return Inert("GELUActivation")
    case .geluNew: return Inert("NewGELUActivation")
    case .geluTanh: return Inert("GELUTanh")
    case .silu: return Inert("SiLUActivation")
    case .tanh: return Inert("Tanh")
    case .relu: return Inert("ReLU")
    }
  }
}
