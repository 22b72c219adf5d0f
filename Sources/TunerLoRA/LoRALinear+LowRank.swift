import PEFTCore
import Tensors

extension LoRALinear: LowRankLayer {
  var inputFactor: Parameter { a }
  var outputFactor: Parameter { b }
  var productScaling: Double { scaling }
}
