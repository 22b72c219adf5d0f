import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport

@testable import TunerLoRA

/// A model with a single layer, as the generator's toys are (Tests/Goldens/inits).
final class ToyLayer: Module {
  let layer: any AdapterHost
  init(_ layer: any AdapterHost) { self.layer = layer }
  var typeName: String { "Toy" }
  var children: [(name: String, module: any Module)] { [("layer", layer)] }

  func callAsFunction(_ x: Tensor, _ observer: HostObserver? = nil) -> Tensor {
    var context = ForwardContext(SequenceLayout(lengths: [x.rows]))
    context.observer = observer
    switch layer {
    case let layer as Linear: return layer(x, context)
    case let layer as Conv1D: return layer(x, context)
    default: preconditionFailure("no layer of the toys")
    }
  }
}

/// One folder of Tests/Goldens/inits.
struct InitGolden {
  let folder: String
  let json: JSONValue
  let input: SafetensorsFile
  let base: SafetensorsFile
  let expected: SafetensorsFile

  init(_ name: String) throws {
    folder = TestData.golden("inits/\(name)")
    json = try FileSystem.readJSON("\(folder)/case.json")
    input = try SafetensorsFile("\(folder)/input.safetensors")
    base = try SafetensorsFile("\(folder)/base.safetensors")
    expected = try SafetensorsFile("\(folder)/expected.safetensors")
  }

  static var registry: TunerRegistry {
    var registry = TunerRegistry()
    registry.register(LoRATuner.self)
    return registry
  }

  /// The settings as peft has them, in a new adapter's form.
  var config: LoRAConfig {
    get throws {
      var object = json["config"]?.object ?? JSONObject()
      object["peft_type"] = "LORA"
      if object["target_modules"] == nil { object["target_modules"] = .array(["layer"]) }
      return try LoRAConfig(object)
    }
  }

  /// The layer; in float32 unless the matrix is to stay as it is stored.
  func makeToy() throws -> ToyLayer {
    let bias = Parameter(try base.tensor("layer.bias"), isTrainable: false)
    let stored = try base.matrix("layer.weight")
    if json["module"]?["type"]?.string == "Conv1D" {
      return ToyLayer(Conv1D(stored, bias: bias))
    }
    return ToyLayer(
      Linear(
        HostParameters(weight: .matrix(stored), bias: bias), inputFeatures: stored.columns,
        outputFeatures: stored.rows))
  }

  /// The batches, with the loss of the generator: the mean of squared differences.
  func calibration(_ toy: ToyLayer) throws -> Calibration {
    var pairs: [(x: Tensor, target: Tensor)] = []
    while input["batches.\(pairs.count)"] != nil {
      let x = try input.tensor("batches.\(pairs.count)")
      let target = try input.tensor("targets.\(pairs.count)")
      pairs.append((flat(x), flat(target)))
    }
    return Calibration(pairs) { (pair, observer) throws(PEFTError) in
      let difference = toy(pair.x, observer) + pair.target.scaled(by: -1)
      return (difference * difference).sum().scaled(by: 1 / Float(difference.count))
    }
  }

  func adapted(_ toy: ToyLayer) throws -> PeftModel {
    let peft = PeftModel(toy, info: BaseModelInfo(modelType: "toy"), registry: Self.registry)
    let config = try config
    try peft.add(
      "default", config, seed: 3,
      calibration: config.needsCalibration ? try calibration(toy) : nil)
    return peft
  }

  private func flat(_ x: Tensor) -> Tensor { x.reshaped([x.rows, x.columns]) }
}

extension PeftModel {
  /// The LoRA layer at a path.
  func lora(_ path: String, _ adapter: String = "default") -> LoRALayer {
    let host = base.namedModules().first { $0.path == path }?.module as? any AdapterHost
    return host?.stack?.layer(adapter) as! LoRALayer
  }
}

extension LoRALayer {
  /// s·B·A.
  var product: Tensor { b.value.multiplied(by: a.value).scaled(by: Float(scaling)) }
}

/// |A|ᵢⱼ, for factors whose signs are free.
func magnitudes(_ x: Tensor) -> Tensor {
  Tensor(shape: x.shape, scalars: x.scalars.map(\.magnitude))
}
