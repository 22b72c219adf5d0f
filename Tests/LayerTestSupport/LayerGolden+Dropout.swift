import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

/// Dropout of an adapter's input, with masks that are known.
extension LayerGolden {
  /// The output of a layer whose adapter sees what a mask leaves of its input, the base all of it:
  /// base(x) + adapted(x̃) − base(x̃) with x̃ = mask∘x, all in evaluation mode.
  private func output(
    _ host: any AdapterHost, _ peft: PeftModel, _ x: Parameter, droppedBy mask: Tensor
  ) -> Tensor {
    func run(_ x: Tensor) -> Tensor {
      let input = makeInput(x)
      return host.run(input, context(input))
    }
    let dropped = x.tensor * mask
    let (whole, part) = peft.withAdaptersDisabled { (run(x.tensor), run(dropped)) }
    return whole + run(dropped) + part.scaled(by: -1)
  }

  /// Compares a pass in training, and its gradients, with ``output(_:_:_:droppedBy:)`` for the mask
  /// that the pass draws.
  ///
  /// - Returns: The largest relative errors of the output, and of gradients by what they are of.
  private func dropoutErrors(
    _ host: any AdapterHost, _ peft: PeftModel, probability: Double, seed: UInt64
  ) throws -> [String: Float] {
    let x = Parameter(try input.tensor("x"))
    let upstream = try input.tensor("upstream")
    var training = context(makeInput(x.value))
    training.dropoutSeed = seed
    let ones = Tensor(repeating: 1, shape: x.shape)
    let mask = Dropout(probability, path: "layer.lora_dropout.default")(ones, training)
    let outputs = [
      host.run(makeInput(x.tensor), training), output(host, peft, x, droppedBy: mask),
    ]
    let gradients = outputs.map { contracted($0, upstream).backward() }
    var errors = [
      "output": relativeError(outputs[0], outputs[1]),
      "dropped": Float(mask.scalars.count { $0 == 0 }),
    ]
    let places = peft.trainableTensors.map { ($0.key, $0.parameter) } + [("x", x)]
    for (key, parameter) in places {
      guard let own = gradients[0][parameter], let wanted = gradients[1][parameter] else {
        throw PEFTError(.missingTensor, "no gradient for \(key)")
      }
      errors[key] = relativeError(own, wanted)
    }
    return errors
  }

  /// Checks dropout against the golden with the draw that it holds, and then with a draw of a pass's
  /// own, gradients and the input's included.
  ///
  /// - Parameter name: What the golden calls a tensor.
  package func expectDropoutOfChange(
    _ host: any AdapterHost, _ peft: PeftModel, probability: Double, name: (String) -> String
  ) throws {
    let x = Parameter(try input.tensor("x"))
    let output = output(host, peft, x, droppedBy: try input.tensor("dropout"))
    #expect(relativeError(output, try expected.tensor("dropout.output")) < 1e-5)
    let gradients = contracted(output, try input.tensor("upstream")).backward()
    for tensor in peft.trainableTensors {
      let gradient = try #require(gradients[tensor.parameter])
      let wanted = try expected.tensor("dropout.grad.\(name(tensor.key))")
      #expect(relativeError(gradient, wanted) < 1e-4, "\(tensor.key)")
    }
    var errors = try dropoutErrors(host, peft, probability: probability, seed: 4)
    let dropped = try #require(errors["dropped"])
    #expect(dropped > 0)
    errors["dropped"] = nil
    // Of the output, the input and everything that is trained.
    #expect(errors.count == peft.trainableTensors.count + 2)
    for (key, error) in errors { #expect(error < 1e-4, "\(key): \(error)") }
  }
}
