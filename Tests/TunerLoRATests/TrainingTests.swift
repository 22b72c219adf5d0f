import BLASKernels
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import TunerLoRA

/// Ten AdamW steps on peft's adapters; the expected losses, gradient norms and trained weights are
/// torch's (Tests/Goldens/*/losses.json, trained.safetensors).
struct TrainingTests {
  private final class Moments {
    var first: Tensor
    var second: Tensor

    init(_ shape: [Int]) {
      first = .zeros(shape)
      second = .zeros(shape)
    }
  }

  @Test(arguments: GoldenTests.cases, [false, true])
  func lossesEqualTorch(_ name: String, recomputing: Bool) throws {
    let golden = try GoldenCase(name)
    let json = try FileSystem.readJSON(golden.folder("losses.json"))
    let adapter = try #require(json["adapter"]?.string)
    let settings = try #require(json["optimiser"])
    let losses = try #require(json["losses"]?.array).compactMap(\.double)
    let norms = try #require(json["grad_norms"]?.array).compactMap(\.double)
    // This adapter was made on the model with a new classifier.
    let peft = try golden.loadModel(
      head: adapter == "adapter_cls" ? .sequenceClassification(labels: 4) : nil)
    try peft.load(golden.folder(adapter), as: "a")
    let batches = try SafetensorsFile(golden.folder("batches.safetensors"))
    let moments = peft.trainableTensors.map { Moments($0.parameter.shape) }
    try #require(losses.count == 10 && !moments.isEmpty)
    for step in 0..<10 {
      let loss = try golden.loss(peft, batches, prefix: "\(step).", recomputing: recomputing)
      let value = Double(loss.item)
      #expect(abs(value - losses[step]) < 1e-4 * losses[step], "step \(step)")
      let gradients = loss.backward()
      var squares = 0.0
      for (tensor, moments) in zip(peft.trainableTensors, moments) {
        let gradient = try #require(gradients[tensor.parameter], "\(tensor.key)")
        squares += gradient.sumOfSquares
        tensor.parameter.update { value in
          value.withMutableSlice { value in
            moments.first.withMutableSlice { first in
              moments.second.withMutableSlice { second in
                Optimizers.adamW(
                  parameter: value, gradient: gradient.slice, firstMoment: first,
                  secondMoment: second, step: step + 1,
                  learningRate: settings["lr"]?.double ?? .nan,
                  weightDecay: settings["weight_decay"]?.double ?? .nan)
              }
            }
          }
        }
      }
      #expect(abs(squares.squareRoot() - norms[step]) < 1e-3 * norms[step], "step \(step)")
    }
    let trained = try SafetensorsFile(golden.folder("trained.safetensors"))
    #expect(Set(trained.names) == Set(peft.trainableTensors.map(\.key)))
    for tensor in peft.trainableTensors {
      // AdamW's first steps are as large as the rate, whatever the gradient's size: elements with
      // a tiny gradient differ more than the losses do. Most elements do not.
      let expected = try trained.tensor(tensor.key).scalars
      let actual = tensor.parameter.value.scalars
      let far = zip(expected, actual).count { abs($0 - $1) > 2e-3 }
      #expect(Double(far) <= 0.02 * Double(expected.count), "\(tensor.key): \(far)")
    }
  }
}
