import NN
import PEFTSupport

extension PeftModel {
  /// Whether the stack of layers is another one than the base came with.
  var isReplicated: Bool { selection.replication != nil }

  /// Puts the model's stack of layers together anew, unless it already is as the config wants it.
  ///
  /// - Returns: Puts the stack back as it was before the call.
  func replicateLayers(_ ranges: [Range<Int>]) throws(PEFTError) -> () -> Void {
    if ranges.isEmpty || selection.replication?.ranges == ranges { return {} }
    if !records.isEmpty || isReplicated {
      throw PEFTError(
        .invalidState,
        "'layer_replication' \(ranges.map { [$0.lowerBound, $0.upperBound] }) differs from that "
          + "of the adapters that the model has",
        remedy: records.isEmpty
          ? "Unload the model first."
          : "Remove them first: \(adapterNames.joined(separator: ", ")).")
    }
    guard
      let stack = modules.lazy.compactMap({ $0.module as? any ReplicatesLayers }).first
    else {
      throw PEFTError(
        .unsupported,
        "Could not locate the layers attribute in the model. Expected Llama, Bert or Falcon "
          + "compatible architectures.", remedy: "Leave out 'layer_replication'.")
    }
    if let range = ranges.first(where: { $0.lowerBound < 0 || $0.upperBound > stack.layerCount }) {
      throw PEFTError(
        .invalidConfiguration,
        "'layer_replication': [\(range.lowerBound), \(range.upperBound)] is out of bounds for "
          + "\(stack.layerCount) layers", remedy: "Give ranges [start, end] within the model.")
    }
    let undo = stack.replicateLayers(ranges.flatMap { Array($0) })
    selection.replication = (ranges, undo)
    listModules()
    return { self.undoReplication() }
  }

  func undoReplication() {
    selection.replication?.undo()
    selection.replication = nil
    listModules()
  }
}
