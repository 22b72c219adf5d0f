import Foundation
import LayerTestSupport
import NN
import PEFT
import PEFTCore
import PEFTSupport
import Tensors
import TunerLoRA

// Runs adapters on one layer for scripts/roundtrip.py, which does the same with peft.
//
//     layer-runner CASE OUTPUT
//
// CASE is a folder of Tests/Goldens/layers or of the same form; of its files, the description, the
// weights, the inputs and peft's adapter are read. OUTPUT receives:
//
// * `saved`, `trained`, `fresh`: adapters, which were loaded and saved again, trained for ten steps
//   after that, and made here with the same settings and random values;
// * `outputs.safetensors`: what the layer makes of the input with each of them, with peft's adapter
//   merged, and without any;
// * `losses.json`: the losses of the ten steps.

/// One case.
func run(_ source: String, _ target: String) throws {
  let golden = try LayerGolden(path: source, registry: .standard)
  let (host, peft) = try golden.model()
  var outputs = [SafetensorsItem("saved", try golden.value(host))]
  try peft.save("\(target)/saved")
  peft.disable()
  outputs.append(SafetensorsItem("base", try golden.value(host)))
  peft.enable()
  if host.groups == 1 {
    try peft.merge(safe: true)
    outputs.append(SafetensorsItem("merged", try golden.value(host)))
    peft.unmerge()
  }

  guard var config = try peft.config("default") as? LoRAConfig else {
    throw PEFTError(.unsupported, "no adapter of LoRA's kind")
  }
  config.initialization = .random
  try peft.add("fresh", config, seed: 5)
  try peft.setActive(["fresh"])
  outputs.append(SafetensorsItem("fresh", try golden.value(host)))
  try peft.save("\(target)/fresh", adapter: "fresh")

  try peft.setActive(["default"])
  let losses = try golden.train(host, peft)
  outputs.append(SafetensorsItem("trained", try golden.value(host)))
  try peft.save("\(target)/trained", adapter: "default")
  try SafetensorsWriter.write(outputs, to: "\(target)/outputs.safetensors")
  try FileSystem.write(
    "\(target)/losses.json", JSONValue.array(losses.map { .double($0) }).text())
}

guard CommandLine.arguments.count == 3 else {
  print("usage: layer-runner CASE OUTPUT")
  exit(2)
}
do {
  try run(CommandLine.arguments[1], CommandLine.arguments[2])
} catch {
  print(error)
  exit(1)
}
